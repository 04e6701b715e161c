//! `rekindle tell`: has a process guest do something with its memory.

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use rekindle_guest::process::history::{Operation, Rewrite, Share};
use rekindle_guest::process::protocol::{
    Command, DeviceState, DiscardHow, Discarded, Ticked, Verified, Written,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::numbers::number;
use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::{self, sandbox_title};

/// Whom to tell what.
#[derive(Args, Clone, Debug)]
pub struct TellArguments {
    /// The sandbox: its name, its id, or the beginning or end of that
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Command for the guest
    #[command(subcommand)]
    what: Tell,
}

/// Commands of a process guest.
#[derive(Clone, Debug, Subcommand)]
pub enum Tell {
    /// Write every page
    Fill {
        /// Decides what is written
        #[arg(long, default_value_t = 1, value_parser = number::<u64>(0..=u64::MAX))]
        seed: u64,
    },
    /// Write some of the pages
    Rewrite {
        /// The pages.
        #[command(flatten)]
        share: ShareArguments,
        /// Percentage of these pages that get zeroes
        #[arg(long, default_value_t = 10, value_parser = number::<u8>(0..=100))]
        zero_percent: u8,
        /// Percentage of these pages that get the bytes they have
        #[arg(long, default_value_t = 10, value_parser = number::<u8>(0..=100))]
        same_percent: u8,
    },
    /// Compare every page with its expected content; status 1 if one is wrong
    Verify,
    /// Compare a few pages and count a step; status 1 if one is wrong
    Tick {
        /// Number of pages
        #[arg(long, default_value_t = 64, value_parser = number::<u32>(0..=u32::MAX.into()))]
        pages: u32,
    },
    /// Give some of the pages back to the kernel
    Discard {
        /// The pages.
        #[command(flatten)]
        share: ShareArguments,
        /// Advice to the kernel
        #[arg(long, value_enum, default_value_t = HowWord::Remove)]
        how: HowWord,
    },
    /// Print its device state: steps, and operations on memory
    State,
}

/// A choice of pages.
#[derive(Args, Clone, Copy, Debug)]
pub struct ShareArguments {
    /// Chooses the pages and their new content
    #[arg(long, default_value_t = 2, value_parser = number::<u64>(0..=u64::MAX))]
    seed: u64,
    /// Percentage of runs of pages
    #[arg(long, default_value_t = 50, value_parser = number::<u8>(0..=100))]
    percent: u8,
    /// Pages of a run
    #[arg(long, default_value_t = 8, value_parser = number::<u32>(1..=u32::MAX.into()))]
    run_pages: u32,
}

/// Way in which pages are given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HowWord {
    /// MADV_DONTNEED: private memory reads zero, shared memory keeps its bytes
    DontNeed,
    /// MADV_REMOVE: reads zero; private memory refuses it
    Remove,
}

impl From<ShareArguments> for Share {
    fn from(arguments: ShareArguments) -> Self {
        let ShareArguments { seed, percent, run_pages } = arguments;
        Self { seed, percent, run_pages }
    }
}

impl Tell {
    fn command(&self) -> Command {
        match self {
            Self::Fill { seed } => Command::Fill { seed: *seed },
            Self::Rewrite { share, zero_percent, same_percent } => Command::Rewrite(Rewrite {
                share: (*share).into(),
                zero_percent: *zero_percent,
                same_percent: *same_percent,
            }),
            Self::Verify => Command::Verify,
            Self::Tick { pages } => Command::Tick { pages: *pages },
            Self::Discard { share, how } => Command::Discard {
                share: (*share).into(),
                how: match how {
                    HowWord::DontNeed => DiscardHow::DontNeed,
                    HowWord::Remove => DiscardHow::Remove,
                },
            },
            Self::State => Command::State,
        }
    }

