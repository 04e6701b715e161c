//! Writable disks: a file for each process, written from a snapshot's volume, and captured as one again.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use rekindle_engine::capture::CapturedPages;
use rekindle_engine::fetch::Fetcher;
use rekindle_engine::geometry::{GuestPage, GuestPages, bytes_of_pages, pages_covering, usize_of};
use rekindle_engine::identity::VolumeName;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::read_plan::{ReadError, ReadPlan};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::view::{LiveView, PieceSource};
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind};

use super::error::FirecrackerError;
use super::files;
use super::spec::Drive;

/// Pages of a chunk, the unit that is compared and kept.
const CHUNK_PAGES: u32 = 16;
/// Pages of a window, the unit that is read: whole chunks.
const WINDOW_PAGES: u32 = 256;

/// Sources of the bytes of a VM's disks.
#[derive(Clone, Copy, Debug)]
pub struct DriveSource<'a> {
    /// The snapshot that has them as volumes.
    pub snapshot: &'a Snapshot,
    /// Fetches missing bytes.
    pub fetcher: &'a Fetcher,
}

/// The digest of each chunk of a disk as its base has it; of a chunk of zeroes it is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunks(Vec<[u8; 32]>);

const ZERO: [u8; 32] = [0; 32];

impl DriveSource<'_> {
    /// Writes a disk into a new file; the answer is what was written.
    pub(super) fn write(
        &self,
        drive: &Drive,
        name: &VolumeName,
        path: &Path,
    ) -> Result<Chunks, FirecrackerError> {
        let volume = self.snapshot.volumes().iter().find(|volume| volume.name == *name);
        let volume = volume.filter(|volume| Some(volume.view.pages()) == pages_covering(drive.bytes));
        let volume = volume.ok_or_else(|| FirecrackerError::NoVolume { drive: drive.id.clone() })?;
        let failed = |doing| FirecrackerError::file(doing, path);
        let file = files::create(path).map_err(failed("making"))?;
        file.set_len(drive.bytes).map_err(failed("making"))?;
        let pages = volume.view.pages();
        let mut chunks = Chunks::none(pages);
        let mut bytes = vec![0; usize_of(WINDOW_PAGES) * PAGE_BYTES];
        let mut start = 0;
        while start < pages {
            let window = window_at(start, pages);
            let zeroes = zeroes_at(&volume.view, window);
            if zeroes < window.count() {
                self.read(&volume.view, window, &mut bytes)
                    .map_err(|source| FirecrackerError::Content { drive: drive.id.clone(), source })?;
                chunks.write(&file, drive.bytes, window, &bytes).map_err(failed("writing"))?;
            }
            start = start.saturating_add((zeroes - zeroes % WINDOW_PAGES).max(WINDOW_PAGES));
        }
        Ok(chunks)
    }

    fn read(&self, view: &LiveView, window: GuestPages, into: &mut [u8]) -> Result<(), ReadError> {
        let bytes = usize_of(window.count()) * PAGE_BYTES;
        ReadPlan::new(view, window).read(self.fetcher, &mut into[..bytes])
    }
}

/// Captures a disk whose VMM stands still: the pages that differ from the base, and the chunks as they are now.
pub(super) fn capture(
    drive: &Drive,
    name: VolumeName,
    path: &Path,
    base: &Chunks,
) -> Result<(PausedVolume, Chunks), FirecrackerError> {
    let failed = |doing| FirecrackerError::file(doing, path);
    let file = File::open(path).map_err(failed("opening"))?;
    let found = file.metadata().map_err(failed("asking for the size of"))?.len();
    let pages = pages_covering(drive.bytes).filter(|_| found == drive.bytes);
    let pages = pages.ok_or_else(|| FirecrackerError::OtherSize {
        drive: drive.id.clone(),
        path: path.to_owned(),
        expected: drive.bytes,
        found,
    })?;
    if base.0.len() != usize_of(pages.div_ceil(CHUNK_PAGES)) {
        return Err(FirecrackerError::NoVolume { drive: drive.id.clone() });
    }
    let (memfd, pages, chunks) = changed(&file, drive.bytes, pages, base).map_err(failed("capturing"))?;
    Ok((PausedVolume { name, page_kind: PageKind::Small, memfd, pages }, chunks))
}

/// Bytes of a disk's file that are no holes.
pub(super) fn bytes_held(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.blocks() * 512)
}

