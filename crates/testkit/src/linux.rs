//! The Linux kernel that tests start guests with.

use std::path::{Path, PathBuf};

use rekindle_guest::machine::LinuxKernel;

use crate::skip;

/// Debian's kernel for virtual machines; if it is unavailable, reports that `tier` was skipped.
pub fn kernel_or_skip(tier: &str) -> Option<LinuxKernel> {
    match LinuxKernel::of_debian(&directory()) {
        Ok(kernel) => Some(kernel),
        Err(error) => {
            skip::skipped(tier, &error.to_string());
            None
        }
    }
}

/// Directory of unpacked kernels: in the workspace's target directory.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests")
}
