//! A file a machine boots from, known by its bytes: the same on every host that resumes a snapshot of the machine.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, Write};
use std::path::{Path, PathBuf};

use rekindle_input::asker::Asker;
use rekindle_input::regular_file::{FileError, RegularFile};
use serde::{Deserialize, Serialize};

use super::misfit::{FoundInstead, Misfit};
use crate::kernel_format::{KernelFormat, KernelFormats};

/// Bytes of a kernel or an initrd: x86 Linux is loaded, with its initrd, below this address (`initrd_addr_max`,
/// Documentation/arch/x86/boot.rst).
const BOOT_FILE_BYTES_MAX: u64 = 2 << 30;

/// The directory, in that of the copies, of files that the operator puts there; none of them is removed.
const PROVIDED: &str = "provided";

/// Bytes copied at once.
const STEP_BYTES: usize = 1 << 20;

/// A kernel or an initrd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFile {
    /// Path of its copy when the machine was made; looked at only if no boot directory has its bytes.
    pub path: PathBuf,
    /// The BLAKE3 of its bytes, in hexadecimal.
    pub blake3: String,
    /// Its path when it was named; looked at last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<PathBuf>,
}

/// Role of a file in a boot.
#[derive(Clone, Copy, Debug)]
pub enum BootRole {
    /// Its kernel, in one of these formats.
    Kernel(KernelFormats),
    /// The initrd of a machine with this much memory.
    Initrd {
        /// Bytes of the machine's memory.
        memory_bytes: u64,
    },
}

/// Reason that a file cannot be booted from.
#[derive(Debug, thiserror::Error)]
pub enum BootFileError {
    /// It is no file that can be read whole.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no kernel, or none that the VMM boots.
    #[error("it is {}: {wanted}", KernelFormat::called(*found))]
    NotAKernel {
        /// Format of the file.
        found: Option<KernelFormat>,
        /// Formats that the VMM boots.
        wanted: KernelFormats,
    },
    /// It was written to while it was read.
    #[error("it changed while it was copied: try again once no program writes to it")]
    Changed,
    /// The client that asked for the machine is gone.
    #[error("its client is gone")]
    AskerGone,
    /// It cannot be read, or its copy not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl BootRole {
    fn bytes_max(self) -> u64 {
        match self {
            Self::Kernel(_) => BOOT_FILE_BYTES_MAX,
            // It is in the machine's memory, whole.
            Self::Initrd { memory_bytes } => memory_bytes.min(BOOT_FILE_BYTES_MAX),
        }
    }

    fn check(self, file: &File) -> Result<(), BootFileError> {
        match self {
            Self::Kernel(wanted) => {
                let found = KernelFormat::of(file)?;
                let is_wanted = found.is_some_and(|found| wanted.have(found));
                if is_wanted { Ok(()) } else { Err(BootFileError::NotAKernel { found, wanted }) }
            }
            Self::Initrd { .. } => Ok(()),
        }
    }
}

impl BootFile {
    /// Copies a file into `directory`, under its digest, where it stays independent of the original. The copying takes
    /// no memory, and ends when `asker` is gone.
    pub fn keep(file: &Path, directory: &Path, role: BootRole, asker: &Asker) -> Result<Self, BootFileError> {
        let source = RegularFile::open(file, role.bytes_max())?;
        role.check(source.file())?;
        let bytes = source.size_bytes();
        let mut source = source.into_file();
        let blake3 = copy(&mut source, bytes, &mut io::sink(), asker)?;
        let path = directory.join(&blake3);
        if digest_of(&path).is_ok_and(|found| found == blake3) {
            return Ok(Self { path, blake3, named: Some(file.to_owned()) });
        }
        source.rewind()?;
        fs::create_dir_all(directory)?;
        let mut copied = tempfile::NamedTempFile::new_in(directory)?;
        if copy(&mut source, bytes, &mut copied, asker)? != blake3 {
            return Err(BootFileError::Changed);
        }
        persist(copied, &path, directory)?;
        Ok(Self { path, blake3, named: Some(file.to_owned()) })
    }

    /// Writes `bytes` into `directory`, under their digest.
    pub fn keep_bytes(bytes: &[u8], directory: &Path) -> io::Result<Self> {
        let blake3 = blake3::hash(bytes).to_hex().to_string();
        let path = directory.join(&blake3);
        if digest_of(&path).is_ok_and(|found| found == blake3) {
            return Ok(Self { path, blake3, named: None });
        }
        fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(bytes)?;
        persist(file, &path, directory)?;
        Ok(Self { path, blake3, named: None })
    }

