//! Expected content of every page of a guest or snapshot: arrays of bytes, and nothing cleverer. The judge of all
//! tests.

use std::sync::Arc;

use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_kernel::PAGE_BYTES;

/// The content of one volume. A clone is a copy; equal pages only share their bytes.
#[derive(Debug, Clone)]
pub struct ModelMemory {
    pages: Vec<Arc<[u8]>>,
    zero: Arc<[u8]>,
}

/// A page that is not what the model says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("page {page} is wrong at byte {byte}: {expected:#04x} expected, {found:#04x} found")]
pub struct WrongPage {
    /// The first such page.
    pub page: GuestPage,
    /// The first wrong byte of it.
    pub byte: usize,
    /// The model's byte there.
    pub expected: u8,
    /// The byte that was read.
    pub found: u8,
}

impl ModelMemory {
    /// This many pages of zeroes.
    pub fn zeroes(pages: u32) -> Self {
        let zero: Arc<[u8]> = vec![0; PAGE_BYTES].into();
        let count = usize::try_from(pages).expect("64 bits");
        Self { pages: vec![Arc::clone(&zero); count], zero }
    }

    /// Number of pages.
    pub fn pages(&self) -> u32 {
        u32::try_from(self.pages.len()).expect("made from a u32")
    }

    /// The bytes of a page.
    pub fn page(&self, page: GuestPage) -> &[u8] {
        &self.pages[page.index()]
    }

    /// Writes `bytes` at byte `offset` of a page.
    pub fn write(&mut self, page: GuestPage, offset: usize, bytes: &[u8]) {
        let mut content = self.page(page).to_vec();
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.pages[page.index()] = content.into();
    }

    /// Makes pages zero, as a guest does that gives them back.
    pub fn remove(&mut self, run: GuestPages) {
        for page in run.iter() {
            self.pages[page.index()] = Arc::clone(&self.zero);
        }
    }

    /// The bytes of a run of pages.
    pub fn bytes(&self, run: GuestPages) -> Vec<u8> {
        run.iter().flat_map(|page| self.page(page).iter().copied()).collect()
    }

    /// Compares what was read as `run` with what it must be.
    pub fn check(&self, run: GuestPages, found: &[u8]) -> Result<(), WrongPage> {
        for (page, found) in run.iter().zip(found.chunks(PAGE_BYTES)) {
            let expected = self.page(page);
            if expected != found {
                return Err(wrong(page, expected, found));
            }
        }
        Ok(())
    }
}

/// The first byte of `page` that differs.
fn wrong(page: GuestPage, expected: &[u8], found: &[u8]) -> WrongPage {
    let byte = expected.iter().zip(found).position(|(expected, found)| expected != found);
    let byte = byte.expect("a whole page was read, and differs");
    WrongPage { page, byte, expected: expected[byte], found: found[byte] }
}
