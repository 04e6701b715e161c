//! Messages on a process guest's control socket: one JSON line each, a reply to each command.
//!
//! The first line is the guest's hello. Commands and replies have numbers, so that a driver that takes over the socket
//! can tell its own replies from late replies to the driver before it.

use rekindle_kernel::Discard;
use serde::{Deserialize, Serialize};

use super::content::Content;
use super::history::{History, Rewrite, Share};
use super::trace::Trace;

/// The guest's first line, sent with its memfd if it has one and no handler serves it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The guest's process id.
    pub pid: u32,
    /// Its memory, by offset.
    pub regions: Vec<MemoryRegion>,
    /// True if its userfaultfd receives only faults of user code; `None` without a hand-over.
    pub user_faults_only: Option<bool>,
}

/// One region of a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Address in the guest's process.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Position in guest memory.
    pub offset: u64,
}

/// A guest's commands.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// Write every page; answered by [`Written`].
    Fill {
        /// The seed of the content.
        seed: u64,
    },
    /// Write a share of the pages; answered by [`Written`].
    Rewrite(Rewrite),
    /// Give a share of the pages back to the kernel; answered by [`Discarded`].
    Discard {
        /// The pages.
        share: Share,
        /// Advice to the kernel.
        how: DiscardHow,
    },
    /// Compare every page with its expected content; answered by [`Verified`].
    Verify,
    /// Answer a list of the checksums of a range of pages; null for a page whose bytes are lost.
    Checksums {
        /// The first page.
        first: u32,
        /// Number of pages, at most to the end of memory.
        pages: u32,
    },
    /// Compare a few pages and count one step of progress; answered by [`Ticked`].
    Tick {
        /// Number of pages.
        pages: u32,
    },
    /// Touch pages and measure the time; answered by [`super::trace::TraceTimes`].
    TouchTrace(Trace),
    /// Let the thread that runs commands run on one CPU only, or on any; answered by null.
    Place {
        /// The CPU.
        cpu: Option<usize>,
    },
    /// Answer the [`DeviceState`].
    State,
    /// Continue from this device state; answered by null.
    Restore {
        /// The state of the guest whose memory this one has taken over.
        state: DeviceState,
    },
    /// End the process; answered by null.
    Exit,
}

/// Way in which pages are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiscardHow {
    /// `MADV_DONTNEED`: private pages, and those that guests of a snapshot share, read as zeroes; those of a file of the guest's
    /// own are only unmapped and keep their content.
    DontNeed,
    /// `MADV_REMOVE`: pages read as zeroes; refused for private memory, and the same as the other for pages that guests share.
    Remove,
}

/// A command, or the reply to it, which has the same number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Numbered<Message> {
    /// Chosen by the driver, never [`NOT_A_COMMAND`].
    pub number: u64,
    /// The command or the reply.
    #[serde(flatten)]
    pub message: Message,
}

/// The number of any message.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct NumberOnly {
    /// The number.
    pub number: u64,
}

/// The number of a reply to a line without a number. An empty line has no reply.
pub const NOT_A_COMMAND: u64 = 0;

/// The answer to a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply<Answer> {
    /// It is done.
    Done(Answer),
    /// It failed, with the reason.
    Failed(String),
}

/// The state of a guest besides its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Steps of progress so far.
    pub count: u64,
    /// The operations done on memory so far.
    pub history: History,
}

/// Number of pages an operation wrote, by the kind of their new content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// With new content.
    pub new_pages: u32,
    /// With zeroes.
    pub zero_pages: u32,
    /// With their old bytes.
    pub same_pages: u32,
    /// Time taken.
    pub nanoseconds: u64,
}

/// Number of pages given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discarded {
    /// The pages.
    pub pages: u32,
    /// Time taken.
    pub nanoseconds: u64,
}

/// Result of comparing pages with the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Pages compared.
    pub pages: u32,
    /// Pages with other content than expected.
    pub mismatches: u32,
    /// The first of them.
    pub first_mismatch: Option<Mismatch>,
    /// Time taken.
    pub nanoseconds: u64,
}

/// A page with other content than expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// The page.
    pub page: u32,
    /// The content that the history expects.
    pub expected: Content,
    /// The content found, if an operation can have written it.
    pub found: Option<Content>,
}

/// One step of progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticked {
    /// Steps so far, this one included.
    pub count: u64,
    /// The comparison of the pages.
    pub verified: Verified,
}

impl Verified {
    /// The sum of both comparisons; the time is the longer one, as they ran in parallel.
    pub fn join(self, other: Self) -> Self {
        let lowest = |mismatch: &Mismatch| mismatch.page;
        Self {
            pages: self.pages + other.pages,
            mismatches: self.mismatches + other.mismatches,
            first_mismatch: self.first_mismatch.into_iter().chain(other.first_mismatch).min_by_key(lowest),
            nanoseconds: self.nanoseconds.max(other.nanoseconds),
        }
    }
}

impl Written {
    /// All pages written.
    pub fn pages(&self) -> u32 {
        self.new_pages + self.zero_pages + self.same_pages
    }

    /// The sum of both counts; the time is the longer one, as they ran in parallel.
    pub fn join(self, other: Self) -> Self {
        Self {
            new_pages: self.new_pages + other.new_pages,
            zero_pages: self.zero_pages + other.zero_pages,
            same_pages: self.same_pages + other.same_pages,
            nanoseconds: self.nanoseconds.max(other.nanoseconds),
        }
    }
}

impl From<DiscardHow> for Discard {
    fn from(how: DiscardHow) -> Self {
        match how {
            DiscardHow::DontNeed => Self::DontNeed,
            DiscardHow::Remove => Self::Remove,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_replies_carry_their_number_beside_their_own_fields() {
        let fill = Numbered { number: 7, message: Command::Fill { seed: u64::MAX } };
        let line = serde_json::to_string(&fill).expect("plain data");
        assert_eq!(line, format!(r#"{{"number":7,"command":"fill","seed":{}}}"#, u64::MAX));
        for message in [Command::Verify, Command::Fill { seed: u64::MAX }, Command::Place { cpu: None }] {
            let line = serde_json::to_string(&Numbered { number: 7, message }).expect("plain data");
            let read: Numbered<Command> = serde_json::from_str(&line).expect("what was written");
            assert_eq!(serde_json::to_string(&read).expect("plain data"), line);
        }
        let done = Numbered { number: 8, message: Reply::Done(()) };
        assert_eq!(serde_json::to_string(&done).expect("plain data"), r#"{"number":8,"done":null}"#);
        let read: Numbered<Reply<()>> = serde_json::from_str(r#"{"number":8,"done":null}"#).expect("a reply");
        assert!(matches!(read, Numbered { number: 8, message: Reply::Done(()) }));
        let read: Numbered<Reply<()>> =
            serde_json::from_str(r#"{"number":9,"failed":"x"}"#).expect("a reply");
        assert!(matches!(read.message, Reply::Failed(why) if why == "x"));
    }
}
