//! One connection to a disk: requests are read, carried out and answered by one thread, but for those that need pages
//! which are not in memory: a second thread answers them when the pages are there.

use std::io::{self, Write as _};
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rekindle_engine::geometry::u64_of;

use super::cold::{Cold, ColdRequest};
use super::content::{ColdSource, Obstacle, ReadReach};
use super::gate::Passage;
use super::inbox::Inbox;
use super::limits;
use super::nbd::handshake::shake_hands;
use super::nbd::options::Export;
use super::nbd::outbox::{Outbox, Position};
use super::nbd::request::{Chunks, Command, Kind, Request, Room};
use super::nbd::{Agreement, NbdError};
use super::served::ServedDisk;

/// A connection after its handshake.
struct Session<'a> {
    disk: &'a ServedDisk,
    stream: &'a UnixStream,
    agreement: Agreement,
    /// Its holder sends whole answers. It is the order of bytes on the connection, so it is held while they are sent.
    sending: Mutex<()>,
}

/// Outcome of a request.
enum Outcome {
    /// Its answer is in the outbox.
    Answered,
    /// It changed nothing, and needs these frames first.
    Cold(Vec<ColdSource>),
    /// The disk has ended.
    Ended,
}

/// Reason that a request is not carried out.
enum Stop {
    Refused(NbdError),
    Obstacle(Obstacle),
    Ended,
}

impl From<Obstacle> for Stop {
    fn from(obstacle: Obstacle) -> Self {
        Self::Obstacle(obstacle)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Obstacle(Obstacle::Failed(error))
    }
}

/// Bytes to write for zeroes that must take room.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// Serves one client until it goes, sends what is no request, or the disk ends.
pub(super) fn serve(disk: &ServedDisk, stream: &UnixStream, cold: &Arc<Cold>) -> io::Result<()> {
    let export = Export { bytes: disk.content.bytes(), access: disk.access };
    let Some(agreement) = shake_hands(stream, export)? else { return Ok(()) };
    let session = Session { disk, stream, agreement, sending: Mutex::default() };
    std::thread::scope(|scope| {
        let of_cold = std::thread::Builder::new().name("disk-cold".into());
        of_cold.spawn_scoped(scope, || session.answer_cold(cold))?;
        let served = session.answer_all(cold);
        // Ends a send of the other thread that is not received any more.
        stream.shutdown(Shutdown::Both).ok();
        cold.end();
        served
    })
}

