//! A guest of a few threads in the test's own process: its memory is registered in a userfaultfd of its own, and handed
//! over like a VMM's.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rekindle_engine::handover::Handover;
use rekindle_engine::image::Image;
use rekindle_kernel::{
    Backing, Features, GuestMemory, HugepageReservation, Memfd, PAGE_BYTES, PageKind, RegisterMode,
    Userfaultfd, fd_passing,
};

/// Kind of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Private,
    Shared,
    Huge,
    /// A private mapping of an image; see [`Guest::on_image`].
    Image,
}

/// Memory in two regions, the later one usually at the lower address.
pub(crate) struct Guest {
    regions: Vec<GuestMemory>,
    region_pages: usize,
    pub(crate) pages: usize,
    /// The stream that the VMM keeps open while it lives.
    pub(crate) stream: UnixStream,
    _huge_pages: Option<HugepageReservation>,
}

impl Guest {
    /// A guest of `pages` pages that has just connected; none, after printing the reason, if there cannot be one.
    pub(crate) fn start(
        test: &str,
        kind: Kind,
        pages: usize,
        features: Features,
    ) -> Option<(Self, Handover)> {
        let features = features | Features::EVENT_REMOVE | Features::THREAD_ID;
        let userfaultfd = match Userfaultfd::open(features) {
            Ok(userfaultfd) => userfaultfd,
            Err(error) => {
                skipped(test, &error);
                return None;
            }
        };
        let (page_kind, shift) = match kind {
            Kind::Private | Kind::Shared | Kind::Image => (PageKind::Small, PAGE_BYTES * 3),
            Kind::Huge => (PageKind::Huge, 0),
        };
        let bytes = pages * PAGE_BYTES;
        let reserved = (kind == Kind::Huge)
            .then(|| HugepageReservation::reserve(u64::try_from(bytes / page_kind.bytes()).unwrap()));
        let huge_pages = match reserved.transpose() {
            Ok(huge_pages) => huge_pages,
            Err(error) => {
                skipped(test, &error);
                return None;
            }
        };
        let memfd = match kind {
            Kind::Private | Kind::Image => None,
            Kind::Shared | Kind::Huge => {
                Some(Memfd::create("guest", u64::try_from(bytes).unwrap(), page_kind).unwrap())
            }
        };
        let backing = |at: usize| match &memfd {
            Some(memfd) => Backing::Shared(memfd, u64::try_from(at).unwrap()),
            None => Backing::Private(page_kind),
        };
        let mode = match features.contains(Features::WP_ASYNC) {
            true => RegisterMode::MissingAndWriteProtect,
            false => RegisterMode::Missing,
        };
        let mapped = [0, bytes / 2].map(|at| GuestMemory::map(backing(at), bytes / 2, shift));
        let regions = match mapped.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(regions) => regions,
            Err(error) => {
                skipped(test, &error);
                return None;
            }
        };
        let (stream, handover) = hand_over(&userfaultfd, &regions, mode, memfd.as_ref());
        Some((Self { regions, region_pages: pages / 2, pages, stream, _huge_pages: huge_pages }, handover))
    }

    /// A guest that maps an image privately and has just connected; none, after printing the reason, if there cannot be
    /// one.
    pub(crate) fn on_image(test: &str, image: &Arc<Image>) -> Option<(Self, Handover)> {
        let features = Features::EVENT_REMOVE | Features::MISSING_SHMEM | Features::MINOR_SHMEM;
        let userfaultfd = match Userfaultfd::open(features | Features::THREAD_ID) {
            Ok(userfaultfd) => userfaultfd,
            Err(error) => {
                skipped(test, &error);
                return None;
            }
        };
        let bytes = usize::try_from(image.memfd().bytes()).unwrap();
        let (pages, half) = (bytes / PAGE_BYTES, bytes / 2);
        let memfd = Memfd::adopt(image.memfd().reopen_to_read().unwrap()).unwrap();
        let regions = [0, half].map(|at| {
            let backing = Backing::PrivateOf(&memfd, u64::try_from(at).unwrap());
            GuestMemory::map(backing, half, PAGE_BYTES * 3).unwrap()
        });
        let mode = RegisterMode::MissingAndMinor;
        let (stream, handover) = hand_over(&userfaultfd, &regions, mode, None);
        let guest =
            Self { regions: regions.into(), region_pages: pages / 2, pages, stream, _huge_pages: None };
        Some((guest, Handover { image: Some(Arc::clone(image)), ..handover }))
    }

    /// The first word of a page.
    pub(crate) fn word(&self, page: usize) -> u64 {
        let (region, offset) = self.place(page);
        let mut word = [0; 8];
        region.read(offset, &mut word).unwrap();
        u64::from_le_bytes(word)
    }

    /// True if the whole page has the content of `word`.
    pub(crate) fn has(&self, page: usize, word: u64) -> bool {
        let (region, offset) = self.place(page);
        region.equals(offset, &content(word)).unwrap()
    }

    /// Writes the content of `word`.
    pub(crate) fn write(&self, page: usize, word: u64) {
        let (region, offset) = self.place(page);
        region.write(offset, &content(word));
    }

    /// Gives pages back, in one region.
    pub(crate) fn discard(&self, page: usize, pages: usize, kind: Kind) {
        let how = match kind {
            Kind::Private | Kind::Image => rekindle_kernel::Discard::DontNeed,
            Kind::Shared | Kind::Huge => rekindle_kernel::Discard::Remove,
        };
        let (region, offset) = self.place(page);
        region.discard(offset, pages * PAGE_BYTES, how).unwrap();
    }

    /// Touches the page by the cheapest fault.
    pub(crate) fn touch(&self, page: usize) {
        let (region, offset) = self.place(page);
        std::hint::black_box(region.touch(offset));
    }

    /// True if a page that is missing in the region of `page` still faults, rather than reads as zeroes.
    pub(crate) fn is_registered(&self, page: usize) -> bool {
        let (region, _) = self.place(page);
        let first = format!("{:x}-", region.range().start);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = maps
            .lines()
            .skip_while(|line| !line.starts_with(&first))
            .find_map(|line| line.strip_prefix("VmFlags:"))
            .expect("the region is mapped");
        // "um": a userfaultfd serves missing pages (proc(5)).
        flags.split_ascii_whitespace().any(|flag| flag == "um")
    }

    fn place(&self, page: usize) -> (&GuestMemory, usize) {
        (&self.regions[page / self.region_pages], page % self.region_pages * PAGE_BYTES)
    }
}

