//! What the keeper holds of a guest that is served: the descriptors of its epoch.

use std::os::fd::AsFd as _;

use anyhow::Context as _;
use rekindle_engine::serve::{Epoch, EpochFacts, KeptEpoch};
use rekindle_keeper::{Held, KeeperClient, KeeperError};
use rekindle_vmm::process::MEMORY;
use uuid::Uuid;

use super::keeping::{Keeping, take_fd};
use super::keys::guest_key;

/// The names of descriptors under a guest's key.
const USERFAULTFD: &str = "userfaultfd";
const STREAM: &str = "stream";
const JOURNAL: &str = "journal";
const IMAGE: &str = "image";

/// Hands to the keeper what the guest's faults reach us by, before the first of them is answered.
pub(super) fn keep_epoch(keeping: &Keeping, guest: Uuid, epoch: &Epoch) -> anyhow::Result<EpochFacts> {
    let kept = epoch.kept().context("duplicating the guest's descriptors")?;
    put_epoch(&keeping.client(), &guest_key(guest), &kept)?;
    Ok(kept.facts)
}

/// Hands to the keeper what a guest's faults reach us by.
pub(super) fn put_epoch(keeper: &KeeperClient, key: &str, kept: &KeptEpoch) -> Result<(), KeeperError> {
    let mut fds = vec![
        (USERFAULTFD, kept.userfaultfd.as_fd()),
        (STREAM, kept.stream.as_fd()),
        (JOURNAL, kept.journal.as_fd()),
    ];
    fds.extend(kept.memfd.as_ref().map(|memfd| (MEMORY, memfd.as_fd())));
    fds.extend(kept.image.as_ref().map(|image| (IMAGE, image.as_fd())));
    keeper.add(key, &fds)
}

/// The kept parts of a guest that is served, from the keeper.
pub(super) fn kept_epoch(held: &mut Held, facts: EpochFacts) -> std::io::Result<KeptEpoch> {
    Ok(KeptEpoch {
        facts,
        userfaultfd: take_fd(held, USERFAULTFD)?,
        memfd: held.fds.remove(MEMORY),
        image: held.fds.remove(IMAGE),
        stream: take_fd(held, STREAM)?,
        journal: take_fd(held, JOURNAL)?,
    })
}