    /// A file with these very bytes: the one in `directory`, else one where it was. `role` is for the error.
    pub fn find(&self, directory: &Path, role: &'static str) -> Result<PathBuf, Misfit> {
        let mut places = Vec::new();
        for path in self.places(directory) {
            let found = match digest_of(&path) {
                Ok(found) if found == self.blake3 => return Ok(path),
                Ok(blake3) => FoundInstead::OtherBytes { blake3 },
                Err(error) => FoundInstead::Unreadable(error),
            };
            places.push((path, found));
        }
        Err(Misfit::NoBootFile { role, blake3: self.blake3.clone(), places })
    }

    /// True if a file is at any of its possible places.
    pub(super) fn is_somewhere(&self, directory: &Path) -> bool {
        self.places(directory).iter().any(|place| place.is_file())
    }

    /// Its possible places, the likeliest first.
    fn places(&self, directory: &Path) -> Vec<PathBuf> {
        // A name from another node is no path of ours until it is seen to be a digest.
        let is_digest = self.blake3.len() == 64 && self.blake3.bytes().all(|byte| byte.is_ascii_hexdigit());
        let below = |directory: PathBuf| is_digest.then(|| directory.join(&self.blake3));
        let (kept, provided) = (below(directory.to_owned()), below(directory.join(PROVIDED)));
        let known = [kept, Some(self.path.clone()), provided, self.named.clone()];
        let mut places: Vec<PathBuf> = known.into_iter().flatten().collect();
        places.dedup();
        places
    }
}

/// Copies exactly `bytes` bytes and gives their digest.
fn copy(
    source: &mut File,
    bytes: u64,
    into: &mut impl Write,
    asker: &Asker,
) -> Result<String, BootFileError> {
    let mut hasher = blake3::Hasher::new();
    let mut step = vec![0; STEP_BYTES];
    let mut source = source.take(bytes);
    loop {
        if asker.is_gone() {
            return Err(BootFileError::AskerGone);
        }
        let count = match source.read(&mut step) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        hasher.update(&step[..count]);
        into.write_all(&step[..count])?;
    }
    // A rest of the bound means that the file has lost bytes since it was opened.
    if source.limit() > 0 { Err(BootFileError::Changed) } else { Ok(hasher.finalize().to_hex().to_string()) }
}

