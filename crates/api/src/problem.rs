//! A problem: the reason that a request was not done, as a stable code, words for people, and the ids it is about.

use rekindle_engine::identity::SnapshotId;
use uuid::Uuid;

use super::types::ProblemBody;

/// Characters of a problem's words, so that nothing that is sent comes back whole.
const DETAIL_CHARACTERS_MAX: usize = 2000;

/// The kinds of problems. A code never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request says something that cannot be.
    InvalidRequest,
    /// No credentials, or wrong ones.
    Unauthorized,
    /// There is no such sandbox, snapshot, socket or route.
    NotFound,
    /// The route is there, but not with this method.
    WrongMethod,
    /// More than one id begins so.
    AmbiguousReference,
    /// Another resource has this name.
    NameTaken,
    /// It cannot be done in the state things are in.
    WrongState,
    /// The same idempotency key came with another request.
    IdempotencyMismatch,
    /// The wait ended before the state was reached.
    NotYet,
    /// The request's body is longer than is taken.
    TooLarge,
    /// More at once than is taken.
    TooMany,
    /// No RAM for a capture, even after waiting; the guest runs on.
    NoRam,
    /// Too many unsealed snapshots in this line, even after waiting; the guest runs on.
    TooManyUnsealed,
    /// The node is drained: it takes no new guests.
    Drained,
    /// Too many bytes of snapshots are on this node and not in the store; the guest runs on.
    TooManyUnpublished,
    /// This machine has not what the guest's machine needs; nothing was started.
    Misfit,
    /// The node lacks a key of the domain; nothing was done.
    NoKey,
    /// The guest or its VMM failed.
    GuestFailed,
    /// The store did not answer as it must.
    StoreFailed,
    /// Another node did not answer as it must.
    PeerFailed,
    /// The snapshot was lost; the detail says how.
    Lost,
    /// The request was done before under its idempotency key, and what it made is gone.
    Gone,
    /// The keeper cannot be reached.
    KeeperFailed,
    /// The local disk failed.
    DiskFailed,
    /// The daemon is ending.
    Ending,
    /// The client went away before its request was done, which was undone.
    Abandoned,
    /// A bug.
    Internal,
}

/// Reason that a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// Its kind.
    pub code: Code,
    /// The event, the thing it happened to, and the remedy.
    pub detail: String,
    /// The sandboxes it is about.
    pub sandboxes: Vec<Uuid>,
    /// The snapshots it is about.
    pub snapshots: Vec<Uuid>,
}

impl Problem {
    /// A problem of a kind, with its words.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), sandboxes: Vec::new(), snapshots: Vec::new() }
    }

    /// The same, about a sandbox.
    #[must_use]
    pub fn sandbox(mut self, id: Uuid) -> Self {
        self.sandboxes.push(id);
        self
    }

    /// The same, about a snapshot.
    #[must_use]
    pub fn snapshot(mut self, id: SnapshotId) -> Self {
        self.snapshots.push(id.uuid());
        self
    }

    /// The body of the answer.
    pub fn body(&self) -> ProblemBody {
        let code = self.code.name();
        ProblemBody {
            kind: format!("urn:rekindle:problem:{code}"),
            title: self.code.title().to_owned(),
            status: self.code.status(),
            code: code.to_owned(),
            detail: shortened(&self.detail),
            sandboxes: self.sandboxes.clone(),
            snapshots: self.snapshots.clone(),
        }
    }
}