    /// The guest's answer in words, and what it means.
    fn explain(&self, answer: &Value) -> anyhow::Result<(String, Status)> {
        Ok(match self {
            Self::Fill { .. } | Self::Rewrite { .. } => {
                let written: Written = read(answer)?;
                let Written { new_pages, zero_pages, same_pages, nanoseconds } = written;
                let words = format!(
                    "{} pages written: {new_pages} with new content, {zero_pages} with zeroes, {same_pages} as they were{}",
                    written.pages(),
                    within(nanoseconds)
                );
                (words, Status::Done)
            }
            Self::Verify => explain_verified(&read(answer)?, ""),
            Self::Tick { .. } => {
                let Ticked { count, verified } = read(answer)?;
                explain_verified(&verified, &format!("step {count}: "))
            }
            Self::Discard { .. } => {
                let Discarded { pages, nanoseconds } = read(answer)?;
                (format!("{pages} pages given back{}", within(nanoseconds)), Status::Done)
            }
            Self::State => {
                let state: DeviceState = read(answer)?;
                let done: Vec<String> = state.history.operations().iter().map(in_words).collect();
                let done = if done.is_empty() { "nothing".to_owned() } else { done.join(", then ") };
                (format!("{} steps; done to memory: {done}", state.count), Status::Done)
            }
        })
    }
}

fn explain_verified(verified: &Verified, before: &str) -> (String, Status) {
    let Verified { pages, mismatches, first_mismatch, nanoseconds } = verified;
    let first = first_mismatch.map_or_else(String::new, |first| {
        let found = first
            .found
            .map_or_else(|| "bytes that no command wrote".to_owned(), |found| format!("{found:?}"));
        format!("; the first is page {}, which must hold {:?} and holds {found}", first.page, first.expected)
    });
    let words = format!("{before}{pages} pages verified, {mismatches} wrong{}{first}", within(*nanoseconds));
    (words, if *mismatches == 0 { Status::Done } else { Status::CheckFailed })
}

fn in_words(operation: &Operation) -> String {
    let share = |Share { seed, percent, run_pages }: &Share| {
        format!("{percent} % in runs of {run_pages} pages, seed {seed}")
    };
    match operation {
        Operation::Fill { seed } => format!("fill with seed {seed}"),
        Operation::Rewrite(rewrite) => format!("rewrite of {}", share(&rewrite.share)),
        Operation::Clear(cleared) => format!("discard of {}", share(cleared)),
    }
}

fn within(nanoseconds: u64) -> String {
    format!(", in {}", shown::duration(std::time::Duration::from_nanos(nanoseconds)))
}

fn read<T: DeserializeOwned>(answer: &Value) -> anyhow::Result<T> {
    T::deserialize(answer).with_context(|| format!("the guest's answer is not understood: {answer}"))
}

/// Tells it, and says what it answered.
pub fn run(session: &Session, arguments: &TellArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let sandbox = target::sandbox(&client, &arguments.sandbox)?;
    let command = serde_json::to_value(arguments.what.command())?;
    let id = sandbox.id.to_string();
    let answer = session.output.during("the guest works", || client.tell_guest(&id, &command))?;
    let (words, status) = arguments.what.explain(&answer)?;
    if session.output.json {
        session.output.value(&answer)?;
    } else {
        session.output.line(&format!("{}: {words}", sandbox_title(&sandbox)))?;
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use rekindle_guest::process::content::Content;
    use rekindle_guest::process::protocol::Mismatch;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wrong_page_is_named_and_fails_the_check() {
        let first =
            Mismatch { page: 7, expected: Content::Zero, found: Some(Content::Written { seed: 1, page: 7 }) };
        let verified =
            Verified { pages: 10, mismatches: 2, first_mismatch: Some(first), nanoseconds: 2_000_000 };
        let (words, status) = Tell::Verify.explain(&serde_json::to_value(verified).unwrap()).unwrap();
        assert_eq!(
            words,
            "10 pages verified, 2 wrong, in 2.0 ms; the first is page 7, which must hold Zero and holds \
             Written { seed: 1, page: 7 }"
        );
        assert_eq!(status, Status::CheckFailed);
    }

    #[test]
    fn an_answer_of_another_kind_is_an_error_that_shows_it() {
        let error = Tell::Verify.explain(&json!({"pages": "many"})).expect_err("no count");
        assert!(error.to_string().contains("\"many\""), "{error}");
    }
}
