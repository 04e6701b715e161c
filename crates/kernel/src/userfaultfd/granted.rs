//! The features that a userfaultfd was opened with, as the kernel shows them to any holder.

use std::io;
use std::os::fd::AsRawFd;

use super::{Features, Userfaultfd};

/// UFFD_FEATURE_INITIALIZED (fs/userfaultfd.c): the kernel's own note that the handshake is done.
const INITIALIZED: u64 = 1 << 31;

impl Userfaultfd {
    /// The features it was opened with, and those that these imply.
    pub fn granted(&self) -> io::Result<Features> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))?;
        parse(&text).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the kernel does not tell a userfaultfd's features")
        })
    }
}

/// The features in `API:\t<version>:<features>:<ioctls>`, all hexadecimal.
fn parse(text: &str) -> Option<Features> {
    let fields = text.lines().find_map(|line| line.strip_prefix("API:"))?;
    let bits = u64::from_str_radix(fields.trim().split(':').nth(1)?, 16).ok()?;
    Some(Features::of_bits(bits & !INITIALIZED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_asked_for_are_those_granted() {
        for asked in
            [Features::NONE, Features::EVENT_REMOVE, Features::EVENT_REMOVE | Features::WP_UNPOPULATED]
        {
            match Userfaultfd::open(asked) {
                Ok(userfaultfd) => assert_eq!(userfaultfd.granted().unwrap(), asked),
                Err(error) => eprintln!("skipped: kernel: granted features: {error}"),
            }
        }
    }

    #[test]
    fn tracking_by_scan_implies_that_untouched_pages_are_tracked() {
        match Userfaultfd::open(Features::WP_ASYNC) {
            Ok(userfaultfd) => {
                assert_eq!(userfaultfd.granted().unwrap(), Features::WP_ASYNC | Features::WP_UNPOPULATED);
            }
            Err(error) => eprintln!("skipped: kernel: implied features: {error}"),
        }
    }

    #[test]
    fn what_another_kernel_would_print_is_no_feature() {
        assert_eq!(parse("pos:\t0\n"), None);
        assert_eq!(parse("API:\taa:zz:3\n"), None);
        assert_eq!(parse("API:\taa\n"), None);
        assert_eq!(parse("API:\taa:80000008:7f\n"), Some(Features::EVENT_REMOVE));
    }
}
