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
/// Fields of a 64-bit ELF file with the place and the number of its program headers: offset and length of each.
const ELF_HEADERS: (usize, usize) = (32, 8);
const ELF_ENTRY_COUNT: (usize, usize) = (56, 2);
/// A program header: its bytes, and its fields.
const ENTRY_BYTES: usize = 56;
const ENTRY_TYPE: (usize, usize) = (0, 4);
const ENTRY_OFFSET: (usize, usize) = (8, 8);
const ENTRY_FILE_BYTES: (usize, usize) = (32, 8);
/// The type of a header that is of notes (`PT_NOTE`).
const NOTE: u64 = 4;
/// Bytes of notes that are looked at; those of Linux have some hundred.
const NOTE_BYTES_MAX: usize = 64 << 10;
/// Type and name of the note with the address at which a VMM enters (`XEN_ELFNOTE_PHYS32_ENTRY`, xen/interface/elfnote.h).
const PHYS32_ENTRY: [[u8; 4]; 2] = [18_u32.to_le_bytes(), *b"Xen\0"];
/// First bytes of a multiboot header, on an address that four divides.
const MULTIBOOT: [u8; 4] = 0x1bad_b002_u32.to_le_bytes();

/// A format that some VMM boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFormat {
    /// Linux as distributions install it.
    BzImage,
    /// A 64-bit ELF file for x86-64 that says where a VMM enters it, such as Linux's `vmlinux` with CONFIG_PVH.
    Elf64Pvh,
    /// Another 64-bit ELF file for x86-64.
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
        let bytes = read_some(file, 0, LOOKED_AT_BYTES)?;
        match Self::in_bytes(&bytes) {
            Some(Self::Elf64) if has_pvh_entry(file, &bytes)? => Ok(Some(Self::Elf64Pvh)),
            format => Ok(format),
        }
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
            Some(Self::Elf64Pvh) => "a 64-bit ELF file with a PVH entry",
            Some(Self::Elf64) => "a 64-bit ELF file without a PVH entry",
            Some(Self::Elf32) => "a 32-bit ELF file",
            Some(Self::Multiboot) => "a multiboot kernel",
            None => "no kernel",
        }
    }
}

impl KernelFormats {
    /// Formats that QEMU's microvm and q35 boot.
    pub const QEMU: Self = Self {
        formats: &[
            KernelFormat::BzImage,
            KernelFormat::Elf64Pvh,
            KernelFormat::Elf32,
            KernelFormat::Multiboot,
        ],
        told: "QEMU boots a bzImage (`vmlinuz`), an ELF file with a PVH entry (`vmlinux`) or a multiboot kernel",
    };

    /// Formats that Firecracker boots on x86-64.
    pub const FIRECRACKER: Self = Self {
        formats: &[KernelFormat::Elf64Pvh, KernelFormat::Elf64],
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

/// Tells if a note of a 64-bit ELF file has the address at which it is entered.
fn has_pvh_entry(file: &File, beginning: &[u8]) -> io::Result<bool> {
    let headers = number(beginning, ELF_HEADERS);
    let bytes = usize::try_from(number(beginning, ELF_ENTRY_COUNT)).expect("16 bits") * ENTRY_BYTES;
    let headers = read_some(file, headers, bytes)?;
    for header in headers.as_chunks::<ENTRY_BYTES>().0 {
        if number(header, ENTRY_TYPE) != NOTE {
            continue;
        }
        let bytes = usize::try_from(number(header, ENTRY_FILE_BYTES)).unwrap_or(usize::MAX);
        let notes = read_some(file, number(header, ENTRY_OFFSET), bytes.min(NOTE_BYTES_MAX))?;
        // A note is the length of its name, that of what it says, its type, and its name.
        let is_entry = |words: &[[u8; 4]]| words[0] == [4, 0, 0, 0] && words[2..] == PHYS32_ENTRY;
        if notes.as_chunks().0.windows(4).any(is_entry) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The little-endian number at a place of so many bytes; what is missing is zero.
fn number(bytes: &[u8], (at, length): (usize, usize)) -> u64 {
    let mut number = [0; 8];
    let there = bytes.get(at..).unwrap_or_default();
    let there = &there[..there.len().min(length)];
    number[..there.len()].copy_from_slice(there);
    u64::from_le_bytes(number)
}

/// The bytes of a file from `at` on, `count` of them where it has so many.
fn read_some(file: &File, at: u64, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let mut read = 0;
    while read < count {
        let so_far = u64::try_from(read).expect("64 bits");
        // An offset that no file has is behind the end of this one.
        let Some(at) = at.checked_add(so_far).filter(|at| i64::try_from(*at).is_ok()) else { break };
        match file.read_at(&mut bytes[read..], at)? {
            0 => break,
            more => read += more,
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 64-bit ELF file with one program header, of notes: one note of this type, behind another one.
    fn elf_with_note(note: u32) -> Vec<u8> {
        let mut elf = vec![0; 200];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[18], elf[32], elf[56]) = (62, 64, 1);
        (elf[64], elf[72], elf[96]) = (4, 120, 40);
        elf[120..136].copy_from_slice(b"\x04\0\0\0\x04\0\0\0\x01\0\0\0Xen\0");
        elf[140..148].copy_from_slice(b"\x04\0\0\0\x04\0\0\0");
        elf[148..152].copy_from_slice(&note.to_le_bytes());
        elf[152..156].copy_from_slice(b"Xen\0");
        elf
    }

    fn format_of(bytes: &[u8]) -> Option<KernelFormat> {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(bytes, 0).expect("there is room");
        KernelFormat::of(&file).expect("it is read")
    }

    #[test]
    fn a_64_bit_elf_file_that_qemu_cannot_enter_is_told_from_one_that_it_can() {
        assert_eq!(format_of(&elf_with_note(18)), Some(KernelFormat::Elf64Pvh));
        for without in
            [elf_with_note(17), elf_with_note(18)[..150].to_vec(), elf_with_note(18)[..20].to_vec()]
        {
            assert_eq!(format_of(&without), Some(KernelFormat::Elf64));
        }
        let mut far = elf_with_note(18);
        far[72..80].copy_from_slice(&[0xff; 8]);
        assert_eq!(format_of(&far), Some(KernelFormat::Elf64), "its notes are where no file has anything");
        assert!(
            KernelFormats::QEMU.have(KernelFormat::Elf64Pvh)
                && !KernelFormats::QEMU.have(KernelFormat::Elf64)
        );
        assert!(KernelFormats::FIRECRACKER.have(KernelFormat::Elf64));
    }

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
            (rekindle_guest::machine::tiny_kernel().to_vec(), Some(KernelFormat::Elf64)),
            (multiboot, Some(KernelFormat::Multiboot)),
            (vec![0; 9000], None),
            (b"\x7fE".to_vec(), None),
            (Vec::new(), None),
        ] {
            assert_eq!(KernelFormat::in_bytes(&bytes), format);
        }
    }
}
