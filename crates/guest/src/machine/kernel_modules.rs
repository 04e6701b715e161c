//! The modules of a kernel that a guest needs, in an order in which they can be loaded.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Modules for a guest's devices, unless they are built into the kernel: buses, disk, network, entropy, the balloon,
/// the generation id that shows that a machine was cloned, and the ports of channels.
const WANTED: [&str; 8] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "vmgenid",
    "virtio_console",
];

/// Number of this choice: kernels that were unpacked with another one are not used.
pub(super) const CHOICE: &str = "choice-2";

/// The wanted modules found under `directory` and their dependencies, each after its own dependencies: names and bytes.
pub(super) fn wanted_modules(directory: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = BTreeMap::new();
    find_modules(directory, &mut files)?;
    let mut chosen = Vec::new();
    for name in WANTED {
        choose(name, &mut files, &mut chosen)?;
    }
    Ok(chosen)
}

/// Every file of a module, by the module's name.
fn find_modules(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find_modules(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            // The kernel treats both characters as equal, and file names have either.
            files.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// Adds `name` after its dependencies; a module that was added, or is built into the kernel, is not among the files.
fn choose(
    name: &str,
    files: &mut BTreeMap<String, PathBuf>,
    chosen: &mut Vec<(String, Vec<u8>)>,
) -> io::Result<()> {
    let Some(path) = files.remove(name) else { return Ok(()) };
    let bytes = fs::read(path)?;
    for needed in needed_by(&bytes) {
        choose(&needed, files, chosen)?;
    }
    chosen.push((format!("{name}.ko"), bytes));
    Ok(())
}

/// The dependencies of the module in `bytes`: the entry `depends` of its section `.modinfo`.
fn needed_by(bytes: &[u8]) -> Vec<String> {
    const WORD: &[u8] = b"\0depends=";
    let Some(start) = bytes.windows(WORD.len()).position(|window| window == WORD) else { return Vec::new() };
    let rest = &bytes[start + WORD.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let names = String::from_utf8_lossy(&rest[..end]);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_once_and_after_what_it_needs() {
        let directory = tempfile::tempdir().expect("a directory");
        let deep = directory.path().join("drivers/virtio");
        fs::create_dir_all(&deep).expect("a directory");
        let write = |name: &str, needs: &str| {
            fs::write(deep.join(name), format!("\x7fELF\0depends={needs}\0name=x\0")).expect("a file");
        };
        write("virtio_blk.ko", "virtio,virtio_ring");
        write("virtio_pci.ko", "virtio-ring,virtio_pci_modern_dev");
        write("virtio_pci_modern_dev.ko", "");
        write("virtio.ko", "virtio_ring");
        write("virtio-ring.ko", "");
        write("unwanted.ko", "");
        let chosen = wanted_modules(directory.path()).expect("readable");
        let names: Vec<&str> = chosen.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["virtio_ring.ko", "virtio_pci_modern_dev.ko", "virtio_pci.ko", "virtio.ko", "virtio_blk.ko"]
        );
    }

    #[test]
    fn modules_that_need_each_other_or_themselves_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, needs: &str| {
            fs::write(directory.path().join(name), format!("\0depends={needs}\0")).expect("a file");
        };
        write("virtio_blk.ko", "virtio_blk,virtio_net");
        write("virtio_net.ko", "virtio_blk");
        assert_eq!(wanted_modules(directory.path()).expect("readable").len(), 2);
    }
}
