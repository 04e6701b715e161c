//! Checks that a saved VM fits the Firecracker and the host that are here, before anything starts.

use super::found::{Found, Host};
use super::spec::FirecrackerSpec;
use super::version::{Feature, Version};

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
