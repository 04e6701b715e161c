//! The life of a snapshot that another node has, until it has names.

use super::{Life, Work};
use crate::follow::{Checked, FollowError};

impl Life {
    /// Brings the pages that another node has, and gives the snapshot its names once they are in the store.
    pub(super) async fn follow(&self) -> Result<Work, FollowError> {
        let found = self.background.follower.names_of(&self.snapshot).await?;
        let asked = match self.background.follower.check(&self.snapshot, &found).await? {
            Checked::Same => {
                let records = self.background.records.clone();
                let of = (self.snapshot.domain().clone(), found.manifest.clone());
                self.save(move |_| records.map_or(Ok(()), |records| records.opened(&of.0, &of.1))).await?;
                let asked = self.snapshot.record_names(&found.snapshot);
                // Sandboxes may run from it already.
                if let Err(error) =
                    self.background.run_roots.take_over(self.background.store(), &self.snapshot).await
                {
                    tracing::warn!(snapshot = %self.snapshot.id(), %error, "a sandbox that runs has no root in the store for now");
                }
                asked
            }
            Checked::Differs(reason) => self.snapshot.record_wrong(reason),
        };
        self.changed();
        Ok(Work::asked(asked, &self.snapshot, Work::Nothing))
    }
}
