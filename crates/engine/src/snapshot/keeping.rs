//! Hands the memory of a snapshot without names to the keeper.

use std::io;

use super::progress::Captured;
use super::{Snapshot, Volume};
use crate::keep::KeptVolume;
use crate::records::Records;

impl Snapshot {
    /// Hands the memory of its pages to a new keeper, if they have no names.
    pub(crate) fn keep_again(&self) -> io::Result<()> {
        let Some(records) = &self.records else { return Ok(()) };
        match self.captured_now() {
            Some(Captured { kept, .. }) => {
                records.keep(self.id, self.volumes.iter().map(|volume| &volume.name), &kept)?;
            }
            None => self.keep_remote(records)?,
        }
        // It may have got its names meanwhile, and been forgotten by the keeper before this.
        if self.captured_now().is_none() && self.peer().is_none() {
            records.forget(self.id);
        }
        Ok(())
    }

    /// Hands the memory of its pages to the keeper; nothing is handed over once it has names.
    pub(crate) fn keep_remote(&self, records: &Records) -> io::Result<()> {
        let kept = |volume: &Volume| Some(volume.view.load().remote_pages()?.kept(volume.name.clone()));
        let volumes: io::Result<Vec<KeptVolume>> = self.volumes.iter().filter_map(kept).collect();
        match volumes? {
            none if none.is_empty() => Ok(()),
            volumes => records.keeper().keep(self.id, &volumes),
        }
    }
}