impl Session<'_> {
    fn answer_all(&self, cold: &Arc<Cold>) -> io::Result<()> {
        let (mut inbox, mut outbox) = (Inbox::new(), Outbox::default());
        while let Some(request) = inbox.request(self.stream)? {
            if request.kind == Kind::Disconnect {
                return self.send(&mut outbox);
            }
            let data_bytes = usize::try_from(request.data_bytes()).expect("64 bits");
            let data = if request.data_bytes() <= limits::REQUEST_BYTES_MAX {
                inbox.data(self.stream, data_bytes)?
            } else {
                inbox.skip(self.stream, data_bytes)?;
                &[]
            };
            match self.attempt(&request, data, ReadReach::Memory, &mut outbox) {
                Outcome::Answered => {}
                Outcome::Cold(sources) => {
                    self.disk.counters.cold_requests.fetch_add(1, Ordering::Relaxed);
                    let waiting = ColdRequest { request, data: data.to_vec() };
                    // Answers must not wait for room behind requests that are not answered yet.
                    self.send(&mut outbox)?;
                    if !cold.put(waiting, sources, &self.disk.fetcher) {
                        return Ok(());
                    }
                }
                Outcome::Ended => return Ok(()),
            }
            if !inbox.has_request() || outbox.bytes().len() >= limits::ANSWER_BYTES {
                self.send(&mut outbox)?;
            }
            inbox.shrink();
        }
        Ok(())
    }

    /// Answers requests whose pages had to be fetched.
    fn answer_cold(&self, cold: &Arc<Cold>) {
        let mut outbox = Outbox::default();
        while let Some(waiting) = cold.take() {
            for waiting in waiting {
                match self.attempt(&waiting.request, &waiting.data, ReadReach::LocalDisk, &mut outbox) {
                    Outcome::Answered => {
                        cold.answered(&waiting);
                        if let Err(error) = self.send(&mut outbox) {
                            tracing::debug!(%error, "a client of a disk does not take its answer");
                            return;
                        }
                    }
                    Outcome::Cold(sources) => cold.put_back(waiting, sources, &self.disk.fetcher),
                    Outcome::Ended => return,
                }
            }
        }
    }

    /// Carries a request out, if that needs nothing that is not in memory.
    fn attempt(&self, request: &Request, data: &[u8], reach: ReadReach, outbox: &mut Outbox) -> Outcome {
        let place = outbox.place();
        let command = request.command(self.disk.content.bytes(), self.disk.access, self.agreement);
        let done = command
            .map_err(Stop::Refused)
            .and_then(|command| self.carry_out(request.cookie, command, data, reach, outbox));
        let refused = match done {
            Ok(()) => None,
            Err(Stop::Refused(error)) => Some(error),
            Err(Stop::Ended) => return Outcome::Ended,
            Err(Stop::Obstacle(Obstacle::Cold(sources))) => {
                outbox.return_to(place);
                return Outcome::Cold(sources);
            }
            Err(Stop::Obstacle(Obstacle::Failed(error))) => {
                let disk = self.disk.socket.display();
                tracing::warn!(%disk, %request, %error, "a request to a disk failed");
                Some(NbdError::from(&error))
            }
        };
        if let Some(error) = refused {
            outbox.return_to(place);
            self.refuse(request, error, outbox);
            self.disk.counters.failed_requests.fetch_add(1, Ordering::Relaxed);
        }
        self.disk.counters.requests.fetch_add(1, Ordering::Relaxed);
        Outcome::Answered
    }

    fn carry_out(
        &self,
        cookie: u64,
        command: Command,
        data: &[u8],
        reach: ReadReach,
        outbox: &mut Outbox,
    ) -> Result<(), Stop> {
        let (content, counters) = (&self.disk.content, &self.disk.counters);
        match command {
            Command::Read { range, chunks } => {
                let _passage = self.pass()?;
                self.read(cookie, &range, chunks, reach, outbox)?;
                count(&counters.bytes_read, &range);
                return Ok(());
            }
            Command::Status { range, extents_max } => {
                let _passage = self.pass()?;
                outbox.status_chunk(cookie, &content.extents(&range, extents_max));
                return Ok(());
            }
            Command::Write { range } => {
                let _passage = self.pass()?;
                let edges = content.edges(&range, reach)?;
                content.write(range.start, data, &edges)?;
                count(&counters.bytes_written, &range);
            }
            Command::Flush => drop(self.pass()?),
            Command::Discard { range } => {
                let _passage = self.pass()?;
                content.discard(&content.through_last_page(range.clone()))?;
                count(&counters.bytes_zeroed, &range);
            }
            Command::Zero { range, room } => {
                self.zero(content.through_last_page(range.clone()), room, reach)?;
                count(&counters.bytes_zeroed, &range);
            }
        }
        outbox.simple(cookie, None);
        Ok(())
    }

    fn read(
        &self,
        cookie: u64,
        range: &Range<u64>,
        chunks: Chunks,
        reach: ReadReach,
        outbox: &mut Outbox,
    ) -> Result<(), Stop> {
        let content = &self.disk.content;
        let bytes = size(range);
        if !self.agreement.structured {
            outbox.simple(cookie, None);
            return Ok(content.read(range.start, outbox.data(bytes), reach)?);
        }
        if bytes == 0 {
            outbox.empty_chunk(cookie);
            return Ok(());
        }
        let extents = match chunks {
            Chunks::One => Vec::new(),
            Chunks::Any => content.extents(range, limits::EXTENTS_MAX),
        };
        let mut start = range.start;
        for extent in extents {
            let end = start + extent.bytes;
            let position = if end == range.end { Position::Last } else { Position::NotLast };
            if extent.is_zero {
                outbox.hole_chunk(cookie, position, start, length(&(start..end)));
            } else {
                outbox.data_chunk(cookie, position, start, length(&(start..end)));
                content.read(start, outbox.data(size(&(start..end))), reach)?;
            }
            start = end;
        }
        if start < range.end {
            // One chunk was asked for, or the rest has too many stretches to be listed one by one.
            outbox.data_chunk(cookie, Position::Last, start, length(&(start..range.end)));
            content.read(start, outbox.data(size(&(start..range.end))), reach)?;
        }
        Ok(())
    }

    /// Makes a range zero, in turns between which the disk may freeze.
    fn zero(&self, range: Range<u64>, room: Room, reach: ReadReach) -> Result<(), Stop> {
        let content = &self.disk.content;
        {
            let _passage = self.pass()?;
            content.edges(&range, reach)?;
        }
        let step = match room {
            Room::GivenBack => limits::ZEROED_AT_ONCE_BYTES,
            Room::Kept => u64_of(ZEROES.len()),
        };
        let mut start = range.start;
        while start < range.end {
            let end = ((start / step + 1) * step).min(range.end);
            let _passage = self.pass()?;
            // The disk may have another base than a turn ago.
            let edges = content.edges(&(start..end), reach)?;
            match room {
                Room::GivenBack => content.zero(&(start..end), &edges)?,
                Room::Kept => content.write(start, &ZEROES[..size(&(start..end))], &edges)?,
            }
            start = end;
        }
        Ok(())
    }

    fn refuse(&self, request: &Request, error: NbdError, outbox: &mut Outbox) {
        match request.kind {
            Kind::Read | Kind::BlockStatus if self.agreement.structured => {
                outbox.error_chunk(request.cookie, error);
            }
            Kind::Read
            | Kind::Write
            | Kind::Disconnect
            | Kind::Flush
            | Kind::Trim
            | Kind::WriteZeroes
            | Kind::BlockStatus
            | Kind::Unknown => outbox.simple(request.cookie, Some(error)),
        }
    }

    fn pass(&self) -> Result<Passage<'_>, Stop> {
        self.disk.gate.pass().ok_or(Stop::Ended)
    }

    fn send(&self, outbox: &mut Outbox) -> io::Result<()> {
        if !outbox.bytes().is_empty() {
            let _order = self.sending.lock().expect("no thread panics while it sends");
            let mut stream = self.stream;
            stream.write_all(outbox.bytes())?;
        }
        outbox.clear();
        Ok(())
    }
}

fn count(counter: &AtomicU64, range: &Range<u64>) {
    counter.fetch_add(range.end - range.start, Ordering::Relaxed);
}

/// The length of a range within one request.
fn length(range: &Range<u64>) -> u32 {
    u32::try_from(range.end - range.start).expect("a request has 32 bits of length")
}

fn size(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).expect("addresses have 64 bits")
}
