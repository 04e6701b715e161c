//! A guest with three threads: a fault server answers its faults, and each thread checks the pages it owns.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rekindle_engine::capture::CapturedPages;
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::handover::Handover;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::regions::{Region, Regions};
use rekindle_engine::run_roots::RunsFrom;
use rekindle_engine::serve::{Epoch, FaultServer, Neighbours, Placement, ServeOptions, ServeStatus};
use rekindle_engine::tracking::Tracking;
use rekindle_kernel::{
    Backing, Discard, Features, GuestMemory, Memfd, PAGE_BYTES, PageKind, RegisterMode, Userfaultfd,
};
use rekindle_vmm::copied_memory::{copy_pages, copy_volume};

use super::History;
use super::known::Known;
use super::machine::{commit, volume_name};
use crate::guest::{self, Guest};
use crate::model::ModelMemory;
use crate::random::Random;
use crate::site::PATIENCE;

const THREADS: u32 = 3;
/// Steps of one thread in one operation.
const STEPS: u32 = 60;
/// Time between two checks for a stalled guest.
const LOOK_AFTER: Duration = Duration::from_millis(5);

/// A running guest with its fault server.
struct Served {
    memory: Arc<GuestMemory>,
    file: File,
    server: FaultServer,
    /// Until the guest is paused.
    runs_from: RunsFrom,
    /// The stream that a VMM keeps open while it lives.
    _stream: UnixStream,
}

/// The file of the guest's memory.
enum File {
    /// Its own.
    Own(Memfd),
    /// One that the guests of its snapshot share; what it writes is its own.
    Image,
}

/// A thread of the guest, which owns every third page.
struct Thread {
    number: u32,
    random: Random,
    expected: ModelMemory,
}

/// Result of a thread: its number, and its own pages as it left them.
type Found = Result<(u32, ModelMemory), String>;

impl History {
    /// Three threads read, write and give back pages of a resumed guest, which is then paused. They may begin while the
    /// store is away or wrong; it is right again when they wait for it.
    pub(super) fn three_threads_run(&mut self) -> Result<(), String> {
        if self.snapshots.is_empty() {
            return self.pause();
        }
        let position = self.random.position(self.snapshots.len());
        let trackings = [Tracking::Scan, Tracking::Events, Tracking::Resident, Tracking::Diverged];
        let tracking = trackings[self.random.position(4)];
        let ahead = self.random.percent(20);
        self.say(format_args!("three threads run from snapshot {position}, {tracking:?}, ahead: {ahead}"));
        let Some(served) = self.served(position, tracking)? else { return Ok(()) };
        if self.outage.is_empty() && self.random.percent(30) {
            self.say("... and the store goes until they wait for it");
            self.outage = self.site.faults.outage();
        }
        if ahead {
            served.server.prefetch(PageSet::full(self.shape[0]));
        }
        let (mut served, mut position) = (served, position);
        loop {
            let told = self.start_threads(&served, position);
            let memory = self.wait_for_threads(&served, &told)?;
            self.tally.pages += u64::from(THREADS * STEPS);
            self.tally.served += 1;
            if matches!(served.file, File::Image) && self.random.percent(30) {
                served = self.server_is_killed(served, position)?;
            }
            if !self.random.percent(40) {
                return self.pause_served(served, position, memory);
            }
            let Some(next) = self.checkpoint_served(served, position, memory)? else { return Ok(()) };
            (served, position) = next;
        }
    }

    /// A guest that runs from a snapshot's memory; none if this system offers no userfaultfd.
    fn served(&self, position: usize, tracking: Tracking) -> Result<Option<Served>, String> {
        let features = Features::EVENT_REMOVE
            | match tracking {
                Tracking::Scan => Features::WP_ASYNC | Features::WP_HUGETLBFS_SHMEM,
                Tracking::Events => Features::PAGEFAULT_FLAG_WP | Features::WP_HUGETLBFS_SHMEM,
                Tracking::Resident => Features::NONE,
                Tracking::Diverged => Features::MISSING_SHMEM | Features::MINOR_SHMEM,
            };
        let Ok(userfaultfd) = Userfaultfd::open(features) else { return Ok(None) };
        let said = |error: std::io::Error| error.to_string();
        let pages = self.shape[0];
        let bytes = usize::try_from(GuestPages::new(GuestPage::FIRST, pages).bytes()).expect("64 bits");
        let snapshot = &self.snapshots[position].snapshot;
        let shares = tracking == Tracking::Diverged;
        let image = shares.then(|| self.engine().image(snapshot)).transpose().map_err(said)?;
        let memfd = match &image {
            Some(image) => image.memfd().try_clone(),
            None => Memfd::create("guest", u64::try_from(bytes).expect("64 bits"), PageKind::Small),
        };
        let memfd = memfd.map_err(said)?;
        let (backing, mode) = match shares {
            true => (Backing::PrivateOf(&memfd, 0), RegisterMode::MissingAndMinor),
            false => (Backing::Shared(&memfd, 0), RegisterMode::Missing),
        };
        let memory = GuestMemory::map(backing, bytes, 0).map_err(said)?;
        userfaultfd.register(memory.range(), mode).map_err(said)?;
        let (start, bytes) = (memory.range().start, memory.range().bytes);
        let region = Region { start, bytes, offset: 0, page: PageKind::Small };
        let regions = Regions::new(vec![region], pages).map_err(|error| error.to_string())?;
        let (stream, theirs) = UnixStream::pair().map_err(said)?;
        let own = (!shares).then(|| memfd.try_clone()).transpose().map_err(said)?;
        let file = if shares { File::Image } else { File::Own(memfd) };
        let pid = std::process::id();
        let handover = Handover { regions, userfaultfd, memfd: own, image, pid, stream: theirs };
        let (view, runs_from) = (Arc::clone(snapshot.memory()), self.engine().runs_from(snapshot));
        let fetcher = self.engine().fetcher().clone();
        let server = FaultServer::start(view, handover, fetcher, options(tracking));
        let server = server.map_err(said)?;
        Ok(Some(Served { memory: Arc::new(memory), file, server, runs_from, _stream: stream }))
    }

