//! The QEMU of this host: its path, its abilities, and the library that is preloaded into it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rekindle_kernel::{Memfd, PageKind};

use super::machine::{Accelerator, Machine};
use super::misfit::Misfit;
use super::version::Version;
use crate::program_output::output_of;

/// The program's name, where no path is given.
const PROGRAM: &str = "qemu-system-x86_64";
/// The library that hands QEMU's memory over, as this program carries it.
const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/librekindle_shim.so"));

/// A QEMU that was asked what it can do.
#[derive(Clone, Debug)]
pub struct QemuProgram {
    /// Its absolute path.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
    /// Its machines: each with what it stands for, where it is another's name.
    machines: Vec<(String, Option<String>)>,
    /// The library that hands its memory over; one file for all of its processes.
    shim: Arc<Memfd>,
}

/// Reason that there is no QEMU to be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NoQemu {
    /// It is not installed.
    #[error("{looked_for} is not here; install it with: apt-get install qemu-system-x86")]
    NotFound {
        /// The name looked for.
        looked_for: String,
    },
    /// It cannot be run.
    #[error("{} cannot be run: {source}", path.display())]
    NotRun {
        /// Its path.
        path: PathBuf,
        /// The reason.
        source: Arc<io::Error>,
    },
    /// There is no memory for the library that is preloaded into it.
    #[error("making a file in memory for the library that hands QEMU's memory over: {0}")]
    NoShim(#[source] Arc<io::Error>),
    /// It says something about itself that no QEMU says.
    #[error("{} is no QEMU: asked for {asked} it said {said:?}", path.display())]
    NotQemu {
        /// Its path.
        path: PathBuf,
        /// The question.
        asked: &'static str,
        /// The beginning of its answer.
        said: String,
    },
}

impl QemuProgram {
    /// Path of QEMU in the search path now.
    pub fn locate() -> Result<PathBuf, NoQemu> {
        located(None)
    }

    /// The QEMU at `path`, or the one that the search path has, asked what it can do: two runs of 30 ms at once, or
    /// of seconds where it does not answer.
    pub fn find(path: Option<&Path>) -> Result<Self, NoQemu> {
        let path = located(path)?;
        let (said, machines) = std::thread::scope(|scope| {
            let machines = scope.spawn(|| ask(&path, "-machine help"));
            (ask(&path, "--version"), machines.join().expect("asking a program does not panic"))
        });
        let said = said?;
        let version = version_in(&said).ok_or_else(|| NoQemu::NotQemu {
            path: path.clone(),
            asked: "--version",
            said: start_of(&said),
        })?;
        let machines = machines_in(&machines?);
        Ok(Self {
            path,
            version,
            machines,
            shim: Arc::new(shim_file().map_err(|error| NoQemu::NoShim(Arc::new(error)))?),
        })
    }

    /// The library that hands its memory over.
    pub(super) fn shim(&self) -> &Memfd {
        &self.shim
    }

    /// The machine with its version, as this QEMU makes it.
    pub fn machine_type(&self, machine: Machine) -> Result<String, Misfit> {
        let found = self.machines.iter().find(|(name, _)| name == machine.word());
        let found = found.map(|(name, stands_for)| stands_for.clone().unwrap_or_else(|| name.clone()));
        found.ok_or_else(|| Misfit::NoSuchMachine {
            machine_type: machine.word().to_owned(),
            found: self.version,
        })
    }

    /// True if this QEMU can make a machine of that type.
    pub fn has_machine_type(&self, machine_type: &str) -> bool {
        self.machines.iter().any(|(name, _)| name == machine_type)
    }

    /// Checks that an accelerator works here, as far as can be told without starting a machine.
    pub fn check_accelerator(&self, accelerator: Accelerator) -> Result<(), Misfit> {
        let opened = match accelerator {
            Accelerator::Tcg => Ok(()),
            Accelerator::Kvm => File::options().read(true).write(true).open("/dev/kvm").map(drop),
        };
        opened.map_err(|error| Misfit::NoAccelerator { accelerator, reason: format!("/dev/kvm: {error}") })
    }
}

#[cfg(test)]
impl QemuProgram {
    /// A QEMU that is never run.
    pub(super) fn of_tests() -> Self {
        let machines = machines_in("\nmicrovm x\nq35 x (alias of pc-q35-7.2)\npc-q35-7.2 x\npc-q35-6.2 x");
        let version = Version { major: 7, minor: 2, micro: 22 };
        let shim = Arc::new(shim_file().expect("there is memory"));
        Self { path: "/bin/true".into(), version, machines, shim }
    }
}

