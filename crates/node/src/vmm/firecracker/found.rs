//! The Firecracker and the host that are here, and checks that a saved VM fits them before anything starts.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::spec::FirecrackerSpec;
use super::version::{Feature, Version};
use crate::vmm::said::said_by;

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

/// A difference between a VM and this host; nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The program is older than any that is driven.
    #[error(
        "Firecracker {found} is older than {}, the oldest that rekindle drives: install a newer one",
        Version::OLDEST
    )]
    TooOld {
        /// The program's version.
        found: Version,
    },
    /// The program is of a major version that is not known.
    #[error(
        "Firecracker {found} is not known to rekindle, which drives {} up to, and not including, {}: install one of these",
        Version::OLDEST,
        Version::UNKNOWN
    )]
    TooNew {
        /// The program's version.
        found: Version,
    },
    /// Its state format is another one.
    #[error(
        "the VM was saved by Firecracker {saved_by} (state format {saved}); Firecracker {found_by}, which is here, loads format {found}: install one that loads {saved}"
    )]
    StateFormat {
        /// The version that saved it.
        saved_by: Version,
        /// Its format.
        saved: Version,
        /// The version that is here.
        found_by: Version,
        /// Its format.
        found: Version,
    },
    /// No format is known, and the versions differ.
    #[error(
        "the VM was saved by Firecracker {saved_by}, and {found_by} is here; neither tells its state format: install {saved_by}"
    )]
    UnknownFormat {
        /// The version that saved it.
        saved_by: Version,
        /// The version that is here.
        found_by: Version,
    },
    /// The CPU is another vendor's.
    #[error("the VM was saved on a CPU of {saved}, this one is of {found}")]
    CpuVendor {
        /// The vendor then.
        saved: String,
        /// The vendor now.
        found: String,
    },
    /// The CPU is another model, and no template makes them alike.
    #[error(
        "the VM was saved on the CPU {saved}, this one is {found}, and it has no CPU template that makes them alike"
    )]
    CpuModel {
        /// The model then.
        saved: String,
        /// The model now.
        found: String,
    },
    /// The kernel is older.
    #[error("the VM was saved under Linux {}.{}, this host has {}.{}: an older kernel may lack what its CPU state needs", saved.0, saved.1, found.0, found.1)]
    Kernel {
        /// The kernel then, major and minor.
        saved: (u32, u32),
        /// The kernel now.
        found: (u32, u32),
    },
    /// A tap device has another name, which this version cannot be told.
    #[error(
        "interface {interface} was saved on tap {saved} and is to have {wanted}: Firecracker {version} cannot be told another one, 1.12.0 can"
    )]
    Tap {
        /// The interface.
        interface: String,
        /// The tap device then.
        saved: String,
        /// The one that is wanted.
        wanted: String,
        /// The program's version.
        version: Version,
    },
}

impl Found {
    /// Asks `program` which Firecracker it is, and the system which host this is.
    pub fn look(program: &Path) -> Result<Self, NotFirecracker> {
        let not_run = |source| NotFirecracker::NotRun { program: program.to_owned(), source };
        let said = said_by(program, &["--version"]).map_err(not_run)?.out;
        let version = Version::find_in(&said);
        let version = version.ok_or(NotFirecracker::NoVersion { program: program.to_owned(), said })?;
        let format = said_by(program, &["--snapshot-version"]).map_err(not_run)?.out;
        let host = Host::look().map_err(not_run)?;
        Ok(Self { version, state_format: Version::find_in(&format), host })
    }

    /// Checks that this version can be driven.
    pub fn check(&self) -> Result<(), Misfit> {
        if self.version < Version::OLDEST {
            return Err(Misfit::TooOld { found: self.version });
        }
        if self.version >= Version::UNKNOWN {
            return Err(Misfit::TooNew { found: self.version });
        }
        Ok(())
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

impl FirecrackerSpec {
    /// Checks that the VM can be started or resumed by the program and host found here.
    pub fn check(&self, found: &Found) -> Result<(), Misfit> {
        found.check()?;
        let Some(saved) = &self.saved else { return Ok(()) };
        check_format(&saved.by, found)?;
        self.check_host(&saved.by.host, &found.host)?;
        if found.version.knows(Feature::NetworkOverrides) {
            return Ok(());
        }
        match self.interfaces.iter().zip(&saved.taps).find(|(interface, saved)| interface.tap != **saved) {
            Some((interface, saved)) => Err(Misfit::Tap {
                interface: interface.id.clone(),
                saved: saved.clone(),
                wanted: interface.tap.clone(),
                version: found.version,
            }),
            None => Ok(()),
        }
    }

    fn check_host(&self, saved: &Host, found: &Host) -> Result<(), Misfit> {
        if saved.cpu_vendor != found.cpu_vendor {
            let (saved, found) = (saved.cpu_vendor.clone(), found.cpu_vendor.clone());
            return Err(Misfit::CpuVendor { saved, found });
        }
        if saved.cpu_model != found.cpu_model && self.cpu_profile.is_none() {
            let (saved, found) = (saved.cpu_model.clone(), found.cpu_model.clone());
            return Err(Misfit::CpuModel { saved, found });
        }
        if saved.kernel > found.kernel {
            return Err(Misfit::Kernel { saved: saved.kernel, found: found.kernel });
        }
        Ok(())
    }
}

fn check_format(saved: &Found, found: &Found) -> Result<(), Misfit> {
    let (saved_by, found_by) = (saved.version, found.version);
    match (saved.state_format, found.state_format) {
        (Some(before), Some(now)) if now.loads_format(before) => Ok(()),
        (Some(before), Some(now)) => {
            Err(Misfit::StateFormat { saved_by, saved: before, found_by, found: now })
        }
        _ if (saved_by.major, saved_by.minor) == (found_by.major, found_by.minor) => Ok(()),
        _ => Err(Misfit::UnknownFormat { saved_by, found_by }),
    }
}

fn kernel() -> (u32, u32) {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let mut numbers =
        release.split(|part: char| !part.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
