//! Network devices of this thread's network namespace.

use std::io;

use rustix::io::Errno;
use rustix::ioctl::Opcode;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::ioctl::{Argument, perform};

/// Bytes of a device's name with the zero behind it (IFNAMSIZ, linux/if.h).
const NAME_BYTES: usize = 16;
/// The command that asks for a device's driver (ETHTOOL_GDRVINFO, linux/ethtool.h).
const DRIVER_INFO: u32 = 3;

/// Kind of a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkDevice {
    /// A tap device: Ethernet frames, read and written by a program.
    Tap,
    /// Any other.
    Other,
}

/// `struct ethtool_drvinfo` (linux/ethtool.h).
#[repr(C)]
#[derive(Default)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rest: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// `struct ifreq` (linux/if.h) for SIOCETHTOOL.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    data: *mut DriverInfo,
    rest: [u8; 16],
}

// SAFETY: linux/sockios.h pairs this number with `struct ifreq`; `data` points to the structure its command names.
unsafe impl Argument for InterfaceRequest {
    const OPCODE: Opcode = 0x8946;
}

impl NetworkDevice {
    /// The kind of the device with that name; none if there is no such device.
    pub fn find(name: &str) -> io::Result<Option<Self>> {
        let mut named = [0; NAME_BYTES];
        match named.get_mut(..name.len()) {
            // A name that fills all bytes has no final zero.
            Some(place) if (1..NAME_BYTES).contains(&name.len()) && !name.contains('\0') => {
                place.copy_from_slice(name.as_bytes());
            }
            Some(_) | None => return Ok(None),
        }
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        let mut info = DriverInfo { command: DRIVER_INFO, ..DriverInfo::default() };
        let data = std::ptr::from_mut(&mut info);
        let mut request = InterfaceRequest { name: named, data, rest: [0; 16] };
        // SAFETY: `data` is a `struct ethtool_drvinfo` of ours, which lives longer than the call.
        match unsafe { perform(&socket, &mut request) } {
            // linux/drivers/net/tun.c, tun_get_drvinfo.
            Ok(()) if begins(&info.driver, b"tun\0") && begins(&info.bus, b"tap\0") => Ok(Some(Self::Tap)),
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(Some(Self::Other)),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn begins(text: &[u8], with: &[u8]) -> bool {
    text.starts_with(with)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_a_device_and_no_tap() {
        assert_eq!(NetworkDevice::find("lo").unwrap(), Some(NetworkDevice::Other));
    }

    #[test]
    fn names_that_no_device_can_have_are_of_none() {
        for name in ["", "rk-is-not-here", "a-name-of-sixteen", "a-name-of-16-let", "lo\0"] {
            assert_eq!(NetworkDevice::find(name).unwrap(), None, "{name:?}");
        }
    }
}