/// The page for `word`: zeroes for zero, otherwise bytes that do not compress and begin with it.
pub(crate) fn content(word: u64) -> Vec<u8> {
    let mut next = word;
    let words = (0..PAGE_BYTES / 8).map(|_| {
        let this = next;
        next = next.wrapping_mul(0xd134_2543_de82_ef95).rotate_left(29);
        this
    });
    words.flat_map(u64::to_le_bytes).collect()
}

/// Registers the regions, and hands them over with the file.
fn hand_over(
    userfaultfd: &Userfaultfd,
    regions: &[GuestMemory],
    mode: RegisterMode,
    memfd: Option<&Memfd>,
) -> (UnixStream, Handover) {
    for region in regions {
        userfaultfd.register(region.range(), mode).unwrap();
    }
    let half = regions[0].bytes();
    let message = message(regions, regions[0].page_kind(), half);
    let (stream, theirs) = UnixStream::pair().unwrap();
    let mut fds = vec![userfaultfd.as_fd()];
    fds.extend(memfd.map(AsFd::as_fd));
    fd_passing::send(&stream, message.as_bytes(), &fds).unwrap();
    let volume_pages = u32::try_from(regions.len() * half / PAGE_BYTES).unwrap();
    (stream, Handover::receive(theirs, volume_pages, Duration::from_secs(10)).unwrap())
}

fn message(regions: &[GuestMemory], kind: PageKind, half: usize) -> String {
    let regions: Vec<_> = regions
        .iter()
        .enumerate()
        .map(|(index, region)| {
            let range = region.range();
            format!(
                r#"{{"base_host_virt_addr": {}, "size": {}, "offset": {}, "page_size": {}}}"#,
                range.start,
                range.bytes,
                index * half,
                kind.bytes()
            )
        })
        .rev()
        .collect();
    format!("[{}]", regions.join(","))
}

/// Reports that `test` could not run and why, on standard error and in the file that `.ci/run` checks.
pub(crate) fn skipped(test: &str, why: &dyn std::fmt::Display) {
    let line = format!("skipped: engine: {test}: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("REKINDLE_SKIPS_FILE") {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}