/// The maker, family, model and stepping of this host's CPU.
pub(super) fn host_cpu() -> String {
    let all = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |field: &str| {
        let line = all.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == field));
        line.and_then(|line| line.split(':').nth(1)).unwrap_or_default().trim().to_owned()
    };
    format!("{} {}/{}/{}", of("vendor_id"), of("cpu family"), of("model"), of("stepping"))
}

fn located(path: Option<&Path>) -> Result<PathBuf, NoQemu> {
    let name = path.unwrap_or(Path::new(PROGRAM));
    let is_file = |path: &PathBuf| path.is_file();
    let found = match name.components().count() {
        1 => {
            let searched = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&searched).map(|directory| directory.join(name)).find(is_file)
        }
        _ => Some(name.to_owned()).filter(is_file),
    };
    let absolute = found.and_then(|path| std::path::absolute(path).ok());
    absolute.ok_or_else(|| NoQemu::NotFound { looked_for: name.display().to_string() })
}

fn ask(path: &Path, what: &'static str) -> Result<String, NoQemu> {
    let words: Vec<_> = what.split(' ').collect();
    let not_run = |source| NoQemu::NotRun { path: path.to_owned(), source: Arc::new(source) };
    let said = output_of(path, &words).map_err(not_run)?;
    if said.status.success() {
        return Ok(said.out);
    }
    Err(NoQemu::NotQemu { path: path.to_owned(), asked: what, said: start_of(&said.errors) })
}

fn start_of(said: &str) -> String {
    said.chars().take(200).collect()
}

fn version_in(said: &str) -> Option<Version> {
    let numbers = said.strip_prefix("QEMU emulator version ")?.split_whitespace().next()?;
    let mut numbers = numbers.split('.').map(|number| number.parse().ok());
    let (major, minor) = (numbers.next()??, numbers.next()??);
    Some(Version { major, minor, micro: numbers.next().flatten().unwrap_or(0) })
}

/// Lines like `q35    Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)`.
fn machines_in(said: &str) -> Vec<(String, Option<String>)> {
    let machine = |line: &str| {
        let name = line.split_whitespace().next()?;
        let stands_for = line.split_once("(alias of ").and_then(|(_, rest)| rest.split(')').next());
        Some((name.to_owned(), stands_for.map(str::to_owned)))
    };
    said.lines().skip(1).filter_map(machine).collect()
}

/// The library in a file that the loader finds wherever programs may not be run from, as some run directories are.
fn shim_file() -> io::Result<Memfd> {
    let bytes = u64::try_from(SHIM.len()).expect("64 bits");
    let file = Memfd::create("librekindle_shim.so", bytes, PageKind::Small)?;
    file.write_at(SHIM, 0)?;
    // One QEMU cannot change what the next one loads.
    match file.seal_writes()? {
        true => Ok(file),
        false => Err(io::Error::other("the file is still written to")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let said = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c)";
        let version = version_in(said).expect("a version");
        assert_eq!(version.to_string(), "7.2.22");
        assert!(version < Version { major: 10, minor: 0, micro: 0 });
        assert_eq!(version_in("QEMU emulator version 10.0\n").map(|version| version.micro), Some(0));
        assert_eq!(version_in("something else"), None);
    }

    #[test]
    fn machines_are_listed_with_what_they_stand_for() {
        let said = "Supported machines are:\nmicrovm   microvm (i386)\n\
                    q35   Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\npc-q35-7.2  Standard PC";
        let machines = machines_in(said);
        assert_eq!(machines[0], ("microvm".to_owned(), None));
        assert_eq!(machines[1], ("q35".to_owned(), Some("pc-q35-7.2".to_owned())));
        assert_eq!(machines.len(), 3);
    }

    #[test]
    fn a_qemu_that_is_not_there_is_told_with_what_to_do() {
        let error = QemuProgram::find(Some(Path::new("/no/such/qemu"))).expect_err("there is none");
        assert!(error.to_string().contains("apt-get install qemu-system-x86"), "{error}");
        let error = QemuProgram::find(Some(Path::new("/bin/cat"))).expect_err("cat is no QEMU");
        assert!(matches!(error, NoQemu::NotQemu { .. }), "{error}");
    }
}
