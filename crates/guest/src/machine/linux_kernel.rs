//! A Linux kernel for a guest: its image and the modules the guest needs, for instance Debian's.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rekindle_kernel::program_output::output_within;

use super::{initrd, kernel_modules};

/// The package that always depends on Debian's newest kernel for virtual machines.
const NEWEST: &str = "linux-image-cloud-amd64";

/// Longest time for one of Debian's programs, of which the slowest downloads 30 MB.
const RUN_LIMIT: Duration = Duration::from_secs(600);

/// The kernel's file in a directory of ours, and the directory of its modules.
const IMAGE: &str = "vmlinuz";
const MODULES: &str = "modules";

/// A kernel that a guest can be started with.
#[derive(Debug, Clone)]
pub struct LinuxKernel {
    /// The name of the package it is from.
    pub name: String,
    /// The file to start.
    pub image: PathBuf,
    /// Names and bytes of the modules that a guest needs, each after its dependencies.
    pub modules: Vec<(String, Vec<u8>)>,
}

/// Reason that there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum LinuxKernelError {
    /// A program of Debian's does not answer.
    #[error("`{command}`: {error}; see whether the places that packages come from can be reached")]
    Silent {
        /// The program and its words.
        command: String,
        /// The limit that it exceeded.
        error: io::Error,
    },
    /// A program of Debian's cannot be run.
    #[error("`{program}` cannot be run, so this is no Debian: {error}")]
    NoDebian {
        /// Its name.
        program: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// A program of Debian's failed.
    #[error("`{command}` did not succeed (is the list of packages fresh? `apt-get update`): {said}")]
    Refused {
        /// The program and its words.
        command: String,
        /// Its output.
        said: String,
    },
    /// The list of packages does not name the newest kernel.
    #[error("the list of packages does not say what {NEWEST} needs: `apt-get update`")]
    Unknown,
    /// The package has no kernel at the usual place.
    #[error("{package} holds no kernel")]
    NoImage {
        /// Its name.
        package: String,
    },
    /// A file cannot be written or read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl LinuxKernel {
    /// Debian's kernel for virtual machines, unpacked in a directory of its own under `directory`.
    ///
    /// A kernel that was unpacked there before is reused, without a download. Otherwise the package is downloaded with
    /// apt, as any user may, and unpacked; nothing is installed. If two processes do so at once, the result of one is
    /// kept.
    pub fn of_debian(directory: &Path) -> Result<Self, LinuxKernelError> {
        let directory = &directory.join(kernel_modules::CHOICE);
        if let Some(kept) = newest_in(directory)? {
            return Self::open(&kept);
        }
        let package = newest_package()?;
        let kept = directory.join(&package);
        fs::create_dir_all(directory)?;
        let work = tempfile::tempdir_in(directory)?;
        let whole = download(&package, work.path())?;
        let chosen = work.path().join("chosen");
        choose(&package, &whole, &chosen)?;
        match fs::rename(&chosen, &kept) {
            Err(_) if kept.join(IMAGE).exists() => {}
            outcome => outcome?,
        }
        Self::open(&kept)
    }

    /// The guest's initrd with the modules for this kernel.
    pub fn initrd(&self) -> Vec<u8> {
        initrd(&self.modules)
    }

    fn open(directory: &Path) -> Result<Self, LinuxKernelError> {
        let mut files: Vec<PathBuf> = paths_in(&directory.join(MODULES))?;
        files.sort();
        let module = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((name, fs::read(path)?))
        };
        Ok(Self {
            name: directory.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            image: directory.join(IMAGE),
            modules: files.iter().map(module).collect::<io::Result<_>>()?,
        })
    }
}

fn paths_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}

/// The kernel under `directory` whose name sorts last.
fn newest_in(directory: &Path) -> io::Result<Option<PathBuf>> {
    if !directory.exists() {
        return Ok(None);
    }
    Ok(paths_in(directory)?.into_iter().filter(|path| path.join(IMAGE).exists()).max())
}

/// The package that [`NEWEST`] depends on.
fn newest_package() -> Result<String, LinuxKernelError> {
    let shown = run("apt-cache", &["show", "--no-all-versions", NEWEST], Path::new("/"))?;
    let needs = shown.lines().find_map(|line| line.strip_prefix("Depends:"));
    let mut names = needs.into_iter().flat_map(|names| names.split([' ', ',']));
    let real = |name: &&str| name.starts_with("linux-image-") && name.ends_with("-cloud-amd64");
    names.find(real).map(str::to_owned).ok_or(LinuxKernelError::Unknown)
}

/// Downloads `package` and unpacks all of it into a directory under `work`.
fn download(package: &str, work: &Path) -> Result<PathBuf, LinuxKernelError> {
    // Under root apt downloads as another user, who may not write there.
    run("apt-get", &["-q", "-o", "APT::Sandbox::User=root", "download", package], work)?;
    let archive = paths_in(work)?.into_iter().find(|path| path.extension() == Some(OsStr::new("deb")));
    let archive = archive.ok_or_else(|| LinuxKernelError::NoImage { package: package.to_owned() })?;
    let archive = archive.to_string_lossy();
    run("dpkg", &["-x", &archive, "whole"], work)?;
    Ok(work.join("whole"))
}

/// Copies the files that a guest needs from an unpacked package, with the modules numbered in their order.
fn choose(package: &str, whole: &Path, chosen: &Path) -> Result<(), LinuxKernelError> {
    let is_image =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"));
    let image = paths_in(&whole.join("boot"))?.into_iter().find(is_image);
    let image = image.ok_or_else(|| LinuxKernelError::NoImage { package: package.to_owned() })?;
    fs::create_dir_all(chosen.join(MODULES))?;
    for (number, (name, bytes)) in kernel_modules::wanted_modules(&whole.join("lib"))?.iter().enumerate() {
        fs::write(chosen.join(MODULES).join(format!("{number:02}-{name}")), bytes)?;
    }
    fs::copy(image, chosen.join(IMAGE))?;
    Ok(())
}

/// Output of `program`, run in `directory` with its messages in English.
fn run(program: &'static str, words: &[&str], directory: &Path) -> Result<String, LinuxKernelError> {
    run_within(RUN_LIMIT, program, words, directory)
}

fn run_within(
    limit: Duration,
    program: &'static str,
    words: &[&str],
    directory: &Path,
) -> Result<String, LinuxKernelError> {
    let shown = || format!("{program} {}", words.join(" "));
    let mut command = Command::new(program);
    command.args(words).current_dir(directory).env("LC_ALL", "C.UTF-8");
    let said = output_within(limit, &mut command).map_err(|error| {
        match error.kind() == io::ErrorKind::TimedOut {
            true => LinuxKernelError::Silent { command: shown(), error },
            false => LinuxKernelError::NoDebian { program, error },
        }
    })?;
    match said.status.success() {
        true => Ok(said.out),
        false => Err(LinuxKernelError::Refused { command: shown(), said: said.errors.trim().to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_ended_and_told_with_its_words() {
        let limit = Duration::from_millis(20);
        let error = run_within(limit, "sleep", &["1000"], Path::new("/")).expect_err("it only sleeps");
        assert!(matches!(error, LinuxKernelError::Silent { .. }), "{error}");
        assert!(error.to_string().starts_with("`sleep 1000`: it does not answer within 20ms"), "{error}");
        let error = run_within(RUN_LIMIT, "no-such-program", &[], Path::new("/")).expect_err("there is none");
        assert!(matches!(error, LinuxKernelError::NoDebian { .. }), "{error}");
    }
}
