//! The Firecracker and the host that are here.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::version::Version;
use crate::program_output::output_of;

/// A Firecracker and the host it runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The program's version.
    pub version: Version,
    /// The format of the states it saves and loads, where it tells.
    pub state_format: Option<Version>,
    /// The host.
    pub host: Host,
}

/// Facts of the host that a VM's saved CPU state depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Maker of the CPU, like `GenuineIntel`.
    pub cpu_vendor: String,
    /// Model of the CPU: family, model and stepping, with its name.
    pub cpu_model: String,
    /// The kernel's version, major and minor.
    pub kernel: (u32, u32),
}

/// Reason that a program is no Firecracker that can be driven.
#[derive(Debug, thiserror::Error)]
pub enum NotFirecracker {
    /// It cannot be run.
    #[error("{} cannot be run: {source}", program.display())]
    NotRun {
        /// The program.
        program: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It says no version.
    #[error("{} does not say which version of Firecracker it is, but {said:?}", program.display())]
    NoVersion {
        /// The program.
        program: PathBuf,
        /// Its output.
        said: String,
    },
}

impl Found {
    /// Asks `program` which Firecracker it is, and the system which host this is.
    pub fn look(program: &Path) -> Result<Self, NotFirecracker> {
        let not_run = |source| NotFirecracker::NotRun { program: program.to_owned(), source };
        let said = output_of(program, &["--version"]).map_err(not_run)?.out;
        let version = Version::find_in(&said);
        let version = version.ok_or(NotFirecracker::NoVersion { program: program.to_owned(), said })?;
        let format = output_of(program, &["--snapshot-version"]).map_err(not_run)?.out;
        let host = Host::look().map_err(not_run)?;
        Ok(Self { version, state_format: Version::find_in(&format), host })
    }
}

impl Host {
    /// This host.
    pub fn look() -> io::Result<Self> {
        let cpus = io::read_to_string(File::open("/proc/cpuinfo")?.take(64 << 10))?;
        let field = |name: &str| {
            let fields = cpus.lines().filter_map(|line| line.split_once(':'));
            let mut values = fields.filter(|(found, _)| found.trim_end() == name);
            values.next().map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let [family, model, stepping] = ["cpu family", "model", "stepping"].map(field);
        Ok(Self {
            cpu_vendor: field("vendor_id"),
            cpu_model: format!("{} ({family}/{model}/{stepping})", field("model name")),
            kernel: kernel(),
        })
    }
}

fn kernel() -> (u32, u32) {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let mut numbers =
        release.split(|part: char| !part.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