/// `detail` without its middle where it is longer than anybody reads.
fn shortened(detail: &str) -> String {
    let characters = detail.chars().count();
    if characters <= DETAIL_CHARACTERS_MAX {
        return detail.to_owned();
    }
    let half = DETAIL_CHARACTERS_MAX / 2;
    let beginning: String = detail.chars().take(half).collect();
    let end: String = detail.chars().skip(characters - half).collect();
    format!("{beginning} ... {end}")
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::InvalidRequest,
        Self::Unauthorized,
        Self::NotFound,
        Self::WrongMethod,
        Self::AmbiguousReference,
        Self::NameTaken,
        Self::WrongState,
        Self::IdempotencyMismatch,
        Self::NotYet,
        Self::TooLarge,
        Self::TooMany,
        Self::NoRam,
        Self::TooManyUnsealed,
        Self::Drained,
        Self::TooManyUnpublished,
        Self::Misfit,
        Self::NoKey,
        Self::GuestFailed,
        Self::StoreFailed,
        Self::PeerFailed,
        Self::Lost,
        Self::Gone,
        Self::KeeperFailed,
        Self::DiskFailed,
        Self::Ending,
        Self::Abandoned,
        Self::Internal,
    ];

    /// Those with which a request for any operation may be refused, whatever it asks for.
    pub(crate) const OF_ALL: &[Self] = &[
        Self::InvalidRequest,
        Self::Unauthorized,
        Self::TooLarge,
        Self::TooMany,
        Self::Ending,
        Self::Abandoned,
        Self::Internal,
    ];

    /// Those of a request that comes with an idempotency key.
    pub(crate) const OF_KEY: &[Self] = &[Self::IdempotencyMismatch, Self::Gone];

    /// The code as it is sent.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// The HTTP status it goes with.
    pub fn status(self) -> u16 {
        self.facts().1
    }

    /// The code that is sent as `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name)
    }

    /// True if the same request may well be done a moment later.
    pub fn passes(self) -> bool {
        matches!(
            self,
            Self::TooMany
                | Self::NoRam
                | Self::TooManyUnsealed
                | Self::TooManyUnpublished
                | Self::KeeperFailed
                | Self::Ending
        )
    }

    /// The code in words.
    pub fn title(self) -> &'static str {
        self.facts().2
    }

    fn facts(self) -> (&'static str, u16, &'static str) {
        match self {
            Self::InvalidRequest => ("invalid_request", 400, "The request cannot be understood"),
            Self::Unauthorized => ("unauthorized", 401, "The credentials are missing or wrong"),
            Self::NotFound => ("not_found", 404, "There is no such thing"),
            Self::WrongMethod => ("wrong_method", 405, "The route has no such method"),
            Self::AmbiguousReference => ("ambiguous_reference", 409, "More than one id begins so"),
            Self::NameTaken => ("name_taken", 409, "The name is taken"),
            Self::WrongState => ("wrong_state", 409, "It cannot be done in this state"),
            Self::IdempotencyMismatch => {
                ("idempotency_mismatch", 422, "The idempotency key belongs to another request")
            }
            Self::NotYet => ("not_yet", 504, "The state was not reached in time"),
            Self::TooLarge => ("too_large", 413, "The request is too long"),
            Self::TooMany => ("too_many", 429, "Too many at once"),
            Self::NoRam => ("no_ram", 503, "There is no RAM for the capture"),
            Self::TooManyUnsealed => ("too_many_unsealed", 503, "Earlier pauses are still being sealed"),
            Self::Drained => ("drained", 503, "The node is drained"),
            Self::TooManyUnpublished => {
                ("too_many_unpublished", 503, "Too many bytes of snapshots are only on this node")
            }
            Self::Misfit => ("misfit", 409, "It does not fit this machine"),
            Self::NoKey => ("no_key", 409, "The node lacks a key of the domain"),
            Self::GuestFailed => ("guest_failed", 502, "The guest failed"),
            Self::StoreFailed => ("store_failed", 502, "The store failed"),
            Self::PeerFailed => ("peer_failed", 502, "Another node failed"),
            Self::Lost => ("lost", 410, "It was lost"),
            Self::Gone => ("gone", 410, "It was made before and is gone"),
            Self::KeeperFailed => ("keeper_failed", 503, "The keeper cannot be reached"),
            Self::DiskFailed => ("disk_failed", 507, "The local disk failed"),
            Self::Ending => ("ending", 503, "The daemon is ending"),
            Self::Abandoned => ("abandoned", 499, "The client went away"),
            Self::Internal => ("internal", 500, "A bug in rekindle"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_word_of_a_request_is_not_said_again_whole() {
        let detail = format!("{} is none: say another", "x".repeat(100_000));
        let told = Problem::new(Code::InvalidRequest, detail).body().detail;
        assert!(told.len() < 2100 && told.ends_with("is none: say another"), "{told}");
    }
}
