//! A thread that makes one request after the other, until it is told to stop or the daemon is gone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rekindle_api::client::{Client, ClientError};
use rekindle_api::problem::Code;
use rekindle_testkit::random::Random;

use super::choice::{Kind, Limits};
use super::findings::Findings;
use super::operation::Operation;
use super::shard::Shard;

/// One user of the daemon.
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) shard: Shard,
    pub(crate) random: Random,
    pub(crate) limits: Limits,
    /// The kind of request it makes mostly.
    pub(crate) wish: Option<Kind>,
    /// Codes with which requests may fail although the daemon lives, because of the trouble made for it: such a request
    /// counts as lost, like one without an answer.
    pub(crate) may_fail: &'static [Code],
}

/// Reports of an actor while it works.
#[derive(Clone, Copy, Debug)]
pub(crate) enum News {
    /// A request is about to be made.
    Begun(Kind),
    /// It was answered, after this time.
    Answered(Kind, Duration),
}

/// An actor that has stopped.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) actor: Actor,
    /// The request whose answer was lost: it may have been done, or not.
    pub(crate) lost: Option<(Operation, Kind)>,
    pub(crate) findings: Findings,
    /// Requests that were answered.
    pub(crate) answered: u64,
}

impl Actor {
    /// Works until `stop` says so or an answer is lost.
    pub(crate) fn work(mut self, client: &Client, stop: &AtomicBool, news: Option<&Sender<News>>) -> Ended {
        let tell = |what: News| {
            if let Some(news) = news {
                // The receiver stops once the event it waited for has come.
                news.send(what).ok();
            }
        };
        let (mut findings, mut answered) = (Findings::default(), 0);
        while !stop.load(Ordering::Acquire) && findings.is_clean() {
            let wish = self.wish.filter(|_| self.random.percent(80));
            let operation = self.shard.choose(wish, &self.limits, &mut self.random);
            let kind = self.shard.kind_of(&operation);
            tell(News::Begun(kind));
            let asked = Instant::now();
            match operation.ask(client) {
                Ok(outcome) => {
                    answered += 1;
                    self.shard.answered(&operation, &outcome, &mut findings);
                    tell(News::Answered(kind, asked.elapsed()));
                }
                Err(error) if may_be_refused(&error) => {}
                Err(error) if error.code().is_some_and(|code| self.may_fail.contains(&code)) => {
                    return Ended { actor: self, lost: Some((operation, kind)), findings, answered };
                }
                // Nothing was asked: the daemon is gone.
                Err(error) if error.is_unreachable() => break,
                Err(ClientError::Broken { .. }) => {
                    return Ended { actor: self, lost: Some((operation, kind)), findings, answered };
                }
                Err(error) => findings.guest_failed(&format!("{operation:?}"), &error),
            }
        }
        Ended { actor: self, lost: None, findings, answered }
    }
}

/// True if a daemon under load may give this answer: the guest goes on, and nothing has changed.
fn may_be_refused(error: &ClientError) -> bool {
    matches!(error.code(), Some(Code::TooManyUnsealed | Code::NoRam | Code::TooMany))
}
