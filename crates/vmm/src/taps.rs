//! Tap devices for a machine: each must exist already, in the network namespace of its VMM.

use std::io;
use std::path::{Path, PathBuf};

use rekindle_kernel::NetworkDevice;

/// Reason that a machine cannot have a tap device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No network device has the name.
    #[error(
        "there is no tap device {name} in {}: make it there with `ip tuntap add dev {name} mode tap`",
        place(netns.as_deref())
    )]
    Missing {
        /// The name.
        name: String,
        /// The file of the network namespace, where it is not the daemon's.
        netns: Option<PathBuf>,
    },
    /// The device of that name is something else.
    #[error("the network device {name} is no tap device: `ip tuntap` lists those that are")]
    NotATap {
        /// The name.
        name: String,
    },
    /// The system does not say what the device is.
    #[error("asking what the network device {name} is: {source}")]
    Asked {
        /// The name.
        name: String,
        /// The system's error.
        source: io::Error,
    },
}

fn place(netns: Option<&Path>) -> String {
    netns.map_or_else(
        || "the daemon's network namespace".to_owned(),
        |netns| format!("the network namespace {}", netns.display()),
    )
}

/// Checks that each of these is a tap device here, which is `netns` if it is not the daemon's network namespace: QEMU
/// would make one that nothing is connected to.
pub fn check<'a>(netns: Option<&Path>, names: impl IntoIterator<Item = &'a str>) -> Result<(), TapError> {
    names.into_iter().try_for_each(|name| match NetworkDevice::find(name) {
        Ok(Some(NetworkDevice::Tap)) => Ok(()),
        Ok(Some(NetworkDevice::Other)) => Err(TapError::NotATap { name: name.to_owned() }),
        Ok(None) => Err(TapError::Missing { name: name.to_owned(), netns: netns.map(Path::to_owned) }),
        Err(source) => Err(TapError::Asked { name: name.to_owned(), source }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_or_is_no_tap_is_refused_by_name() {
        let error = check(None, ["lo"]).expect_err("the loopback is no tap");
        assert!(matches!(&error, TapError::NotATap { name } if name == "lo"), "{error}");
        let error = check(None, ["rk-is-not-here"]).expect_err("there is none");
        assert!(matches!(&error, TapError::Missing { name, .. } if name == "rk-is-not-here"), "{error}");
        assert!(check(None, []).is_ok());
    }
}
