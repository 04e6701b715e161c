//! Operations of guests and their owners: write, give back, read, pause, checkpoint, resume, fork, delete.

use rekindle_engine::geometry::GuestPages;
use rekindle_engine::read_plan::{ReadError, ReadPlan};
use rekindle_kernel::PAGE_BYTES;

use super::known::{Known, Plan};
use super::machine::{Machine, PausedMachine};
use super::{GUESTS_MAX, History, SNAPSHOTS_MAX};
use crate::guest::{GuestError, Tracking};

impl History {
    pub(super) fn write_pages(&mut self) -> Result<(), String> {
        let Some(guest) = self.some_guest() else { return self.resume() };
        let (volume, run) = self.some_run(40);
        let kind = self.random.below(6);
        self.say(format_args!("guest {guest} writes pages {run:?} of volume {volume}, kind {kind}"));
        for page in run.iter() {
            let mut bytes = vec![0; PAGE_BYTES];
            let (offset, length) = match kind {
                // Zeroes; the present bytes; one byte; half compressible; no pattern.
                0 => (0, PAGE_BYTES),
                1 => {
                    bytes.copy_from_slice(self.guests[guest].volume(volume).expected().page(page));
                    (0, PAGE_BYTES)
                }
                2 => {
                    bytes[0] = 1;
                    (self.random.position(PAGE_BYTES), 1)
                }
                3 => {
                    self.random.fill(&mut bytes[..PAGE_BYTES / 2]);
                    (0, PAGE_BYTES)
                }
                _ => {
                    self.random.fill(&mut bytes);
                    (0, PAGE_BYTES)
                }
            };
            let engine = self.engine.as_ref().expect("there is none only while it is started anew");
            let done = self.guests[guest].volume(volume).write(engine, page, offset, &bytes[..length]);
            if self.is_stalled(done)? {
                return Ok(());
            }
        }
        Ok(())
    }

    pub(super) fn remove_pages(&mut self) -> Result<(), String> {
        let Some(guest) = self.some_guest() else { return self.resume() };
        let (volume, run) = self.some_run(60);
        self.say(format_args!("guest {guest} gives back pages {run:?} of volume {volume}"));
        self.guests[guest].volume(volume).remove(run);
        Ok(())
    }

    pub(super) fn guest_reads(&mut self) -> Result<(), String> {
        let Some(guest) = self.some_guest() else { return self.resume() };
        let (volume, run) = self.some_run(300);
        self.read_in_guest(guest, volume, run)
    }

    pub(super) fn read_in_guest(
        &mut self,
        guest: usize,
        volume: usize,
        run: GuestPages,
    ) -> Result<(), String> {
        self.say(format_args!("guest {guest} reads pages {run:?} of volume {volume}"));
        self.tally.pages += u64::from(run.count());
        let engine = self.engine.as_ref().expect("there is none only while it is started anew");
        let done = self.guests[guest].volume(volume).read(engine, run);
        self.is_stalled(done).map(|_| ())
    }

    pub(super) fn snapshot_is_read(&mut self) -> Result<(), String> {
        if self.snapshots.is_empty() {
            return self.pause();
        }
        let snapshot = self.random.position(self.snapshots.len());
        let (volume, run) = self.some_run(300);
        self.read_in_snapshot(snapshot, volume, run)
    }

    pub(super) fn read_in_snapshot(
        &mut self,
        position: usize,
        volume: usize,
        run: GuestPages,
    ) -> Result<(), String> {
        self.say(format_args!("snapshot {position} is read, pages {run:?} of volume {volume}"));
        self.read(self.planned(position, volume, run))
    }

    fn planned(&self, position: usize, volume: usize, pages: GuestPages) -> Plan {
        let Known { snapshot, contents } = &self.snapshots[position];
        let plan = ReadPlan::new(&snapshot.volumes()[volume].view, pages);
        Plan { plan, content: contents[volume].clone(), pages }
    }

    pub(super) fn read_is_planned(&mut self) -> Result<(), String> {
        if self.snapshots.is_empty() || self.plans.len() > 3 {
            return Ok(());
        }
        let position = self.random.position(self.snapshots.len());
        let (volume, run) = self.some_run(300);
        self.say(format_args!("a read of snapshot {position} is planned, pages {run:?} of volume {volume}"));
        let plan = self.planned(position, volume, run);
        self.plans.push(plan);
        Ok(())
    }

    pub(super) fn plan_is_read(&mut self) -> Result<(), String> {
        let Some(plan) = self.plans.pop() else { return Ok(()) };
        self.say(format_args!("a planned read is done, pages {:?}", plan.pages));
        self.read(plan)
    }

