//! Networks of machines: tap devices and network namespaces, in words that may stand for those of several machines.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Name;

/// Characters of a network device's name (IFNAMSIZ, linux/if.h).
const DEVICE_LENGTH_MAX: usize = 15;
/// Characters of a network namespace's name or path, before anything is replaced in it.
const NETNS_LENGTH_MAX: usize = 200;
/// The directory of namespaces that have a name (ip-netns(8)).
const NAMED_NAMESPACES: &str = "/run/netns";

/// Stands for the number of a sandbox.
const INDEX: &str = "{index}";
/// Stands for the name of a sandbox.
const NAME: &str = "{name}";

/// The name of a tap device. `{index}` in it stands for the number of the sandbox among those of the request, from 1 on,
/// and `{name}` for the sandbox's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(
    min_length = 1,
    max_length = 15,
    pattern = r"^([A-Za-z0-9]|\{index\}|\{name\})([A-Za-z0-9._-]|\{index\}|\{name\})*$"
)]
pub struct TapName(pub String);

/// A network namespace: its name, as of `ip netns`, or the absolute path of its file. `{index}` and `{name}` in it stand
/// for the same as in the name of a tap device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(
    min_length = 1,
    max_length = 200,
    pattern = r"^/?([A-Za-z0-9]|\{index\}|\{name\})([A-Za-z0-9./_-]|\{index\}|\{name\})*$"
)]
pub struct Netns(pub String);

/// The sandbox that words of a request are read for.
#[derive(Clone, Copy, Debug)]
pub struct Which<'a> {
    /// Its number among those of the request, from 1 on.
    pub index: usize,
    /// Its name.
    pub name: Option<&'a Name>,
}

/// Reason that a word stands for no device or namespace of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoNetwork {
    /// It needs a name.
    #[error(
        "`{{name}}` in {word:?} stands for the name of a sandbox, and this one has none: give one (--name)"
    )]
    NoName {
        /// The word.
        word: String,
    },
    /// It is longer than a network device's name may be.
    #[error("the tap {device:?} that {word:?} stands for has more than {DEVICE_LENGTH_MAX} characters")]
    TooLong {
        /// The word.
        word: String,
        /// The name it stands for.
        device: String,
    },
}

impl TapName {
    /// True if it can be a device's name.
    pub(crate) fn is_valid(&self) -> bool {
        is_pattern(&self.0, DEVICE_LENGTH_MAX, "._-")
    }

    /// The name of a sandbox's device.
    pub fn of(&self, which: Which<'_>) -> Result<String, NoNetwork> {
        let device = which.replaced(&self.0)?;
        if device.len() > DEVICE_LENGTH_MAX {
            return Err(NoNetwork::TooLong { word: self.0.clone(), device });
        }
        Ok(device)
    }
}

impl Netns {
    /// True if it can be a namespace's name or path.
    pub(crate) fn is_valid(&self) -> bool {
        let rest = self.0.strip_prefix('/').unwrap_or(&self.0);
        self.0.len() <= NETNS_LENGTH_MAX && is_pattern(rest, NETNS_LENGTH_MAX, "._-/")
    }

    /// The absolute path of the file of a sandbox's namespace.
    pub fn of(&self, which: Which<'_>) -> Result<PathBuf, NoNetwork> {
        Ok(Path::new(NAMED_NAMESPACES).join(which.replaced(&self.0)?))
    }
}

impl Which<'_> {
    fn replaced(self, word: &str) -> Result<String, NoNetwork> {
        let word = word.replace(INDEX, &self.index.to_string());
        match self.name {
            Some(name) => Ok(word.replace(NAME, name)),
            None if word.contains(NAME) => Err(NoNetwork::NoName { word }),
            None => Ok(word),
        }
    }
}

/// True if the text is letters and digits and, from the second on, also `marks`, where what stands for something else
/// counts as a letter.
fn is_pattern(text: &str, length_max: usize, marks: &str) -> bool {
    let plain = text.replace(INDEX, "i").replace(NAME, "n");
    let first_is_plain = plain.starts_with(|first: char| first.is_ascii_alphanumeric());
    let rest_fits = plain.chars().all(|letter| letter.is_ascii_alphanumeric() || marks.contains(letter));
    first_is_plain && rest_fits && text.len() <= length_max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_for_the_network_of_each_sandbox_by_its_number_and_name() {
        let name: Name = "web-2".parse().expect("a name");
        let second = Which { index: 2, name: Some(&name) };
        let unnamed = Which { index: 2, name: None };
        let tap = |word: &str, which| TapName(word.to_owned()).of(which);
        assert_eq!(tap("tap0", unnamed), Ok("tap0".to_owned()));
        assert_eq!(tap("tap{index}", unnamed), Ok("tap2".to_owned()));
        assert_eq!(tap("{name}.{index}", second), Ok("web-2.2".to_owned()));
        assert!(matches!(tap("{name}", unnamed), Err(NoNetwork::NoName { .. })));
        assert!(matches!(tap("{name}{name}{name}{name}", second), Err(NoNetwork::TooLong { .. })));
        let netns = |word: &str| Netns(word.to_owned()).of(second).expect("it has a name");
        assert_eq!(netns("clone-{index}"), Path::new("/run/netns/clone-2"));
        assert_eq!(netns("/proc/7/ns/net"), Path::new("/proc/7/ns/net"));
    }

    #[test]
    fn what_is_no_device_or_namespace_is_told_before_anything_is_replaced() {
        for tap in ["", "-tap", "tap 0", "tap{", "{other}", "tap/0", "sixteen-letters-"] {
            assert!(!TapName(tap.to_owned()).is_valid(), "{tap}");
        }
        for tap in ["t", "{index}", "tap{index}", "{name}-0"] {
            assert!(TapName(tap.to_owned()).is_valid(), "{tap}");
        }
        for netns in ["", "/", "//x", "a b", "{other}", "../x"] {
            assert!(!Netns(netns.to_owned()).is_valid(), "{netns}");
        }
        for netns in ["blue", "clone-{index}", "/run/netns/{name}", "/proc/7/ns/net"] {
            assert!(Netns(netns.to_owned()).is_valid(), "{netns}");
        }
    }
}
