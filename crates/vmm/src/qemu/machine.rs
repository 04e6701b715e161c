//! The boards and accelerators that machines have.

use serde::{Deserialize, Serialize};

/// Kind of board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Machine {
    /// Few devices, no PCI, no firmware tables; starts fastest.
    Microvm,
    /// A PC with PCI and ACPI.
    Q35,
}

/// Accelerator of the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// QEMU itself, on any host.
    Tcg,
    /// The CPU, by /dev/kvm.
    Kvm,
}

impl Machine {
    /// QEMU's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Microvm => "microvm",
            Self::Q35 => "q35",
        }
    }

    /// True if it tells the guest by a new generation id that it was resumed.
    pub fn has_generation_id(self) -> bool {
        match self {
            Self::Microvm => false,
            Self::Q35 => true,
        }
    }

    /// True if its devices are the same under every later QEMU.
    pub fn is_versioned(self) -> bool {
        match self {
            Self::Microvm => false,
            Self::Q35 => true,
        }
    }
}

impl Accelerator {
    /// QEMU's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }

    /// The default CPU model: with every feature that there is.
    pub fn default_cpu_model(self) -> &'static str {
        match self {
            Self::Tcg => "max",
            Self::Kvm => "host",
        }
    }
}