    /// Ends the server of a guest that shares pages, and goes on by what a keeper has of it.
    fn server_is_killed(&mut self, served: Served, position: usize) -> Result<Served, String> {
        self.say("... and its server is killed");
        let Served { memory, file, server, runs_from, _stream } = served;
        let mut kept = server.kept().try_clone().map_err(|error| error.to_string())?;
        drop(server);
        let (image, of) = (kept.image.take(), kept.facts.image);
        let mut epoch = Epoch::recover(kept).map_err(|error| error.to_string())?;
        let snapshot = &self.snapshots[position].snapshot;
        if let Some(image) = image.filter(|_| of == Some(snapshot.id().uuid())) {
            epoch.share(self.engine().adopt_image(snapshot, image).map_err(|error| error.to_string())?);
        }
        let (options, fetcher) = (options(epoch.tracking()), self.engine().fetcher().clone());
        let server = FaultServer::resume(Arc::clone(snapshot.memory()), epoch, fetcher, options);
        let server = server.map_err(|error| error.to_string())?;
        Ok(Served { memory, file, server, runs_from, _stream })
    }

    /// Not scoped threads: a scope would wait for a thread that hangs.
    fn start_threads(&mut self, served: &Served, position: usize) -> Receiver<Found> {
        let (tell, told) = channel();
        for number in 0..THREADS {
            let expected = self.snapshots[position].contents[0].clone();
            let mut thread = Thread { number, random: Random::new(self.random.number()), expected };
            let (memory, tell) = (Arc::clone(&served.memory), tell.clone());
            let how = match served.file {
                File::Own(_) => Discard::Remove,
                File::Image => Discard::DontNeed,
            };
            drop(std::thread::spawn(move || {
                let found = thread.run(&memory, how).map(|()| (thread.number, thread.expected));
                drop(memory);
                tell.send(found).ok();
            }));
        }
        told
    }

