//! Files and directories that no other user can open, whatever the umask and their earlier mode.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// The permissions of the group and of others, as bits of a mode.
pub const OTHERS: u32 = 0o077;

/// From here on no file that this process makes, or one it starts, is for other users, unless its maker says so.
pub fn keep_to_this_user() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// Options that open a file for reading and writing; a file that they make is for this user alone.
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// Opens a file with `options` without ever blocking; anything but a regular file is refused.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let refused = || {
        let why = format!("{} must be a regular file and is none: move it away", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, why)
    };
    match path.metadata() {
        Ok(found) if !found.is_file() => return Err(refused()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(path, "looking at", &error)),
    }
    // Something else may have taken its place since.
    let opened = options.custom_flags(unwaited()).open(path);
    let file = opened.map_err(|error| at(path, "opening", &error))?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) }
}

/// The flags to open a file without waiting for the other end of a pipe.
fn unwaited() -> i32 {
    i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).expect("flags of open(2) are an int")
}

/// Makes a directory for this user alone, and its parents, unless it exists.
pub fn make_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let why = format!("{} is there and no directory: move it away", path.display());
            Err(io::Error::new(error.kind(), why))
        }
        made => made.map_err(|error| at(path, "making", &error)),
    }
}

/// Removes other users' permissions from a directory and everything in it that belongs to this user.
///
/// The directory itself is closed last, so one that is closed already has nothing open in it, and is not walked.
pub fn close(directory: &Path) -> io::Result<()> {
    let found = directory.symlink_metadata().map_err(|error| at(directory, "looking at", &error))?;
    if !found.is_dir() || !allows(&found, OTHERS) {
        return Ok(());
    }
    let unreadable = |error: io::Error| at(directory, "reading", &error);
    for entry in directory.read_dir().map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        match path.symlink_metadata() {
            Ok(entry) if entry.is_dir() => close(&path)?,
            Ok(entry) if entry.is_file() => close_one(&path, &entry, OTHERS)?,
            // Sockets and links are protected by their directory, which is closed last; a file that is gone needs
            // nothing.
            Ok(_) | Err(_) => {}
        }
    }
    close_one(directory, &found, OTHERS)
}

/// Removes the permissions `forbidden` (bits of a mode) from one file or directory, if it exists and belongs to this
/// user; its content is not changed.
pub fn restrict(path: &Path, forbidden: u32) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        found => close_one(path, &found.map_err(|error| at(path, "looking at", &error))?, forbidden),
    }
}

/// An error of the system with its path.
pub fn at(path: &Path, doing: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{doing} {}: {error}", path.display()))
}

/// True if a file of this user allows any of `forbidden`.
fn allows(found: &Metadata, forbidden: u32) -> bool {
    found.mode() & forbidden != 0 && found.uid() == rustix::process::geteuid().as_raw()
}

fn close_one(path: &Path, found: &Metadata, forbidden: u32) -> io::Result<()> {
    if found.is_symlink() || !allows(found, forbidden) {
        return Ok(());
    }
    // By descriptor and not by path: another file may be at the path by then.
    let opened = OpenOptions::new().read(true).custom_flags(unwaited()).open(path);
    let changed = opened.and_then(|file| {
        let now = file.metadata()?;
        let is_same = (now.dev(), now.ino()) == (found.dev(), found.ino());
        let left = Permissions::from_mode(now.mode() & 0o7777 & !forbidden);
        if is_same { file.set_permissions(left) } else { Ok(()) }
    });
    match changed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        changed => changed.map_err(|error| at(path, "closing to other users", &error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use rustix::fs::FileType;

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        path.symlink_metadata().expect("it is there").mode() & 0o777
    }

    fn opened(path: PathBuf, mode: u32) -> PathBuf {
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is this user's");
        path
    }

    #[test]
    fn what_stood_open_is_closed_with_all_that_is_in_it_and_a_link_leads_nowhere() {
        let place = tempfile::tempdir().expect("a directory");
        let (layers, inner) = (place.path().join("layers"), place.path().join("layers/inner"));
        fs::create_dir_all(&inner).expect("a directory");
        let (file, outside) = (inner.join("a.raw"), place.path().join("outside"));
        for path in [&file, &outside] {
            fs::write(path, b"memory").expect("there is room");
        }
        std::os::unix::fs::symlink(&outside, inner.join("link")).expect("there is room");
        for path in [&outside, &file] {
            opened(path.clone(), 0o644);
        }
        for path in [&inner, &layers] {
            opened(path.clone(), 0o755);
        }
        close(&layers).expect("they are this user's");
        assert_eq!([&layers, &inner, &file].map(|path| mode_of(path)), [0o700, 0o700, 0o600]);
        assert_eq!(mode_of(&outside), 0o644, "it is not in the directory");
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_refused_by_name_and_not_waited_for() {
        let place = tempfile::tempdir().expect("a directory");
        let pipe = place.path().join("catalog.lock");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RWXU | Mode::RWXO, 0)
            .expect("a pipe");
        let mut ways = [OpenOptions::new(), OpenOptions::new(), OpenOptions::new(), options()];
        ways[0].read(true);
        ways[1].write(true).create(true).truncate(false);
        ways[2].append(true).create(true);
        for way in &mut ways {
            let refused = open(&pipe, way).expect_err("it is a pipe").to_string();
            assert!(refused.contains(&pipe.display().to_string()), "{refused}");
        }
        restrict(&pipe, OTHERS).expect("it is this user's");
        assert_eq!(mode_of(&pipe) & OTHERS, 0);
        let file = place.path().join("file");
        open(&file, options().create(true).truncate(false)).expect("there is room");
        open(&file, &mut options()).expect("it is there");
    }

    #[test]
    fn what_is_made_is_private_and_a_file_in_a_directorys_place_is_named() {
        let place = tempfile::tempdir().expect("a directory");
        let made = place.path().join("a/b");
        make_directory(&made).expect("there is room");
        make_directory(&made).expect("it is there");
        let file = made.join("file");
        options().create(true).truncate(false).open(&file).expect("there is room");
        assert_eq!((mode_of(&made), mode_of(&file) & 0o077), (0o700, 0));
        let error = make_directory(&file).expect_err("it is a file");
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    }
}
