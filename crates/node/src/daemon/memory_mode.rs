//! Decides whose pages a resumed guest runs on: its own, or those that guests of its snapshot share.

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::MemoryMode;
use rekindle_settings as settings;

use super::known::Known;
use super::record::RecordedLife;
use super::references::Named as _;
use super::sandboxes::Sandboxes;
use super::spec::GuestSpec;

/// Number of guests of a snapshot from which on the next ones share its pages.
const SEVERAL: usize = 2;

impl Sandboxes {
    /// The mode of `count` new guests of a snapshot: the one that was asked for, or that of the setting. An error if guests
    /// of it cannot share and were to.
    pub(super) fn memory_mode(
        &self,
        asked: Option<MemoryMode>,
        known: &Known,
        count: usize,
    ) -> Answer<MemoryMode> {
        let spec = known.about.spec.as_ref();
        if let Some(asked) = asked {
            check_can_share(asked, spec)?;
            return Ok(asked);
        }
        if !spec.is_some_and(GuestSpec::can_share) || !self.host.kernel_shares() {
            return Ok(MemoryMode::Own);
        }
        Ok(match self.host.settings().memory_mode {
            settings::MemoryMode::Own => MemoryMode::Own,
            settings::MemoryMode::Shared => MemoryMode::Shared,
            settings::MemoryMode::Auto if count >= SEVERAL || self.has_several_guests(known) => {
                MemoryMode::Shared
            }
            settings::MemoryMode::Auto => MemoryMode::Own,
        })
    }

    fn has_several_guests(&self, known: &Known) -> bool {
        let runs_from_it = |life: &RecordedLife| match life {
            RecordedLife::Running(guest) => guest.base == Some(known.id()),
            RecordedLife::Paused
            | RecordedLife::Forked
            | RecordedLife::Drained { .. }
            | RecordedLife::Stopped { .. }
            | RecordedLife::Lost { .. }
            | RecordedLife::Undecided { .. } => false,
        };
        self.host.engine.has_image(&known.snapshot)
            || self.registry.all().iter().filter(|entry| runs_from_it(&entry.record().life)).count()
                >= SEVERAL
    }
}

fn check_can_share(mode: MemoryMode, spec: Option<&GuestSpec>) -> Answer<()> {
    match (mode, spec) {
        (MemoryMode::Shared, Some(spec)) if !spec.can_share() => {
            let why = "its guests cannot share their pages: these are the VMM's own, or huge ones. Leave memory_mode out, \
                       or say own";
            Err(Problem::new(Code::WrongState, why))
        }
        (MemoryMode::Shared | MemoryMode::Own, _) => Ok(()),
    }
}
