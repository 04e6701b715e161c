//! The messages between nodes, and their encodings.
//!
//! | path | request | answer |
//! | --- | --- | --- |
//! | `/rekindle-peer/1/describe` | snapshot id | [`Described`](rekindle_engine::peer::Described) |
//! | `/rekindle-peer/1/published` | snapshot id | a byte: 1 once it is in the store, 0 after a while |
//! | `/rekindle-peer/1/pages` | class, snapshot id, volume, runs | the request again, the number of pages, a bit for each, those that are not zero |
//! | `/rekindle-peer/1/layers` | ids of layers | the engine's id, the bytes of each layer that it has |
//! | `/rekindle-peer/1/frames` | class, layer, its pages, frames | the request again, a bit for each frame, those that it has |
//! | `/rekindle-peer/1/take` | [`Taking`](crate::Taking) | [`Taken`](crate::Taken) |
//!
//! Each answer names the version in the field `rekindle-peer-version`. An error is a text.

use rekindle_engine::geometry::{GuestPage, GuestPages, PAGE_BYTES, usize_of};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::peer::WantedPages;
use rekindle_engine::sources::Class;
use rekindle_engine::wire::{Reader, WireError, Writer};

use crate::limits::{LAYERS_BYTES_MAX, PAGES_MAX, REQUEST_BYTES_MAX, RUNS_MAX, TAKING_BYTES_MAX};

/// Field of an answer that has the version.
pub const VERSION_FIELD: &str = "rekindle-peer-version";

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Everything about a snapshot but its pages.
    Describe,
    /// If a snapshot is in the store.
    Published,
    /// Pages of a snapshot.
    Pages,
    /// Which layers are there.
    Layers,
    /// Frames of a layer.
    Frames,
    /// To go on with a sandbox.
    Take,
}

impl Question {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Describe, Self::Published, Self::Pages, Self::Layers, Self::Frames, Self::Take];

    /// The path that asks it in this version.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Describe => "/rekindle-peer/1/describe",
            Self::Published => "/rekindle-peer/1/published",
            Self::Pages => "/rekindle-peer/1/pages",
            Self::Layers => "/rekindle-peer/1/layers",
            Self::Frames => "/rekindle-peer/1/frames",
            Self::Take => "/rekindle-peer/1/take",
        }
    }

    /// Bytes of a request at most.
    #[must_use]
    pub fn request_bytes_max(self) -> usize {
        match self {
            Self::Describe | Self::Published | Self::Pages | Self::Frames => REQUEST_BYTES_MAX,
            Self::Layers => LAYERS_BYTES_MAX,
            Self::Take => TAKING_BYTES_MAX,
        }
    }

    /// The question of a path.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|question| question.path() == path)
    }
}

/// The snapshot that a request is about.
pub fn snapshot_of(request: &[u8]) -> Result<SnapshotId, WireError> {
    let mut reader = Reader::new(request);
    let id = SnapshotId::from_bytes(reader.array("snapshot")?);
    reader.finish()?;
    Ok(id)
}

pub(crate) fn write_class(writer: &mut Writer, class: Class) {
    writer.u8(match class {
        Class::Fault => 0,
        Class::Ahead => 1,
        Class::Background => 2,
    });
}

pub(crate) fn read_class(reader: &mut Reader<'_>) -> Result<Class, WireError> {
    match reader.u8("class")? {
        0 => Ok(Class::Fault),
        1 => Ok(Class::Ahead),
        2 => Ok(Class::Background),
        _ => Err(reader.invalid("class", "there is no such class")),
    }
}

/// Encodes a request for pages, which are within the limits of one.
#[must_use]
pub fn encode_wanted(wanted: &WantedPages, class: Class) -> Vec<u8> {
    let mut writer = Writer::new();
    write_class(&mut writer, class);
    writer.bytes(wanted.snapshot.as_bytes());
    writer.u8(wanted.volume);
    writer.varint_usize(wanted.runs.len());
    for run in &wanted.runs {
        writer.varint(run.start().number().into());
        writer.varint(run.count().into());
    }
    writer.into_bytes()
}

/// Reads what [`encode_wanted`] wrote; at least one page is wanted, and no run is empty.
pub fn decode_wanted(bytes: &[u8]) -> Result<(WantedPages, Class), WireError> {
    let mut reader = Reader::new(bytes);
    let class = read_class(&mut reader)?;
    let snapshot = SnapshotId::from_bytes(reader.array("snapshot")?);
    let volume = reader.u8("volume")?;
    let count = reader.varint_usize("runs", RUNS_MAX)?;
    let (mut runs, mut left) = (Vec::with_capacity(count), PAGES_MAX);
    for _ in 0..count {
        let start = reader.varint_u32("first page of a run", u32::MAX)?;
        let pages = reader.varint_u32("pages of a run", left)?;
        let run = GuestPages::checked(GuestPage::new(start), pages).filter(|run| !run.is_empty());
        runs.push(run.ok_or_else(|| reader.invalid("run", "it is empty, or ends beyond every volume"))?);
        left -= pages;
    }
    if runs.is_empty() {
        return Err(reader.invalid("runs", "there is none"));
    }
    reader.finish()?;
    Ok((WantedPages { snapshot, volume, runs }, class))
}

