//! The question by which a sandbox moves: a node asks another one to go on with it, from a snapshot that the first one has.

use std::collections::BTreeMap;

use rekindle_engine::identity::SnapshotId;
use rekindle_engine::limits::NODE_BYTES_MAX;
use rekindle_engine::origin::Origin;
use rekindle_engine::peer::PeerError;
use rekindle_engine::wire::{Reader, WireError, Writer};
use uuid::Uuid;

use crate::limits::{ERROR_BYTES_MAX, LABELS_MAX, WORD_BYTES_MAX};

/// A sandbox that another node is asked to go on with.
///
/// Its two ids tell a question that is asked again from another one: such a sandbox is made once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taking {
    /// The snapshot of its last pause.
    pub snapshot: SnapshotId,
    /// The sandbox, at the node that asks.
    pub sandbox: Uuid,
    /// The node that asks, which has the snapshot.
    pub origin: Origin,
    /// The sandbox's name, if it has one.
    pub name: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// The answer of the node that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// The sandbox runs there, under this id.
    Runs(Uuid),
    /// It does not run there: the reason.
    Refused(String),
}

/// Reason that there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TakeError {
    /// The node was not asked.
    #[error(transparent)]
    NotAsked(PeerError),
    /// It was, or may have been: it is unknown if the sandbox runs there.
    #[error(transparent)]
    Unanswered(PeerError),
}

impl Taking {
    /// The one encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(self.snapshot.as_bytes());
        writer.bytes(self.sandbox.as_bytes());
        writer.text(&self.origin.node);
        writer.text(&self.origin.address);
        writer.text(self.name.as_deref().unwrap_or_default());
        writer.varint_usize(self.labels.len());
        for (name, value) in &self.labels {
            writer.text(name);
            writer.text(value);
        }
        writer.into_bytes()
    }

    /// Reads what [`Taking::encode`] wrote, and refuses all else.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let snapshot = SnapshotId::from_bytes(reader.array("snapshot")?);
        let sandbox = Uuid::from_bytes(reader.array("sandbox")?);
        let node = reader.text("node", NODE_BYTES_MAX)?.to_owned();
        let address = reader.text("address of the node", NODE_BYTES_MAX)?.to_owned();
        let name = Some(reader.text("name", WORD_BYTES_MAX)?.to_owned()).filter(|name| !name.is_empty());
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        for _ in 0..reader.varint_usize("labels", LABELS_MAX)? {
            let name = reader.text("name of a label", WORD_BYTES_MAX)?.to_owned();
            let is_next = labels.last_key_value().is_none_or(|(last, _)| *last < name);
            if !is_next {
                return Err(reader.invalid("labels", "they do not ascend"));
            }
            labels.insert(name, reader.text("value of a label", WORD_BYTES_MAX)?.to_owned());
        }
        reader.finish()?;
        Ok(Self { snapshot, sandbox, origin: Origin { node, address }, name, labels })
    }
}

impl Taken {
    /// The encoding of the answer about `snapshot`.
    #[must_use]
    pub fn encode(&self, snapshot: SnapshotId) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(snapshot.as_bytes());
        match self {
            Self::Runs(sandbox) => {
                writer.u8(1);
                writer.bytes(sandbox.as_bytes());
            }
            Self::Refused(reason) => {
                writer.u8(0);
                writer.text(&reason[..reason.floor_char_boundary(ERROR_BYTES_MAX)]);
            }
        }
        writer.into_bytes()
    }

    /// Reads an answer about `snapshot`, and refuses all else.
    pub fn decode(snapshot: SnapshotId, bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        if reader.array("snapshot")? != *snapshot.as_bytes() {
            return Err(reader.invalid("snapshot", "it is the answer about another one"));
        }
        let taken = match reader.u8("answer")? {
            0 => Self::Refused(reader.text("reason", ERROR_BYTES_MAX)?.to_owned()),
            1 => Self::Runs(Uuid::from_bytes(reader.array("sandbox")?)),
            _ => return Err(reader.invalid("answer", "it is neither yes nor no")),
        };
        reader.finish()?;
        Ok(taken)
    }

    /// Bytes that an encoding has at most.
    pub const BYTES_MAX: usize = ERROR_BYTES_MAX + 64;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taking() -> Taking {
        Taking {
            snapshot: SnapshotId::new(),
            sandbox: Uuid::from_u128(7),
            origin: Origin { node: "a".to_owned(), address: "10.0.0.7:7420".to_owned() },
            name: Some("web".to_owned()),
            labels: [("team", "blue"), ("zone", "")].map(|(name, value)| (name.into(), value.into())).into(),
        }
    }

    #[test]
    fn the_question_to_take_a_sandbox_and_its_answer_are_read_back_equal_and_refused_cut_short_or_longer() {
        let asked = taking();
        let bytes = asked.encode();
        assert_eq!(Taking::decode(&bytes), Ok(asked.clone()));
        for end in 0..bytes.len() {
            assert!(Taking::decode(&bytes[..end]).is_err(), "{end}");
        }
        assert!(Taking::decode(&[bytes, vec![0]].concat()).is_err());
        for answer in [Taken::Runs(Uuid::from_u128(9)), Taken::Refused("no room".to_owned())] {
            let bytes = answer.encode(asked.snapshot);
            assert_eq!(Taken::decode(asked.snapshot, &bytes), Ok(answer));
            assert!(Taken::decode(SnapshotId::new(), &bytes).is_err(), "it is about another one");
            for end in 0..bytes.len() {
                assert!(Taken::decode(asked.snapshot, &bytes[..end]).is_err(), "{end}");
            }
            assert!(Taken::decode(asked.snapshot, &[bytes, vec![0]].concat()).is_err());
        }
    }
}
