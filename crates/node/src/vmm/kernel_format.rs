//! Formats of kernels, told by the first bytes of a file, and the formats that each VMM boots.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Length of a file's part that is looked at: a multiboot header is in the first 8 KiB (multiboot specification, 3.1).
const LOOKED_AT_BYTES: usize = 8192;

/// Place and value of a bzImage's mark (Documentation/arch/x86/boot.rst, `header`).
const BZ_IMAGE: (usize, &[u8]) = (0x202, b"HdrS");
const ELF: &[u8] = b"\x7fELF";
/// The fields of an ELF file that say its word size, its byte order and its processor (elf(5)).
const ELF_CLASS: usize = 4;
const ELF_ORDER: usize = 5;
const ELF_MACHINE: usize = 18;
const ELF_X86_64: [u8; 2] = [62, 0];
/// First bytes of a multiboot header, on an address that four divides.
const MULTIBOOT: [u8; 4] = 0x1bad_b002_u32.to_le_bytes();

/// A format that some VMM boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFormat {
    /// Linux as distributions install it.
    BzImage,
    /// A 64-bit ELF file for x86-64, such as Linux's `vmlinux`.
    Elf64,
    /// Any other ELF file.
    Elf32,
    /// Another file with a multiboot header.
    Multiboot,
}

/// The formats that a VMM boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFormats {
    formats: &'static [KernelFormat],
    told: &'static str,
}

impl KernelFormat {
    /// The format of a file; none if it is no kernel.
    pub fn of(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = vec![0; LOOKED_AT_BYTES];
        let mut count = 0;
        while count < bytes.len() {
            match file.read_at(&mut bytes[count..], u64::try_from(count).expect("a few KiB"))? {
                0 => break,
                read => count += read,
            }
        }
        Ok(Self::in_bytes(&bytes[..count]))
    }

    fn in_bytes(bytes: &[u8]) -> Option<Self> {
        let has = |at: usize, wanted: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(wanted));
        let (at, magic) = BZ_IMAGE;
        if has(0, ELF) {
            let is_x86_64 = has(ELF_CLASS, &[2]) && has(ELF_ORDER, &[1]) && has(ELF_MACHINE, &ELF_X86_64);
            return Some(if is_x86_64 { Self::Elf64 } else { Self::Elf32 });
        }
        if has(at, magic) {
            return Some(Self::BzImage);
        }
        bytes.as_chunks().0.contains(&MULTIBOOT).then_some(Self::Multiboot)
    }

    /// Words for a file of this format, or of none.
    pub fn called(format: Option<Self>) -> &'static str {
        match format {
            Some(Self::BzImage) => "a bzImage",
            Some(Self::Elf64) => "a 64-bit ELF file",
            Some(Self::Elf32) => "a 32-bit ELF file",
            Some(Self::Multiboot) => "a multiboot kernel",
            None => "no kernel",
        }
    }
}

impl KernelFormats {
    /// Formats that QEMU's microvm and q35 boot.
    pub const QEMU: Self = Self {
        formats: &[KernelFormat::BzImage, KernelFormat::Elf64, KernelFormat::Elf32, KernelFormat::Multiboot],
        told: "QEMU boots a bzImage (`vmlinuz`), an ELF file with a PVH entry (`vmlinux`) or a multiboot kernel",
    };

    /// Formats that Firecracker boots on x86-64.
    pub const FIRECRACKER: Self = Self {
        formats: &[KernelFormat::Elf64],
        told: "Firecracker boots an uncompressed 64-bit ELF file (`vmlinux`); Linux's scripts/extract-vmlinux makes \
               one of a bzImage",
    };

    /// True if a format is among them.
    pub fn have(self, format: KernelFormat) -> bool {
        self.formats.contains(&format)
    }
}

impl fmt::Display for KernelFormats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_known_by_their_first_bytes() {
        let mut bz_image = vec![0; 0x300];
        bz_image[0x202..0x206].copy_from_slice(b"HdrS");
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        let mut elf_32 = elf.clone();
        elf_32[4] = 1;
        let mut multiboot = vec![0; 4096];
        multiboot[1024..1028].copy_from_slice(&MULTIBOOT);
        for (bytes, format) in [
            (bz_image, Some(KernelFormat::BzImage)),
            (elf, Some(KernelFormat::Elf64)),
            (elf_32, Some(KernelFormat::Elf32)),
            (crate::vmm::guests::tiny_kernel().to_vec(), Some(KernelFormat::Elf64)),
            (multiboot, Some(KernelFormat::Multiboot)),
            (vec![0; 9000], None),
            (b"\x7fE".to_vec(), None),
            (Vec::new(), None),
        ] {
            assert_eq!(KernelFormat::in_bytes(&bytes), format);
        }
    }
}
