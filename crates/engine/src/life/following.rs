//! The life of a snapshot that another node has, until it has names.

use std::time::Duration;

use futures_util::future::{Either, select};

use super::{Life, Work};
use crate::follow::{Checked, FollowError};

impl Life {
    /// Follows the snapshot until it has names, or until it is let go.
    pub(super) async fn follow_unless_let_go(&self) -> Result<Work, FollowError> {
        let (following, let_go) = (std::pin::pin!(self.follow()), std::pin::pin!(self.snapshot.is_let_go()));
        match select(following, let_go).await {
            Either::Left((followed, _)) => followed,
            Either::Right(_) if self.snapshot.ends_following() => Ok(Work::Nothing),
            Either::Right(_) => Ok(Work::Follow),
        }
    }

    /// Waits before `work` is tried again, or until the snapshot is let go.
    pub(super) async fn pause(&self, work: &Work, pause: Duration) {
        let passed = tokio::time::sleep(pause);
        match work {
            Work::Follow => tokio::select! {
                () = passed => {}
                () = self.snapshot.is_let_go() => {}
            },
            Work::Nothing | Work::Seal(_) | Work::Publish(_) | Work::RemoveFromStore => passed.await,
        }
    }

    /// Brings the pages that another node has, and gives the snapshot its names once they are in the store.
    async fn follow(&self) -> Result<Work, FollowError> {
        let found = self.background.follower.names_of(&self.snapshot).await?;
        let asked = match self.background.follower.check(&self.snapshot, &found).await? {
            Checked::Same => {
                let records = self.background.records.clone();
                let of = (self.snapshot.domain().clone(), found.manifest.clone());
                self.save(move |_| records.map_or(Ok(()), |records| records.opened(&of.0, &of.1))).await?;
                let asked = self.snapshot.record_names(&found.snapshot);
                self.let_keeper_forget().await;
                self.take_root_over().await;
                asked
            }
            Checked::Differs(reason) => {
                if let Some(records) = self.background.records.clone() {
                    let (reason, facts) = (reason.clone(), self.snapshot.facts());
                    let refuted = move |life: &Self| {
                        records.refuted(life.snapshot.id(), life.snapshot.domain(), reason, facts)
                    };
                    self.save(refuted).await?;
                }
                tracing::error!(snapshot = %self.snapshot.id(), %reason, "pages of another node are wrong");
                let asked = self.snapshot.record_wrong(reason);
                self.let_keeper_forget().await;
                asked
            }
        };
        self.changed();
        Ok(Work::asked(asked, &self.snapshot, Work::Nothing))
    }

    async fn let_keeper_forget(&self) {
        if let Some(records) = self.background.records.clone() {
            self.save(move |life| records.forget(life.snapshot.id())).await;
        }
    }
}
