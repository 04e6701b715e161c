//! Loads a program into a machine's memory, with the tables of PVH's direct entry
//! (xen/include/public/arch-x86/hvm/start_info.h).

use rekindle_kernel::GuestMemory;

/// Address in guest memory of the loader's tables, and of the map of memory they point to.
const KNOWLEDGE: usize = 0x6000;
const MAP: usize = 0x6100;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const USABLE: u32 = 1;

/// Kinds of the program's segments: loaded ones, and notes, of which one has PVH's entry.
const LOADED: u32 = 1;
const NOTE: u32 = 4;
const STRETCH_BYTES: usize = 56;
/// Bytes before the content of a note with the name "Xen".
const NOTE_HEAD_BYTES: usize = 16;

/// Start and end of the hole in the first MiB of a PC.
const LOW_END: u64 = 0xa_0000;
const HIGH_START: u64 = 0x10_0000;

/// Start address of the processor, and the value of its EBX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) address: u64,
    pub(super) knowledge: u64,
}

/// Loads the ELF program `kernel` into `memory`.
///
/// # Panics
/// If it is not one of our programs; this loads no others.
pub(super) fn load(memory: &GuestMemory, kernel: &[u8]) -> Entry {
    assert_eq!(&kernel[..5], b"\x7fELF\x02", "the guest is a 64-bit ELF file");
    let (table, entries) = (usize_at(kernel, 32), usize::from(u16_at(kernel, 56)));
    let mut address = None;
    for entry in 0..entries {
        let stretch = &kernel[table + entry * STRETCH_BYTES..][..STRETCH_BYTES];
        let (offset, bytes) = (usize_at(stretch, 8), usize_at(stretch, 32));
        match u32_at(stretch, 0) {
            LOADED => memory.write(usize_at(stretch, 24), &kernel[offset..offset + bytes]),
            NOTE => address = Some(word(usize_at(kernel, offset + NOTE_HEAD_BYTES))),
            _ => {}
        }
    }
    tell_memory(memory);
    Entry { address: address.expect("the guest has a PVH note"), knowledge: word(KNOWLEDGE) }
}

fn tell_memory(memory: &GuestMemory) {
    let stretches = [(0, LOW_END), (HIGH_START, word(memory.bytes()) - HIGH_START)];
    let mut knowledge = Vec::new();
    knowledge.extend([MAGIC, VERSION, 0, 0].into_iter().flat_map(u32::to_le_bytes));
    // No modules, no command line, no ACPI.
    knowledge.extend([0, 0, 0, word(MAP)].into_iter().flat_map(u64::to_le_bytes));
    let count = u32::try_from(stretches.len()).expect("two");
    knowledge.extend([count, 0].into_iter().flat_map(u32::to_le_bytes));
    memory.write(KNOWLEDGE, &knowledge);
    let mut map = Vec::new();
    for (start, bytes) in stretches {
        map.extend([start, bytes].into_iter().flat_map(u64::to_le_bytes));
        map.extend([USABLE, 0].into_iter().flat_map(u32::to_le_bytes));
    }
    memory.write(MAP, &map);
}

fn word(number: usize) -> u64 {
    u64::try_from(number).expect("64 bits")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn usize_at(bytes: &[u8], at: usize) -> usize {
    usize::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
