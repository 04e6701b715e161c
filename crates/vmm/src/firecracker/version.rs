//! Versions of Firecracker and of its snapshot format, and the features of its API in each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version of the program or of the format of its state files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Changes with what is not compatible.
    pub major: u32,
    /// Changes with what is new.
    pub minor: u32,
    /// Changes with what is repaired.
    pub patch: u32,
}

/// Text that is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no version of three numbers")]
pub struct NoVersion {
    /// The text.
    pub text: String,
}

/// Something of the API that not every version has. Firecracker refuses a request with a field it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// `track_dirty_pages` of a load; before it the same is `enable_diff_snapshots`.
    TrackDirtyPagesOnLoad,
    /// `network_overrides` of a load: other host devices than at the pause.
    NetworkOverrides,
    /// `clock_realtime` of a load: the guest's clock goes on by the time it was paused.
    ClockRealtime,
}

impl Version {
    /// The oldest version this driver drives: the userfaultfd library of older ones refuses the kernels that rekindle
    /// needs, so a VM could be paused and never be resumed.
    pub const OLDEST: Self = Self::new(1, 8);
    /// The first version this driver does not drive: a new major version may change every call.
    pub const UNKNOWN: Self = Self::new(2, 0);

    const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor, patch: 0 }
    }

    /// True if this version of the program has `feature`.
    pub fn knows(self, feature: Feature) -> bool {
        let since = match feature {
            Feature::NetworkOverrides => Self::new(1, 12),
            Feature::TrackDirtyPagesOnLoad => Self::new(1, 13),
            Feature::ClockRealtime => Self::new(1, 16),
        };
        self >= since
    }

    /// True if a program whose state format is this one loads a state of format `saved`: Firecracker's own rule.
    pub fn loads_format(self, saved: Self) -> bool {
        self.major == saved.major && self.minor >= saved.minor
    }

    /// The first version that a program printed, like `Firecracker v1.13.1`.
    pub(super) fn find_in(printed: &str) -> Option<Self> {
        printed.split_whitespace().find_map(|word| word.parse().ok())
    }
}

impl FromStr for Version {
    type Err = NoVersion;

    /// Takes `1.13.1` and `v1.13.1`, with any text after a hyphen, as development versions have it.
    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let no_version = || NoVersion { text: text.to_owned() };
        let numbers = text.strip_prefix('v').unwrap_or(text).split('-').next().unwrap_or_default();
        let numbers: Vec<u32> =
            numbers.split('.').map(str::parse).collect::<Result<_, _>>().map_err(|_error| no_version())?;
        match numbers[..] {
            [major, minor, patch] => Ok(Self { major, minor, patch }),
            _ => Err(no_version()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_are_read_as_the_program_prints_them() {
        assert_eq!(Version::find_in("Firecracker v1.13.1\n\n"), Some(version("1.13.1")));
        assert_eq!(Version::find_in("v6.0.0\n"), Some(version("6.0.0")));
        assert_eq!(version("1.16.0-dev"), Version { major: 1, minor: 16, patch: 0 });
        assert_eq!(Version::find_in("no version here"), None);
        for wrong in ["", "v", "1", "1.2", "1.2.3.4", "1.2.x", "-1.2.3", "99999999999.0.0"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_field_is_known_from_its_version_on() {
        let known = |text: &str| {
            [Feature::NetworkOverrides, Feature::TrackDirtyPagesOnLoad, Feature::ClockRealtime]
                .map(|feature| version(text).knows(feature))
        };
        assert_eq!(known("1.11.9"), [false, false, false]);
        assert_eq!(known("1.12.0"), [true, false, false]);
        assert_eq!(known("1.13.1"), [true, true, false]);
        assert_eq!(known("1.16.0"), [true, true, true]);
    }

    #[test]
    fn a_state_is_loaded_by_its_own_format_and_later_ones_of_its_major() {
        assert!(version("6.1.0").loads_format(version("6.0.3")));
        assert!(version("6.1.0").loads_format(version("6.1.9")));
        assert!(!version("6.0.0").loads_format(version("6.1.0")));
        assert!(!version("7.0.0").loads_format(version("6.1.0")));
    }
}
