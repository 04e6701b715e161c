//! The numbers of a trace, and their goals.

use std::time::Duration;

use rekindle_testkit::timed_store::{Network, TimedRead};
use serde::Serialize;

use super::pauses::Stored;
use super::resume::Resumed;

/// The numbers of one resume.
#[derive(Debug, Serialize)]
pub(crate) struct Numbers {
    /// Reads of layers and of bytes packed beside them.
    pub(crate) requests: usize,
    /// Bytes that these brought.
    pub(crate) fetched_mib: f64,
    /// Their time by the simulator's model, in which all streams are always busy.
    pub(crate) modelled_ms: f64,
    /// Time from the first of them to the last page.
    pub(crate) makespan_ms: f64,
    /// Requests one after the other until the first page.
    pub(crate) depth: usize,
    /// Lists and reads of manifests and recordings.
    pub(crate) opening_requests: usize,
    /// Time from asking for the resume to the first page.
    pub(crate) first_page_ms: f64,
    /// Time from asking for the resume to the last page.
    pub(crate) last_page_ms: f64,
}

/// A number with its goal.
pub(crate) struct Judged {
    pub(crate) name: &'static str,
    pub(crate) found: f64,
    pub(crate) goal: f64,
}

impl Judged {
    /// True if the number is at its goal or below.
    pub(crate) fn is_met(&self) -> bool {
        self.found <= self.goal
    }
}

/// Everything a trace found.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    /// Objects of layers, without the first snapshot's.
    pub(crate) stored_mib: f64,
    /// All other objects, without the first snapshot's and the working set.
    pub(crate) stored_beside_mib: f64,
    /// The working set of the last snapshot, with its pages.
    pub(crate) packed_mib: f64,
    /// A resume that knows its pages and has no recording.
    pub(crate) without_working_set: Numbers,
    /// A resume with the recording of an earlier one.
    pub(crate) with_working_set: Numbers,
}

impl Found {
    pub(crate) fn new(stored: &Stored, without: Numbers, with: Numbers) -> Self {
        Self {
            stored_mib: mib(stored.layers_bytes),
            stored_beside_mib: mib(stored.other_bytes),
            packed_mib: mib(stored.packed_bytes),
            without_working_set: without,
            with_working_set: with,
        }
    }

    /// The numbers that have goals: of the store and the resume without a recording, then of the one with it.
    pub(crate) fn judged(&self) -> [Vec<Judged>; 2] {
        let judged = |name, found, goal| Judged { name, found, goal };
        let (without, with) = (&self.without_working_set, &self.with_working_set);
        [
            vec![
                judged("stored_mib", self.stored_mib, 166.0),
                judged("requests", count(without.requests), 40.0),
                judged("modelled_ms", without.modelled_ms, 155.0),
                judged("makespan_ms", without.makespan_ms, 180.0),
                judged("fetched_mib", without.fetched_mib, 265.0),
            ],
            vec![
                judged("requests", count(with.requests), 16.0),
                judged("modelled_ms", with.modelled_ms, 75.0),
                judged("depth", count(with.depth), 2.0),
            ],
        ]
    }
}

impl Numbers {
    pub(crate) fn new(network: Network, resumed: &Resumed) -> Self {
        let (data, opening): (Vec<&TimedRead>, Vec<&TimedRead>) =
            resumed.reads.iter().partition(|read| is_of_pages(read));
        let bytes = data.iter().map(|read| bytes_of(read)).sum();
        let began = data.iter().map(|read| read.asked).min().unwrap_or(resumed.last_page);
        Self {
            requests: data.len(),
            fetched_mib: mib(bytes),
            modelled_ms: modelled(network, data.len(), bytes),
            makespan_ms: ms(resumed.last_page.saturating_sub(began)),
            depth: depth(&resumed.reads, resumed.first_page),
            opening_requests: opening.len(),
            first_page_ms: ms(resumed.first_page),
            last_page_ms: ms(resumed.last_page),
        }
    }
}

/// True for a read of the bytes of pages, and of what says where they are.
fn is_of_pages(read: &TimedRead) -> bool {
    !read.is_list && ["layers/", "working-sets/"].iter().any(|place| read.path.starts_with(place))
}

fn bytes_of(read: &TimedRead) -> u64 {
    read.range.end - read.range.start
}

/// The simulator's cost of requests: their time on one stream, divided by the streams.
fn modelled(network: Network, requests: usize, bytes: u64) -> f64 {
    let seconds =
        count(requests) * network.first_byte.as_secs_f64() + mib(bytes) / mib(network.bytes_a_second);
    1000.0 * seconds / count(network.streams)
}

/// Requests one after the other until `end`, also those under way then: each waits for those that were answered when it
/// was asked.
fn depth(reads: &[TimedRead], end: Duration) -> usize {
    let mut depths: Vec<(Duration, usize)> = Vec::with_capacity(reads.len());
    for read in reads.iter().filter(|read| read.asked < end) {
        let before = depths.iter().filter(|(answered, _)| *answered <= read.asked);
        depths.push((read.answered, 1 + before.map(|(_, depth)| *depth).max().unwrap_or(0)));
    }
    depths.into_iter().map(|(_, depth)| depth).max().unwrap_or(0)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

pub(crate) fn mib(bytes: u64) -> f64 {
    let whole = u32::try_from(bytes >> 10).expect("a trace moves less than 4 TiB");
    f64::from(whole) / 1024.0
}

pub(crate) fn count(of: usize) -> f64 {
    f64::from(u32::try_from(of).expect("a trace has few requests"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_a_row_are_counted_by_what_was_answered_when_each_was_asked() {
        let at = Duration::from_millis;
        let read = |asked, answered| TimedRead {
            path: String::new(),
            is_list: false,
            range: 0..0,
            asked: at(asked),
            answered: at(answered),
        };
        // Two at once, then one that waited for the faster of them.
        let reads = [read(0, 25), read(0, 30), read(25, 50), read(50, 75)];
        assert_eq!(depth(&reads, at(50)), 2);
        assert_eq!(depth(&reads, at(75)), 3);
    }
}
