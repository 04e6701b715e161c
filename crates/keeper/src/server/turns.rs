//! The keeper's loop.

use std::cmp::Reverse;
use std::io;
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rekindle_kernel::SignalReader;
use rekindle_kernel::signals::Arrived;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::desk::{Desk, Next};
use super::link::{Arrival, Letter, Link};
use super::log;
use super::socket::Listening;
use crate::wire::CONNECTIONS_MAX;

/// Pause after letting a client in failed, as it does without a free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Time between two looks if the socket is still there: its removal is not announced.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Read at once from a client.
const READ_BYTES: usize = 64 << 10;

/// The keeper at work.
#[derive(Debug)]
pub(super) struct Keeper {
    listening: Listening,
    signals: SignalReader,
    links: Vec<Link>,
    /// Until when no client is let in.
    accept_at: Option<Instant>,
    /// When to look next whether the socket is there.
    look_at: Instant,
    /// The reported reason that it is not there.
    cannot_stay: Option<String>,
    watchdog: Option<Watchdog>,
    buffer: Vec<u8>,
    desk: Desk,
}

/// A service manager that wants to hear of a service now and then.
#[derive(Debug)]
struct Watchdog {
    every: Duration,
    at: Instant,
}

/// Sources that are readable.
struct Ready {
    signals: bool,
    listener: bool,
    links: Vec<bool>,
}

impl Keeper {
    pub(super) fn new(listening: Listening, signals: SignalReader, desk: Desk) -> Self {
        let every = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        Self {
            listening,
            signals,
            links: Vec::new(),
            accept_at: None,
            look_at: Instant::now() + LOOK_EVERY,
            cannot_stay: None,
            watchdog: every.map(|every| Watchdog { every, at: Instant::now() }),
            buffer: vec![0; READ_BYTES],
            desk,
        }
    }

    /// Works until it is told to end.
    pub(super) fn run(mut self) {
        while self.turn() == Next::GoOn {}
    }

    fn turn(&mut self) -> Next {
        let ready = self.wait();
        self.desk.note_ends();
        if ready.signals && self.take_signals() == Next::End {
            return Next::End;
        }
        for at in (0..ready.links.len()).rev().filter(|at| ready.links[*at]) {
            let mut link = self.links.swap_remove(at);
            match serve(&mut link, &mut self.desk, &mut self.buffer) {
                Ok(Next::GoOn) => self.links.push(link),
                Ok(Next::End) => return Next::End,
                Err(Closed) => {}
            }
        }
        let now = Instant::now();
        self.links.retain(|link| link.time_left(now) != Some(Duration::ZERO));
        if ready.listener {
            self.accept(now);
        }
        self.stay(now);
        Next::GoOn
    }

