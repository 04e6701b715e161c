//! Results of a campaign, as text and as JSON.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::phase::Phase;
use super::trouble::Trouble;
use crate::load::Findings;

/// Everything that is counted while the campaign goes on.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) rounds: u64,
    pub(crate) kills: BTreeMap<Phase, u64>,
    pub(crate) troubles: BTreeMap<Trouble, u64>,
    pub(crate) keeper_kills: u64,
    pub(crate) stalls: Vec<Duration>,
    /// Snapshots and sandboxes that were lost with the keeper, as they may, and said to be.
    pub(crate) lost_with_keeper: u64,
    /// Requests whose answer was lost.
    pub(crate) answers_lost: u64,
    pub(crate) guests_verified: u64,
    pub(crate) findings: Findings,
}

/// The campaign in numbers.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    rounds: u64,
    seed: u64,
    kills_by_phase: BTreeMap<&'static str, u64>,
    troubles: BTreeMap<&'static str, u64>,
    keeper_kills: u64,
    wrong_pages: u64,
    lost_snapshots: u64,
    hung_guests: u64,
    stall_seconds_p50: f64,
    stall_seconds_max: f64,
    lost_with_keeper: u64,
    answers_lost: u64,
    guests_verified: u64,
    wrong: Vec<String>,
}

impl Tally {
    /// Something was done in this phase.
    pub(crate) fn killed(&mut self, trouble: Trouble, phase: Phase) {
        *self.troubles.entry(trouble).or_default() += 1;
        *self.kills.entry(phase).or_default() += 1;
    }

    /// All of it as numbers.
    pub(crate) fn report(&self, seed: u64) -> Report {
        let kills = |phase: Phase| (phase.name(), self.kills.get(&phase).copied().unwrap_or_default());
        let troubles =
            |trouble: Trouble| (trouble.name(), self.troubles.get(&trouble).copied().unwrap_or_default());
        let mut stalls = self.stalls.clone();
        stalls.sort_unstable();
        Report {
            rounds: self.rounds,
            seed,
            kills_by_phase: Phase::ALL.into_iter().map(kills).collect(),
            troubles: Trouble::ALL.into_iter().map(troubles).collect(),
            keeper_kills: self.keeper_kills,
            wrong_pages: self.findings.wrong_pages,
            lost_snapshots: self.findings.lost_snapshots,
            hung_guests: self.findings.hung_guests,
            stall_seconds_p50: stalls.get(stalls.len() / 2).map_or(0.0, Duration::as_secs_f64),
            stall_seconds_max: stalls.last().map_or(0.0, Duration::as_secs_f64),
            lost_with_keeper: self.lost_with_keeper,
            answers_lost: self.answers_lost,
            guests_verified: self.guests_verified,
            wrong: self.findings.words.clone(),
        }
    }
}

impl Report {
    /// Writes it as JSON.
    pub(crate) fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }

    /// Prints it for people.
    pub(crate) fn print(&self) {
        let kills: Vec<String> =
            self.kills_by_phase.iter().map(|(phase, count)| format!("{phase} {count}")).collect();
        let troubles: Vec<String> =
            self.troubles.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("{} rounds with seed {}: {}", self.rounds, self.seed, troubles.join(", "));
        println!("in the middle of: {}", kills.join(", "));
        println!(
            "{} answers lost, {} keepers killed, {} things lost with them and said to be",
            self.answers_lost, self.keeper_kills, self.lost_with_keeper
        );
        println!(
            "{} guests verified: {} wrong pages, {} lost snapshots, {} hung guests; stall {:.3} s at the median, \
             {:.3} s at most",
            self.guests_verified,
            self.wrong_pages,
            self.lost_snapshots,
            self.hung_guests,
            self.stall_seconds_p50,
            self.stall_seconds_max
        );
        self.wrong.iter().for_each(|words| println!("wrong: {words}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_every_phase_and_the_median_of_stalls() {
        let mut tally = Tally { rounds: 3, ..Tally::default() };
        tally.killed(Trouble::DaemonKilled, Phase::Pause);
        tally.killed(Trouble::KeeperKilled, Phase::Pause);
        tally.stalls = [3, 1, 2].map(Duration::from_secs).to_vec();
        let report = serde_json::to_value(tally.report(7)).expect("numbers");
        assert_eq!(report["kills_by_phase"].as_object().expect("an object").len(), Phase::ALL.len());
        assert_eq!(report["kills_by_phase"]["pause"], 2);
        assert_eq!(report["troubles"].as_object().expect("an object").len(), Trouble::ALL.len());
        assert_eq!(report["troubles"]["keeper_killed"], 1);
        assert_eq!(report["stall_seconds_p50"], 2.0);
        assert_eq!(report["stall_seconds_max"], 3.0);
        assert_eq!(report["seed"], 7);
    }
}
