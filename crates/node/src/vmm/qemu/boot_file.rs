//! A file a machine boots from, known by its bytes: the same wherever a snapshot of the machine is resumed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::misfit::Misfit;

/// A kernel or an initrd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFile {
    /// Where it was when the machine was made; looked at only where no boot directory has its bytes.
    pub path: PathBuf,
    /// The BLAKE3 of its bytes, in hexadecimal.
    pub blake3: String,
}

impl BootFile {
    /// Copies a file into `directory`, under its digest, where it stays whatever becomes of the original.
    pub fn keep(file: &Path, directory: &Path) -> io::Result<Self> {
        Self::keep_bytes(&fs::read(file)?, directory)
    }

    /// Writes `bytes` into `directory`, under their digest.
    pub fn keep_bytes(bytes: &[u8], directory: &Path) -> io::Result<Self> {
        let blake3 = blake3::hash(bytes).to_hex().to_string();
        let path = directory.join(&blake3);
        if digest_of(&path).is_ok_and(|found| found == blake3) {
            return Ok(Self { path, blake3 });
        }
        fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        File::open(directory)?.sync_all()?;
        Ok(Self { path, blake3 })
    }

    /// A file with these very bytes: the one in `directory`, else the one where it was. `role` is for the error.
    pub fn find(&self, directory: &Path, role: &'static str) -> Result<PathBuf, Misfit> {
        // A name from another node is no path of ours until it is seen to be a digest.
        let is_digest = self.blake3.len() == 64 && self.blake3.bytes().all(|byte| byte.is_ascii_hexdigit());
        let kept = directory.join(if is_digest { &self.blake3 } else { "no digest" });
        if digest_of(&kept).is_ok_and(|found| found == self.blake3) {
            return Ok(kept);
        }
        match digest_of(&self.path) {
            Ok(found) if found == self.blake3 => Ok(self.path.clone()),
            Ok(found) => {
                let (path, blake3) = (self.path.clone(), self.blake3.clone());
                Err(Misfit::BootFileChanged { role, path, blake3, found })
            }
            Err(source) => {
                let (path, blake3) = (self.path.clone(), self.blake3.clone());
                Err(Misfit::BootFileMissing { role, path, blake3, source })
            }
        }
    }
}

fn digest_of(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
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
        let kept = BootFile::keep(&original, &boot).expect("there is room");
        fs::write(&original, b"a newer kernel").expect("there is room");
        assert_eq!(kept.find(&boot, "kernel").expect("it was kept"), kept.path);
        assert_eq!(BootFile::keep_bytes(b"a kernel", &boot).expect("it is there"), kept);
        let elsewhere = directory.path().join("elsewhere");
        assert_eq!(kept.find(&elsewhere, "kernel").expect("it is where it was"), kept.path);
    }

    #[test]
    fn a_file_with_other_bytes_or_none_is_a_misfit() {
        let directory = tempfile::tempdir().expect("a directory");
        let kept = BootFile::keep_bytes(b"an initrd", directory.path()).expect("there is room");
        fs::write(&kept.path, b"an inird").expect("there is room");
        let error = kept.find(directory.path(), "initrd").expect_err("it has changed");
        assert!(matches!(error, Misfit::BootFileChanged { role: "initrd", .. }), "{error}");
        assert_eq!(BootFile::keep_bytes(b"an initrd", directory.path()).expect("it is made again"), kept);
        fs::remove_file(&kept.path).expect("it is there");
        let error = kept.find(directory.path(), "initrd").expect_err("it is gone");
        assert!(matches!(error, Misfit::BootFileMissing { .. }), "{error}");
        let hostile = BootFile { path: directory.path().to_owned(), blake3: "../../etc/passwd".to_owned() };
        assert!(hostile.find(directory.path(), "initrd").is_err());
    }
}