    /// Waits until there is something to do.
    fn wait(&mut self) -> Ready {
        let now = Instant::now();
        let paused = self.accept_at.filter(|at| *at > now);
        let watchdog = self.watchdog.as_mut().map(|watchdog| watchdog.tell(now));
        let pause = paused.map(|at| at.saturating_duration_since(now));
        let look = self.look_at.saturating_duration_since(now);
        let limits = self.links.iter().filter_map(|link| link.time_left(now)).chain([look]);
        let limit =
            limits.chain(watchdog).chain(pause).min().and_then(|limit| Timespec::try_from(limit).ok());
        let wanted = if paused.is_none() { PollFlags::IN } else { PollFlags::empty() };
        let ends = self.desk.ends();
        let mut polled =
            vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.listening.listener, wanted)];
        polled.extend(self.links.iter().map(|link| PollFd::from_borrowed_fd(link.as_fd(), PollFlags::IN)));
        // Only to wake up: ends are noted at every turn.
        polled.push(PollFd::new(&ends, PollFlags::IN));
        // A poll that fails, as for want of memory, has nothing ready: it is tried again.
        let answered = rustix::event::poll(&mut polled, limit.as_ref()).is_ok();
        let mut ready = polled.iter().map(|fd| answered && !fd.revents().is_empty());
        let (signals, listener) = (ready.next().unwrap_or(false), ready.next().unwrap_or(false));
        Ready {
            signals,
            listener: listener && paused.is_none(),
            links: ready.take(self.links.len()).collect(),
        }
    }

    fn take_signals(&self) -> Next {
        let mut told_to_end = false;
        while let Ok(Some(signal)) = self.signals.next() {
            told_to_end |= signal == Arrived::End;
        }
        match self.desk.may_end() {
            Ok(()) if told_to_end => Next::End,
            Err(why) if told_to_end => {
                log(format_args!("told to end, but stays: {why}"));
                Next::GoOn
            }
            Ok(()) | Err(_) => Next::GoOn,
        }
    }

    /// Lets one client in; where there are too many, another one makes room, and connects again when it has something to
    /// say.
    fn accept(&mut self, now: Instant) {
        match self.listening.accept() {
            Ok((stream, peer)) => {
                if self.links.len() >= CONNECTIONS_MAX {
                    self.make_room();
                }
                self.links.push(Link::new(stream, peer));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                log(format_args!("a client was not let in: {error}"));
                self.accept_at = Some(now + ACCEPT_PAUSE);
            }
        }
    }

    /// Closes a connection of the process that has most of them: of those the one that is worth least. So a process
    /// that connects again and again, and sends no whole request, takes room from itself alone.
    fn make_room(&mut self) {
        let of_peer = |peer: u32| self.links.iter().filter(|link| link.peer() == peer).count();
        let least = (0..self.links.len()).min_by_key(|at| {
            let link = &self.links[*at];
            (Reverse(of_peer(link.peer())), link.worth())
        });
        if let Some(at) = least {
            drop(self.links.swap_remove(at));
        }
    }

    /// Listens again where the socket was removed.
    fn stay(&mut self, now: Instant) {
        if self.look_at > now {
            return;
        }
        self.look_at = now + LOOK_EVERY;
        match self.listening.stay() {
            Ok(true) => log(format_args!("the socket was removed; listening again")),
            Ok(false) => self.cannot_stay = None,
            Err(error) => {
                let error = format!("{error:#}");
                if self.cannot_stay.as_ref() != Some(&error) {
                    log(format_args!("the socket was removed, and cannot be made again: {error}"));
                    self.cannot_stay = Some(error);
                }
            }
        }
    }
}

impl Watchdog {
    /// Tells the service manager if it is time; returns the time until the next one.
    fn tell(&mut self, now: Instant) -> Duration {
        if self.at <= now {
            sd_notify::notify(&[sd_notify::NotifyState::Watchdog]).ok();
            self.at = now + self.every;
        }
        self.at.saturating_duration_since(now)
    }
}

/// A connection that is at its end.
struct Closed;

/// Takes what the client sent, and does and answers what it asks once that is whole.
fn serve(link: &mut Link, desk: &mut Desk, buffer: &mut [u8]) -> Result<Next, Closed> {
    let (line, fds) = match link.receive(buffer) {
        Arrival::Part => return Ok(Next::GoOn),
        Arrival::Gone => return Err(Closed),
        Arrival::Whole(line, fds) => (line, fds),
        Arrival::Wrong(refusal) => {
            link.send(&Letter::refused(refusal)).ok();
            return Err(Closed);
        }
    };
    // A mistake in here is to cost a client its connection, not everyone what is held.
    let done = catch_unwind(AssertUnwindSafe(|| {
        let answered = desk.answer(&line, fds);
        let (letter, next) = answered.unwrap_or_else(|refusal| (Letter::refused(refusal), Next::GoOn));
        link.send(&letter).map(|()| next)
    }));
    match done {
        Ok(Ok(next)) => Ok(next),
        Ok(Err(error)) => {
            log(format_args!("a client did not take its answer: {error}"));
            Err(Closed)
        }
        Err(_) => {
            log(format_args!("a request met a mistake of the keeper's"));
            Err(Closed)
        }
    }
}
