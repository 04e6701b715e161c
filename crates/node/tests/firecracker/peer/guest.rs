//! The guest in a peer: it fills, rewrites and checks its memory, counts, and uses its disks, told by its console.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;

use rekindle_kernel::PAGE_BYTES;
use serde::{Deserialize, Serialize};

use super::memory::{Memory, page_bytes};

/// Memory up to which a guest looks at all of its pages.
const SMALL_PAGES: u32 = 64 << 8;

pub(super) struct Guest {
    pub(super) memory: Memory,
    pub(super) mind: Mind,
    /// Pages written since the start, the load or the last snapshot, by the guest or a device.
    pub(super) dirty: BTreeSet<u32>,
    pub(super) drives: Vec<OpenDrive>,
}

/// The guest's state, like that of vCPUs and devices.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Mind {
    /// The seeds of pages that are not zero.
    pub(super) seeds: BTreeMap<u32, u64>,
    pub(super) ticks: u64,
}

pub(super) struct OpenDrive {
    id: String,
    file: File,
}

impl Guest {
    /// Runs one line of its console.
    pub(super) fn run(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["fill", seed] => self.fill(number(seed)),
            ["dirty", seed, percent] => self.dirty(number(seed), number(percent)),
            ["put", page, seed] => {
                let page = u32::try_from(number(page)).expect("a page");
                self.put(page, number(seed));
                format!("put {page}")
            }
            ["verify"] => self.verify(),
            ["print", bytes] => "x".repeat(usize::try_from(number(bytes)).expect("64 bits")),
            ["tick"] => {
                self.mind.ticks += 1;
                format!("tick {}", self.mind.ticks)
            }
            ["disk", id, "write", block, seed] => self.disk_write(id, number(block), number(seed)),
            ["disk", id, "check", block, seed] => self.disk_check(id, number(block), number(seed)),
            _ => format!("what is {line:?}?"),
        }
    }

    /// Opens the disks as the VMM does, by the paths it was told.
    pub(super) fn open_drives(drives: &[super::configured::Drive]) -> std::io::Result<Vec<OpenDrive>> {
        let open = |drive: &super::configured::Drive| {
            let file = OpenOptions::new().read(true).write(!drive.is_read_only).open(&drive.path_on_host)?;
            Ok(OpenDrive { id: drive.drive_id.clone(), file })
        };
        drives.iter().map(open).collect()
    }

    /// Gives the last pages back, and takes them for zero.
    pub(super) fn give_back(&mut self, mib: u32) {
        let pages = (mib << 8).min(self.memory.pages());
        let first = self.memory.pages() - pages;
        self.memory.discard(first, pages);
        self.mind.seeds.retain(|page, _| *page < first);
    }

    /// Reads pages as the restoring of devices does.
    pub(super) fn touch(&self, pages: usize) {
        for page in self.mind.seeds.keys().take(pages) {
            std::hint::black_box(self.memory.read(*page));
        }
    }

    fn fill(&mut self, seed: u64) -> String {
        for page in 0..self.memory.pages() {
            self.put(page, seed);
        }
        format!("filled {}", self.memory.pages())
    }

    /// Rewrites a share: some pages become zero, some are written with what they had.
    fn dirty(&mut self, seed: u64, percent: u64) -> String {
        let mut count = 0;
        for page in 0..self.memory.pages() {
            let lot = u64::from(page).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            if lot % 100 >= percent {
                continue;
            }
            let next = match lot / 100 % 8 {
                0 => 0,
                1 => self.mind.seeds.get(&page).copied().unwrap_or(0),
                _ => seed,
            };
            self.put(page, next);
            count += 1;
        }
        format!("dirtied {count}")
    }

    fn put(&mut self, page: u32, seed: u64) {
        self.memory.write(page, &page_bytes(page, seed));
        self.dirty.insert(page);
        if seed == 0 {
            self.mind.seeds.remove(&page);
        } else {
            self.mind.seeds.insert(page, seed);
        }
    }

    fn verify(&self) -> String {
        let all = self.memory.pages();
        let pages: Vec<u32> =
            if all <= SMALL_PAGES { (0..all).collect() } else { self.mind.seeds.keys().copied().collect() };
        let is_wrong = |page: &&u32| {
            let seed = self.mind.seeds.get(*page).copied().unwrap_or(0);
            self.memory.read(**page) != page_bytes(**page, seed)
        };
        let wrong: Vec<_> = pages.iter().filter(is_wrong).collect();
        format!("verified {} {}", pages.len(), wrong.len())
    }

    fn disk_write(&self, id: &str, block: u64, seed: u64) -> String {
        let bytes = page_bytes(u32::try_from(block).expect("a block"), seed);
        match self.drive(id).file.write_all_at(&bytes, block * u64::try_from(PAGE_BYTES).expect("4096")) {
            Ok(()) => format!("wrote {id} {block}"),
            Err(error) => format!("failed {error}"),
        }
    }

    fn disk_check(&self, id: &str, block: u64, seed: u64) -> String {
        let mut bytes = [0; PAGE_BYTES];
        let read =
            self.drive(id).file.read_exact_at(&mut bytes, block * u64::try_from(PAGE_BYTES).expect("4096"));
        let right = read.is_ok() && bytes == page_bytes(u32::try_from(block).expect("a block"), seed);
        format!("{} {id} {block}", if right { "right" } else { "wrong" })
    }

    fn drive(&self, id: &str) -> &OpenDrive {
        self.drives.iter().find(|drive| drive.id == id).expect("the guest has this disk")
    }
}

fn number(word: &str) -> u64 {
    word.parse().expect("a test gives numbers")
}