/// Encodes the answer to a request for pages; `pages` has the bytes of all of them.
#[must_use]
pub fn encode_pages(request: &[u8], pages: &[u8]) -> Vec<u8> {
    let all = pages.chunks_exact(PAGE_BYTES);
    let mut bits = vec![0_u8; all.len().div_ceil(8)];
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let sent: Vec<&[u8]> = all
        .enumerate()
        .filter(|(_, page)| !is_zero(page))
        .map(|(position, page)| {
            bits[position / 8] |= 1 << (position % 8);
            page
        })
        .collect();
    let mut writer = Writer::new();
    writer.length_prefixed(request);
    // A shorter answer must not pass for one that ends with zero pages.
    writer.varint_usize(pages.len() / PAGE_BYTES);
    writer.bytes(&bits);
    sent.into_iter().for_each(|page| writer.bytes(page));
    writer.into_bytes()
}

/// The bytes of all pages in an answer, if it is one to this request for so many pages.
pub fn decode_pages(answer: &[u8], request: &[u8], pages: u32) -> Result<Vec<u8>, WireError> {
    let mut reader = Reader::new(answer);
    if reader.length_prefixed("request", REQUEST_BYTES_MAX)? != request {
        return Err(reader.invalid("request", "it is the answer to another one"));
    }
    let count = usize_of(pages);
    if reader.varint_usize("pages", usize_of(PAGES_MAX))? != count {
        return Err(reader.invalid("pages", "they are more or fewer than were asked for"));
    }
    let bits = reader.bytes("bits of pages", count.div_ceil(8))?;
    let is_sent = |position: usize| bits[position / 8] & 1 << (position % 8) != 0;
    if (count..bits.len() * 8).any(is_sent) {
        return Err(reader.invalid("bits of pages", "one is beyond the pages"));
    }
    let mut bytes = vec![0; count * PAGE_BYTES];
    for (position, page) in bytes.chunks_exact_mut(PAGE_BYTES).enumerate() {
        if is_sent(position) {
            page.copy_from_slice(reader.bytes("page", PAGE_BYTES)?);
        }
    }
    reader.finish()?;
    Ok(bytes)
}

/// Bytes of the longest answer to a request for so many pages.
#[must_use]
pub fn answer_bytes_max(pages: u32) -> usize {
    usize_of(pages) * PAGE_BYTES + usize_of(pages).div_ceil(8) + REQUEST_BYTES_MAX + 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(runs: &[(u32, u32)]) -> WantedPages {
        let run = |&(start, count): &(u32, u32)| GuestPages::new(GuestPage::new(start), count);
        WantedPages { snapshot: SnapshotId::new(), volume: 1, runs: runs.iter().map(run).collect() }
    }

    #[test]
    fn a_request_is_read_back_equal_and_is_refused_cut_short_or_longer() {
        let request = wanted(&[(0, 64), (7, 1), (4_000_000, 900)]);
        let bytes = encode_wanted(&request, Class::Ahead);
        assert_eq!(decode_wanted(&bytes), Ok((request, Class::Ahead)));
        for end in 0..bytes.len() {
            assert!(decode_wanted(&bytes[..end]).is_err(), "{end}");
        }
        assert!(decode_wanted(&[bytes, vec![0]].concat()).is_err());
    }

    #[test]
    fn a_request_is_refused_that_is_empty_too_large_or_beyond_every_volume() {
        let refused: [&[(u32, u32)]; 5] =
            [&[], &[(5, 0)], &[(0, 1000), (2000, 25)], &[(u32::MAX, 2)], &[(1, 1); 513]];
        for runs in refused {
            let mut writer = Writer::new();
            writer.u8(0);
            writer.bytes(SnapshotId::new().as_bytes());
            writer.u8(0);
            writer.varint_usize(runs.len());
            for (start, count) in runs {
                writer.varint(u64::from(*start));
                writer.varint(u64::from(*count));
            }
            assert!(decode_wanted(&writer.into_bytes()).is_err(), "{} runs", runs.len());
        }
    }

    #[test]
    fn case_45_a_request_has_room_for_512_runs() {
        let most = wanted(&[(1, 2); 512]);
        let bytes = encode_wanted(&most, Class::Background);
        assert!(bytes.len() <= REQUEST_BYTES_MAX);
        assert_eq!(decode_wanted(&bytes), Ok((most, Class::Background)));
    }

    #[test]
    fn an_answer_to_another_request_a_shorter_one_and_a_longer_one_are_refused() {
        let request = encode_wanted(&wanted(&[(3, 9)]), Class::Fault);
        let mut pages = vec![0; 9 * PAGE_BYTES];
        pages[2 * PAGE_BYTES] = 7;
        pages[9 * PAGE_BYTES - 1] = 8;
        let answer = encode_pages(&request, &pages);
        assert!(answer.len() < 3 * PAGE_BYTES, "zero pages are not sent");
        assert_eq!(decode_pages(&answer, &request, 9), Ok(pages));
        let other = encode_wanted(&wanted(&[(3, 9)]), Class::Fault);
        assert!(decode_pages(&answer, &other, 9).is_err(), "it is of another snapshot");
        for end in (0..answer.len()).step_by(97) {
            assert!(decode_pages(&answer[..end], &request, 9).is_err(), "{end}");
        }
        assert!(decode_pages(&[answer.clone(), vec![0]].concat(), &request, 9).is_err());
        assert!(decode_pages(&answer, &request, 8).is_err());
    }
}
