//! The daemon's lists.

use rekindle_api::client::{Client, ClientError};
use rekindle_api::types::{Sandbox, Snapshot};

use super::model::ById;

/// All sandboxes and snapshots the daemon lists.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) sandboxes: ById<Sandbox>,
    pub(crate) snapshots: ById<Snapshot>,
}

impl World {
    pub(crate) fn of(client: &Client) -> Result<Self, ClientError> {
        let sandboxes = client.all_sandboxes(&[])?.into_iter().map(|sandbox| (sandbox.id, sandbox));
        let snapshots = client.all_snapshots(&[])?.into_iter().map(|snapshot| (snapshot.id, snapshot));
        Ok(Self { sandboxes: sandboxes.collect(), snapshots: snapshots.collect() })
    }

    /// The sandboxes called `name`, or `name` and a number.
    pub(crate) fn called(&self, name: &str) -> Vec<Sandbox> {
        let is_called = |given: &str| match given.strip_prefix(name) {
            Some("") => true,
            Some(rest) => rest.strip_prefix('-').is_some_and(|number| number.parse::<u32>().is_ok()),
            None => false,
        };
        self.sandboxes
            .values()
            .filter(|sandbox| sandbox.name.as_deref().is_some_and(is_called))
            .cloned()
            .collect()
    }

    /// The snapshot called `name`.
    pub(crate) fn snapshot_called(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.values().find(|snapshot| snapshot.name.as_deref() == Some(name))
    }
}
