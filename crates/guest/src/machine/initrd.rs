//! The Linux guest's first file system, a cpio archive in the "newc" form that the kernel unpacks
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;

use super::linux_init;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The number of `/dev/console`.
const CONSOLE: [u32; 2] = [5, 1];
const NO_DEVICE: [u32; 2] = [0, 0];

/// An archive of the guest's init and of kernel modules (names and bytes), which it loads in this order.
///
/// Equal modules give equal bytes.
pub fn initrd(modules: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "disk", "lib"] {
        archive.add(directory, DIRECTORY, NO_DEVICE, &[]);
    }
    archive.add("dev/console", CHARACTER_DEVICE, CONSOLE, &[]);
    archive.add("init", PROGRAM, NO_DEVICE, linux_init());
    let mut list = String::new();
    for (name, bytes) in modules {
        archive.add(&format!("lib/{name}"), FILE, NO_DEVICE, bytes);
        list.push_str(&format!("/lib/{name}\n"));
    }
    archive.add("modules", FILE, NO_DEVICE, list.as_bytes());
    archive.add("TRAILER!!!", 0, NO_DEVICE, &[]);
    archive.bytes
}

/// An archive of programs and files (paths and bytes) with the directories that they are in, and of the console: for a guest
/// whose first process is the one among them whose path is `init`.
///
/// Equal files give equal bytes.
pub fn initrd_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Archive::default();
    let mut directories = BTreeSet::from(["dev".to_owned()]);
    for (path, _) in files {
        directories.extend(path.match_indices('/').map(|(end, _)| path[..end].to_owned()));
    }
    directories.iter().for_each(|directory| archive.add(directory, DIRECTORY, NO_DEVICE, &[]));
    archive.add("dev/console", CHARACTER_DEVICE, CONSOLE, &[]);
    files.iter().for_each(|(path, bytes)| archive.add(path, PROGRAM, NO_DEVICE, bytes));
    archive.add("TRAILER!!!", 0, NO_DEVICE, &[]);
    archive.bytes
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: [u32; 2], content: &[u8]) {
        self.entries += 1;
        let length = u32::try_from(content.len()).expect("a module is smaller than 4 GiB");
        let name_length = u32::try_from(name.len() + 1).expect("a name is short");
        let [major, minor] = device;
        // inode, mode, user, group, links, time, length, device of the file, device it is, name's length, checksum
        let fields = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, major, minor, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.fill_up();
        self.bytes.extend_from_slice(content);
        self.fill_up();
    }

    fn fill_up(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    /// Reads the archive by its published format, since a minimal Debian has no `cpio`.
    fn entries(mut archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            let field = |at: usize| {
                let digits = std::str::from_utf8(&archive[6 + 8 * at..14 + 8 * at]).expect("digits");
                usize::from_str_radix(digits, 16).expect("a number")
            };
            assert_eq!(&archive[..6], b"070701");
            let (length, name_length) = (field(6), field(11));
            let name = String::from_utf8(archive[110..110 + name_length - 1].to_vec()).expect("a name");
            let start = (110 + name_length).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, archive[start..start + length].to_vec()));
            archive = &archive[(start + length).next_multiple_of(4)..];
        }
    }

    #[test]
    fn the_archive_holds_init_the_modules_and_their_order() {
        let modules = [("b.ko".to_owned(), b"one".to_vec()), ("a.ko".to_owned(), b"other".to_vec())];
        let found = entries(&initrd(&modules));
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        let expected =
            ["dev", "proc", "disk", "lib", "dev/console", "init", "lib/b.ko", "lib/a.ko", "modules"];
        assert_eq!(names, expected);
        assert_eq!(found[5].1, linux_init());
        assert_eq!(found[7].1, b"other");
        assert_eq!(found[8].1, b"/lib/b.ko\n/lib/a.ko\n");
    }

    #[test]
    fn files_come_after_the_directories_that_they_are_in() {
        let files = [("init".to_owned(), b"a".to_vec()), ("usr/lib/b.py".to_owned(), b"bb".to_vec())];
        let found = entries(&initrd_of(&files));
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["dev", "usr", "usr/lib", "dev/console", "init", "usr/lib/b.py"]);
        assert_eq!(found[5].1, b"bb");
    }

    #[test]
    fn the_init_is_a_static_program_for_this_architecture() {
        assert_eq!(&linux_init()[..5], b"\x7fELF\x02");
        assert_eq!(linux_init()[18], 62);
    }
}