    fn read(&mut self, plan: Plan) -> Result<(), String> {
        let mut found = vec![0; usize::try_from(plan.pages.bytes()).expect("64 bits")];
        self.tally.pages += u64::from(plan.pages.count());
        let done = plan.plan.read(self.engine().fetcher(), &mut found).map_err(GuestError::from);
        let judged = done.and_then(|()| Ok(plan.content.check(plan.pages, &found)?));
        self.is_stalled(judged).map(|_| ())
    }

    pub(super) fn pause(&mut self) -> Result<(), String> {
        let Some(position) = self.some_guest() else { return self.resume() };
        if self.snapshots.len() >= SNAPSHOTS_MAX {
            return self.delete();
        }
        let tracking = if self.random.percent(50) { Tracking::Exact } else { Tracking::Resident };
        self.say(format_args!(
            "guest {position} is paused as snapshot {}, {tracking:?}",
            self.snapshots.len()
        ));
        match self.guests.swap_remove(position).pause(self.engine(), tracking) {
            Ok(PausedMachine { snapshot, contents, vmms }) => {
                if self.random.percent(30) {
                    self.vmms.extend(vmms);
                }
                self.tally.pauses += 1;
                self.remember(Known { snapshot, contents })?;
                if self.random.percent(50) { self.resume_from(self.snapshots.len() - 1) } else { Ok(()) }
            }
            Err((guest, why)) => {
                self.say(format_args!("... refused: {why}"));
                self.guests.push(guest);
                Ok(())
            }
        }
    }

    pub(super) fn checkpoint(&mut self) -> Result<(), String> {
        let Some(guest) = self.some_guest() else { return self.resume() };
        if self.snapshots.len() >= SNAPSHOTS_MAX {
            return self.delete();
        }
        let tracking = if self.random.percent(50) { Tracking::Exact } else { Tracking::Resident };
        self.say(format_args!(
            "guest {guest} is checkpointed as snapshot {}, {tracking:?}",
            self.snapshots.len()
        ));
        let engine = self.engine.as_ref().expect("there is none only while it is started anew");
        match self.guests[guest].checkpoint(engine, tracking) {
            Ok((snapshot, contents)) => {
                self.tally.checkpoints += 1;
                self.remember(Known { snapshot, contents })
            }
            Err(why) => {
                self.say(format_args!("... refused: {why}"));
                Ok(())
            }
        }
    }

    /// Remembers a new snapshot, in place of another one if there are many.
    pub(super) fn remember(&mut self, known: Known) -> Result<(), String> {
        if self.snapshots.len() >= SNAPSHOTS_MAX {
            self.delete()?;
        }
        self.snapshots.push(known);
        Ok(())
    }

    pub(super) fn resume(&mut self) -> Result<(), String> {
        if self.snapshots.is_empty() {
            return Ok(());
        }
        let position = self.random.position(self.snapshots.len());
        self.resume_from(position)
    }

    fn resume_from(&mut self, position: usize) -> Result<(), String> {
        if self.guests.len() >= GUESTS_MAX {
            let killed = self.random.position(self.guests.len());
            self.say(format_args!("guest {killed} is killed"));
            drop(self.guests.swap_remove(killed));
        }
        self.say(format_args!("guest {} is resumed from snapshot {position}", self.guests.len()));
        let Known { snapshot, contents } = &self.snapshots[position];
        let machine = Machine::resume(self.engine(), snapshot, contents);
        self.guests.push(machine);
        Ok(())
    }

    pub(super) fn delete(&mut self) -> Result<(), String> {
        if self.snapshots.len() < 2 {
            return Ok(());
        }
        let position = self.random.position(self.snapshots.len());
        self.say(format_args!("snapshot {position} is deleted"));
        let deleted = self.snapshots.swap_remove(position);
        let refused = self.delete_somehow(deleted)?;
        self.snapshots.extend(refused);
        Ok(())
    }

    fn some_guest(&mut self) -> Option<usize> {
        (!self.guests.is_empty()).then(|| self.random.position(self.guests.len()))
    }

    /// True if the guest is stalled, which is allowed only while the store is away or wrong, or where the catalog lied about
    /// an ancestor's record.
    fn is_stalled(&mut self, done: Result<(), GuestError>) -> Result<bool, String> {
        match done {
            Ok(()) => Ok(false),
            Err(GuestError::Stalled(error)) if self.may_stall(&error) => {
                self.tally.stalls += 1;
                Ok(true)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    fn may_stall(&self, error: &ReadError) -> bool {
        match error {
            ReadError::Nowhere { .. } if self.catalog_lied => true,
            ReadError::Nowhere { .. } | ReadError::Fetch(_) | ReadError::Lost { .. } => {
                !self.outage.is_empty() || !self.wrong_objects.is_empty()
            }
        }
    }
}