fn persist(file: tempfile::NamedTempFile, path: &Path, directory: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

fn digest_of(path: &Path) -> io::Result<String> {
    let file = RegularFile::open(path, BOOT_FILE_BYTES_MAX)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_outlives_its_original() {
        let directory = tempfile::tempdir().expect("a directory");
        let (original, boot) = (directory.path().join("vmlinuz"), directory.path().join("boot"));
        fs::write(&original, b"a kernel").expect("there is room");
        let keep = |file: &Path| {
            BootFile::keep(file, &boot, BootRole::Initrd { memory_bytes: 100 }, &Asker::default())
        };
        let kept = keep(&original).expect("there is room");
        fs::write(&original, b"a newer kernel").expect("there is room");
        assert_eq!(kept.find(&boot, "kernel").expect("it was kept"), kept.path);
        let again = BootFile::keep_bytes(b"a kernel", &boot).expect("it is there");
        assert_eq!((again.path, again.blake3), (kept.path.clone(), kept.blake3.clone()));
        assert_eq!(kept.named.as_ref(), Some(&original));
        let elsewhere = directory.path().join("elsewhere");
        assert_eq!(kept.find(&elsewhere, "kernel").expect("it is where it was"), kept.path);
    }

    #[test]
    fn a_file_that_the_operator_provides_is_found_where_no_copy_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let (boot, provided) = (directory.path().join("boot"), directory.path().join("boot/provided"));
        let kept = BootFile::keep_bytes(b"a kernel", &boot).expect("there is room");
        fs::create_dir(&provided).expect("there is room");
        let there = provided.join(&kept.blake3);
        fs::rename(&kept.path, &there).expect("there is room");
        assert_eq!(kept.find(&boot, "kernel").expect("it is provided"), there);
    }

    #[test]
    fn a_file_whose_copy_is_gone_is_taken_from_where_it_was_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let (original, boot) = (directory.path().join("vmlinuz"), directory.path().join("boot"));
        fs::write(&original, b"a kernel").expect("there is room");
        let role = BootRole::Initrd { memory_bytes: 100 };
        let kept = BootFile::keep(&original, &boot, role, &Asker::default()).expect("there is room");
        fs::remove_file(&kept.path).expect("it is there");
        assert_eq!(kept.find(&boot, "kernel").expect("it is where it was named"), original);
        fs::write(&original, b"a newer kernel").expect("there is room");
        let error = kept.find(&boot, "kernel").expect_err("it has other bytes").to_string();
        let newer = blake3::hash(b"a newer kernel").to_hex();
        for told in [
            format!("{} cannot be read", kept.path.display()),
            format!("{} has other bytes (BLAKE3 {newer})", original.display()),
            format!("put the file with BLAKE3 {}", kept.blake3),
        ] {
            assert!(error.contains(&told), "{told}: {error}");
        }
        assert_eq!(error.matches(&*kept.path.display().to_string()).count(), 1, "{error}");
    }

    #[test]
    fn an_initrd_that_is_larger_than_memory_is_refused_before_it_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let image = directory.path().join("disk.img");
        File::create(&image).and_then(|file| file.set_len(700 << 20)).expect("a sparse file");
        let role = BootRole::Initrd { memory_bytes: 64 << 20 };
        let boot = directory.path().join("boot");
        let error = BootFile::keep(&image, &boot, role, &Asker::default()).expect_err("it does not fit");
        assert_eq!(error.to_string(), "it has 700.0 MiB, and may have 64.0 MiB at most");
        assert!(!boot.exists());
    }

    #[test]
    fn a_kernel_is_a_regular_file_in_a_format_that_its_vmm_boots() {
        let directory = tempfile::tempdir().expect("a directory");
        let boot = directory.path().join("boot");
        let keep =
            |path: &Path, formats| BootFile::keep(path, &boot, BootRole::Kernel(formats), &Asker::default());
        let error = keep(Path::new("/dev/zero"), KernelFormats::QEMU).expect_err("it has no end");
        assert!(error.to_string().contains("a character device"), "{error}");
        let image = directory.path().join("disk.img");
        File::create(&image).and_then(|file| file.set_len(8 << 20)).expect("a sparse file");
        let error = keep(&image, KernelFormats::QEMU).expect_err("it is a disk");
        assert!(error.to_string().starts_with("it is no kernel: QEMU boots"), "{error}");
        fs::write(&image, rekindle_guest::machine::tiny_kernel()).expect("there is room");
        keep(&image, KernelFormats::QEMU).expect("QEMU boots the tiny guest");
        keep(&image, KernelFormats::FIRECRACKER).expect("Firecracker boots it, too");
        fs::write(&image, [b"\x7fELF\x01\x01", &[0; 64][..]].concat()).expect("there is room");
        keep(&image, KernelFormats::QEMU).expect("QEMU may boot it");
        let error = keep(&image, KernelFormats::FIRECRACKER).expect_err("it has 32 bits");
        assert!(error.to_string().starts_with("it is a 32-bit ELF file: Firecracker boots"), "{error}");
    }

    #[test]
    fn copying_ends_when_its_asker_is_gone_and_nothing_of_it_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let (original, boot) = (directory.path().join("initrd"), directory.path().join("boot"));
        fs::write(&original, b"an initrd").expect("there is room");
        let asker = Asker::default();
        drop(asker.waits());
        let role = BootRole::Initrd { memory_bytes: 1 << 20 };
        let error = BootFile::keep(&original, &boot, role, &asker).expect_err("nobody waits for it");
        assert!(matches!(error, BootFileError::AskerGone), "{error}");
        assert!(!boot.exists());
    }

    #[test]
    fn a_file_with_other_bytes_or_none_is_a_misfit() {
        let directory = tempfile::tempdir().expect("a directory");
        let kept = BootFile::keep_bytes(b"an initrd", directory.path()).expect("there is room");
        fs::write(&kept.path, b"an inird").expect("there is room");
        let error = kept.find(directory.path(), "initrd").expect_err("it has changed");
        assert!(error.to_string().contains("has other bytes"), "{error}");
        assert_eq!(BootFile::keep_bytes(b"an initrd", directory.path()).expect("it is made again"), kept);
        fs::remove_file(&kept.path).expect("it is there");
        let error = kept.find(directory.path(), "initrd").expect_err("it is gone");
        assert!(error.to_string().contains("cannot be read"), "{error}");
        let hostile = BootFile {
            path: directory.path().to_owned(),
            blake3: "../../etc/passwd".to_owned(),
            named: None,
        };
        assert!(hostile.find(directory.path(), "initrd").is_err());
    }
}
