//! A snapshot with what it says of itself, as the API shows it.

use std::sync::Arc;

use rekindle_api::types::{self, Labels, PageClasses, Snapshot, SnapshotState, Volume};
use rekindle_engine::lifecycle;
use rekindle_engine::origin::Origin;
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;
use rekindle_kernel::{HUGE_PAGE_BYTES, PAGE_BYTES, PageKind};
use uuid::Uuid;

use super::about::About;
use super::paging::Listed;
use super::references::Named;

/// A snapshot with what it says of itself.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) snapshot: Arc<EngineSnapshot>,
    pub(super) about: Arc<About>,
}

impl Known {
    pub(super) fn of(snapshot: Arc<EngineSnapshot>) -> Self {
        let about = Arc::new(About::of(&snapshot));
        Self { snapshot, about }
    }

    /// Its stage.
    pub(super) fn state(&self) -> SnapshotState {
        let status = self.snapshot.status();
        if status.is_undecided { SnapshotState::Undecided } else { shown(status.state) }
    }

    /// The snapshot as the API shows it, by a node that others reach so, if they do.
    pub(super) fn show(&self, here: Option<&Origin>) -> Snapshot {
        let status = self.snapshot.status();
        let classes = status.classes.map(|classes| PageClasses {
            dirty: classes.dirty.into(),
            zero: classes.zero.into(),
            equal: classes.equal.into(),
            kept: classes.kept.into(),
        });
        Snapshot {
            id: self.id(),
            name: self.about.name.clone(),
            labels: self.about.labels.clone(),
            domain: self.snapshot.domain().to_string(),
            state: self.state(),
            reason: status.failure,
            parent: self.snapshot.parent_id().map(|id| id.uuid()),
            sandbox: self.about.sandbox,
            generation: self.snapshot.generation(),
            created_unix_ms: self.snapshot.created_unix_ms(),
            volumes: self.snapshot.volumes().iter().map(volume).collect(),
            origin: self.origin(here),
            missing_bytes: status.remote.map(|remote| remote.missing_bytes),
            classes,
            seal_seconds: status.seal_time.map(|time| time.as_secs_f64()),
        }
    }

    /// The node that has it as long as it is in no store.
    fn origin(&self, here: Option<&Origin>) -> Option<types::Origin> {
        let status = self.snapshot.status();
        let elsewhere = status.remote.map(|remote| types::Origin { node: remote.node, address: None });
        let is_unsaved = matches!(shown(status.state), SnapshotState::Captured | SnapshotState::Sealed);
        let here = here.filter(|_| is_unsaved).cloned();
        let shown = |Origin { node, address }| types::Origin { node, address: Some(address) };
        elsewhere.or(here.map(shown))
    }

    /// The snapshot with its name, for people.
    pub(super) fn called(&self) -> String {
        match &self.about.name {
            Some(name) => format!("snapshot {name} ({})", self.id()),
            None => format!("snapshot {}", self.id()),
        }
    }
}

impl Named for Known {
    fn id(&self) -> Uuid {
        self.snapshot.id().uuid()
    }

    fn name(&self) -> Option<&str> {
        self.about.name.as_deref()
    }
}

impl Listed for Known {
    fn labels(&self) -> &Labels {
        &self.about.labels
    }
}

fn volume(volume: &rekindle_engine::snapshot::Volume) -> Volume {
    let page_bytes = match volume.page_kind {
        PageKind::Small => PAGE_BYTES,
        PageKind::Huge => HUGE_PAGE_BYTES,
    };
    Volume {
        name: volume.name.as_str().to_owned(),
        bytes: u64::from(volume.view.pages()) * 4096,
        page_bytes: u64::try_from(page_bytes).expect("two megabytes at most"),
    }
}

/// True if a guest can go on from it, here and now.
pub(super) fn can_be_gone_on_from(known: &Known) -> bool {
    matches!(
        known.state(),
        SnapshotState::Captured | SnapshotState::Sealed | SnapshotState::Published | SnapshotState::Remote
    )
}

/// The state as the API shows it.
pub(super) fn shown(state: lifecycle::SnapshotState) -> SnapshotState {
    match state {
        lifecycle::SnapshotState::Captured => SnapshotState::Captured,
        lifecycle::SnapshotState::Sealed => SnapshotState::Sealed,
        lifecycle::SnapshotState::Published => SnapshotState::Published,
        lifecycle::SnapshotState::Remote => SnapshotState::Remote,
        lifecycle::SnapshotState::Lost => SnapshotState::Lost,
        lifecycle::SnapshotState::CapturedForChildren | lifecycle::SnapshotState::Discarded => {
            SnapshotState::Discarded
        }
    }
}