    /// Waits for the threads; the memory's content that they left.
    fn wait_for_threads(&mut self, served: &Served, told: &Receiver<Found>) -> Result<ModelMemory, String> {
        let begun = Instant::now();
        let mut found = Vec::new();
        let gives_back = matches!(served.file, File::Image) && self.random.percent(50);
        while found.len() < usize::try_from(THREADS).expect("64 bits") {
            if gives_back {
                self.engine().give_images_back();
            }
            match told.recv_timeout(LOOK_AFTER) {
                Ok(thread) => found.push(thread?),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("a guest's thread panicked".into()),
            }
            let status = served.server.status();
            if matches!(status, ServeStatus::Stalled { .. }) {
                self.outage.clear();
                self.mend_store();
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("a guest's thread hangs: {status:?}"));
            }
        }
        let (_, mut memory) = found[0].clone();
        for (number, of_thread) in &found {
            let own = (0..memory.pages()).filter(|page| page % THREADS == *number).map(GuestPage::new);
            own.for_each(|page| memory.write(page, 0, of_thread.page(page)));
        }
        Ok(memory)
    }

    /// Takes a snapshot of the guest, which goes on from it; none if that was refused, and the guest was killed.
    fn checkpoint_served(
        &mut self,
        served: Served,
        position: usize,
        memory: ModelMemory,
    ) -> Result<Option<(Served, usize)>, String> {
        let said = |error: std::io::Error| error.to_string();
        self.say("... and it is checkpointed");
        let Served { memory: mapped, file, server, runs_from: _before, _stream } = served;
        let mut epoch = server.end_epoch();
        let pages = epoch.changed_pages().map_err(said)?;
        let (kept, bytes) = (pages.kept.clone(), file.captured(&epoch, &pages).map_err(said)?);
        let (volumes, contents) = self.volumes_of_served(position, memory, (bytes, pages));
        let volumes = volumes.into_iter().map(copy_volume).collect::<Result<_, _>>().map_err(said)?;
        let snapshot = match commit(self.engine(), Some(&self.snapshots[position].snapshot), volumes) {
            Ok(snapshot) => snapshot,
            Err(why) => {
                self.say(format_args!("... which is refused, and it is killed: {why}"));
                return Ok(None);
            }
        };
        epoch.begin_anew(&kept).map_err(said)?;
        let (options, fetcher) = (options(epoch.tracking()), self.engine().fetcher().clone());
        let server = FaultServer::resume(Arc::clone(snapshot.memory()), epoch, fetcher, options);
        let server = server.map_err(|error| error.to_string())?;
        let runs_from = self.engine().runs_from(&snapshot);
        self.tally.checkpoints += 1;
        self.remember(Known { snapshot, contents })?;
        Ok(Some((Served { memory: mapped, file, server, runs_from, _stream }, self.snapshots.len() - 1)))
    }

    /// Pauses the guest; its other volumes are unchanged.
    fn pause_served(&mut self, served: Served, position: usize, memory: ModelMemory) -> Result<(), String> {
        let Served { memory: mapped, file, server, runs_from, _stream } = served;
        let epoch = server.end_epoch();
        let pages = epoch.changed_pages().map_err(|error| error.to_string())?;
        let bytes = file.captured(&epoch, &pages).map_err(|error| error.to_string())?;
        drop((mapped, epoch, file));
        let (volumes, contents) = self.volumes_of_served(position, memory, (bytes, pages));
        let paused = commit(self.engine(), Some(&self.snapshots[position].snapshot), volumes);
        drop(runs_from);
        match paused {
            Ok(snapshot) => {
                self.tally.pauses += 1;
                self.remember(Known { snapshot, contents })
            }
            Err(why) => {
                self.say(format_args!("... its pause was refused, and it is killed: {why}"));
                Ok(())
            }
        }
    }

    /// The volumes of the guest, and their content: its memory, and disks that are unchanged.
    fn volumes_of_served(
        &self,
        position: usize,
        memory: ModelMemory,
        (memfd, pages): (Memfd, CapturedPages),
    ) -> (Vec<PausedVolume>, Vec<ModelMemory>) {
        let Known { snapshot, contents } = &self.snapshots[position];
        let mut contents = contents.clone();
        contents[0] = memory;
        let name = volume_name(0);
        let mut volumes = vec![PausedVolume { name, page_kind: PageKind::Small, memfd, pages }];
        for (disk, content) in contents.iter().enumerate().skip(1) {
            let unchanged = Guest::resume_volume(snapshot, disk, content.clone());
            volumes.push(unchanged.paused_volume(volume_name(disk), guest::Tracking::Exact));
        }
        (volumes, contents)
    }
}

impl File {
    /// The bytes of the guest's changed pages, which stands still: the file itself, or a copy.
    fn captured(&self, epoch: &Epoch, pages: &CapturedPages) -> std::io::Result<Memfd> {
        match self {
            Self::Own(memfd) => memfd.try_clone(),
            Self::Image => copy_pages(epoch.pid(), epoch.regions(), &pages.kept),
        }
    }
}

fn options(tracking: Tracking) -> ServeOptions {
    ServeOptions { tracking, placement: Placement::Anywhere, neighbours: Neighbours::Adaptive }
}

impl Thread {
    fn run(&mut self, memory: &GuestMemory, how: Discard) -> Result<(), String> {
        let own = (self.expected.pages() + THREADS - 1 - self.number) / THREADS;
        for _ in 0..STEPS.min(own * 4) {
            let page = GuestPage::new(self.random.below(own) * THREADS + self.number);
            let mut bytes = vec![0; PAGE_BYTES];
            match self.random.below(10) {
                0..6 => {
                    memory.read(page.offset(), &mut bytes).map_err(|error| error.to_string())?;
                    let run = GuestPages::new(page, 1);
                    self.expected.check(run, &bytes).map_err(|wrong| format!("in a thread: {wrong}"))?;
                }
                6..9 => {
                    self.random.fill(&mut bytes);
                    memory.write(page.offset(), &bytes);
                    self.expected.write(page, 0, &bytes);
                }
                _ => {
                    let given_back = memory.discard(page.offset(), PAGE_BYTES, how);
                    given_back.map_err(|error| error.to_string())?;
                    self.expected.remove(GuestPages::new(page, 1));
                }
            }
        }
        Ok(())
    }
}