/// Reads all data of the file, and keeps what is not as in the base.
fn changed(file: &File, bytes: u64, pages: u32, base: &Chunks) -> io::Result<(Memfd, CapturedPages, Chunks)> {
    let memfd = Memfd::create("rekindle-disk", bytes_of_pages(pages), PageKind::Small)?;
    let mut chunks = Chunks::none(pages);
    let mut captured = CapturedPages { kept: PageSet::new(pages), zero: PageSet::new(pages) };
    let mut runs = files::data_runs(file, bytes)?.into_iter().peekable();
    let mut window_bytes = vec![0; usize_of(WINDOW_PAGES) * PAGE_BYTES];
    for start in (0..pages).step_by(usize_of(WINDOW_PAGES)) {
        let window = window_at(start, pages);
        let end = window.end().offset_bytes();
        while runs.next_if(|run| run.end <= window.start().offset_bytes()).is_some() {}
        window_bytes.fill(0);
        if runs.peek().is_some_and(|run| run.start < end) {
            read_up_to(file, &mut window_bytes, window.start().offset_bytes(), bytes)?;
        }
        for chunk in chunks_of(window) {
            let here = within(&window_bytes, window, chunk);
            let digest = digest(here);
            chunks.0[index(chunk)] = digest;
            if digest == base.0[index(chunk)] {
                continue;
            }
            if digest == ZERO {
                captured.zero.insert_run(chunk);
            } else {
                memfd.write_at(here, chunk.start().offset_bytes())?;
                captured.kept.insert_run(chunk);
            }
        }
    }
    Ok((memfd, captured, chunks))
}

impl Chunks {
    /// Those of a disk of zeroes.
    pub(super) fn none(pages: u32) -> Self {
        Self(vec![ZERO; usize_of(pages.div_ceil(CHUNK_PAGES))])
    }

    /// Writes them into a new file.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.0.as_flattened())
    }

    /// Those that were written into a file.
    pub(super) fn load(path: &Path) -> io::Result<Self> {
        Ok(Self(std::fs::read(path)?.as_chunks().0.to_vec()))
    }

    /// Takes the chunks of a window, and writes those that are not zero.
    fn write(&mut self, file: &File, bytes: u64, window: GuestPages, from: &[u8]) -> io::Result<()> {
        for chunk in chunks_of(window) {
            let here = within(from, window, chunk);
            let digest = digest(here);
            self.0[index(chunk)] = digest;
            if digest != ZERO {
                let offset = chunk.start().offset_bytes();
                let inside = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(here.len());
                file.write_all_at(&here[..inside], offset)?;
            }
        }
        Ok(())
    }
}

/// Number of pages from the start of the window on that are known to be zero.
fn zeroes_at(view: &LiveView, window: GuestPages) -> u32 {
    let piece = view.piece_at(window.start(), u32::MAX);
    match piece.source {
        PieceSource::Zero => piece.pages.count(),
        PieceSource::Capture(_) | PieceSource::Layer(..) | PieceSource::Remote(_) | PieceSource::Lost(_) => 0,
    }
}

fn window_at(start: u32, pages: u32) -> GuestPages {
    GuestPages::new(GuestPage::new(start), WINDOW_PAGES.min(pages - start))
}

fn chunks_of(window: GuestPages) -> impl Iterator<Item = GuestPages> {
    let end = window.end().number();
    (window.start().number()..end)
        .step_by(usize_of(CHUNK_PAGES))
        .map(move |start| GuestPages::new(GuestPage::new(start), CHUNK_PAGES.min(end - start)))
}

fn within(bytes: &[u8], window: GuestPages, chunk: GuestPages) -> &[u8] {
    let start = usize_of(chunk.start().pages_since(window.start())) * PAGE_BYTES;
    &bytes[start..start + usize_of(chunk.count()) * PAGE_BYTES]
}

fn index(chunk: GuestPages) -> usize {
    usize_of(chunk.start().number() / CHUNK_PAGES)
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    let zeroes = [0; PAGE_BYTES];
    if bytes.chunks(PAGE_BYTES).all(|page| page == &zeroes[..page.len()]) {
        return ZERO;
    }
    blake3::hash(bytes).into()
}

/// Fills `into` from `offset`, as far as the file goes.
fn read_up_to(file: &File, into: &mut [u8], offset: u64, bytes: u64) -> io::Result<()> {
    let inside = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(into.len());
    file.read_exact_at(&mut into[..inside], offset)
}
