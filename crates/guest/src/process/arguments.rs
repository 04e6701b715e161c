//! Arguments of the hidden subcommand that starts a process guest.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum};
use rekindle_kernel::PageKind;

/// The descriptor of the memory file in a guest that maps one privately. Low numbers may be the keeper's own.
pub const IMAGE_FD: i32 = 25;

/// The guest to be. Its control socket is its standard input.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct GuestArguments {
    /// Bytes of guest memory
    #[arg(long)]
    pub memory: u64,
    /// Kind of guest memory
    #[arg(long, value_enum, default_value_t = MemoryKind::Shared)]
    pub kind: MemoryKind,
    /// Regions guest memory is cut into
    #[arg(long, default_value_t = 1)]
    pub regions: usize,
    /// Threads that share fill, rewrite and verify
    #[arg(long, default_value = "1")]
    pub threads: NonZeroUsize,
    /// Hand the memory over to the fault handler that listens here
    #[arg(long)]
    pub handover: Option<PathBuf>,
    /// Way in which the handler learns of written pages
    #[arg(long, value_enum, default_value_t = TrackingKind::Resident)]
    pub tracking: TrackingKind,
    /// Send the memfd beside the userfaultfd
    #[arg(long)]
    pub send_memfd: bool,
}

/// Kind of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MemoryKind {
    /// A shared memfd
    Shared,
    /// Private anonymous memory
    Private,
    /// A shared memfd of 2 MiB pages
    Huge,
    /// Private anonymous memory of 2 MiB pages
    PrivateHuge,
    /// A private mapping of the memory file that is open under [`IMAGE_FD`]
    Image,
}

/// Way in which written pages are found; it decides the features and registrations of the guest's userfaultfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TrackingKind {
    /// Asynchronous write protection and page-table scans
    Scan,
    /// An event at the first write of a page
    Events,
    /// Not at all: every resident page counts as written
    Resident,
}

impl GuestArguments {
    /// A guest of one shared region that starts with empty memory of its own.
    pub fn fresh(memory: u64) -> Self {
        Self {
            memory,
            kind: MemoryKind::Shared,
            regions: 1,
            threads: NonZeroUsize::MIN,
            handover: None,
            tracking: TrackingKind::Resident,
            send_memfd: false,
        }
    }

    /// The arguments as words of a command line, to be parsed by the program that is started.
    pub fn to_words(&self) -> Vec<OsString> {
        let value = |name: &str, value: String| [OsString::from(name), OsString::from(value)];
        let mut words = Vec::from(value("--memory", self.memory.to_string()));
        words.extend(value("--kind", name_of(&self.kind)));
        words.extend(value("--regions", self.regions.to_string()));
        words.extend(value("--threads", self.threads.to_string()));
        words.extend(value("--tracking", name_of(&self.tracking)));
        if let Some(path) = &self.handover {
            words.extend([OsString::from("--handover"), path.clone().into_os_string()]);
        }
        if self.send_memfd {
            words.push(OsString::from("--send-memfd"));
        }
        words
    }

    /// Parses the words after the name of the subcommand.
    pub fn parse_words(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        #[derive(Parser)]
        #[command(name = "rekindle guest", no_binary_name = true)]
        struct Words {
            #[command(flatten)]
            guest: GuestArguments,
        }
        Ok(Words::try_parse_from(words)?.guest)
    }
}

impl MemoryKind {
    /// The pages the kernel installs.
    pub fn page_kind(self) -> PageKind {
        match self {
            Self::Shared | Self::Private | Self::Image => PageKind::Small,
            Self::Huge | Self::PrivateHuge => PageKind::Huge,
        }
    }

    /// True if the memory is a memfd.
    pub fn is_shared(self) -> bool {
        match self {
            Self::Shared | Self::Huge => true,
            Self::Private | Self::PrivateHuge | Self::Image => false,
        }
    }
}

fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is skipped").get_name().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_parse_back_to_the_same_arguments() {
        let fresh = GuestArguments::fresh(1 << 20);
        let full = GuestArguments {
            memory: 4 << 30,
            kind: MemoryKind::Huge,
            regions: 3,
            threads: NonZeroUsize::new(2).expect("not zero"),
            handover: Some(PathBuf::from("/run/a b")),
            tracking: TrackingKind::Scan,
            send_memfd: true,
        };
        for arguments in [fresh, full] {
            let parsed = GuestArguments::parse_words(arguments.to_words()).expect("own words parse");
            assert_eq!(parsed, arguments);
        }
        assert!(GuestArguments::parse_words([OsString::from("--memory")]).is_err());
    }
}
