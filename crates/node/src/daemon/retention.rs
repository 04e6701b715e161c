//! Which snapshots stay: the verdict of the setting `keep` on each, and the deletion of those that no rule keeps.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rekindle_api::types::{KeptSnapshot, Labels, SnapshotState};
use rekindle_settings::KeepRule;
use uuid::Uuid;

use super::about::images_of;
use super::clock::unix_ms;
use super::entry::Entry;
use super::known::Known;
use super::references::Named as _;
use super::sandboxes::Sandboxes;

/// The facts about a snapshot that rules ask for.
#[derive(Clone, Debug)]
struct Candidate {
    id: Uuid,
    labels: Labels,
    is_named: bool,
    /// The sandbox whose pauses are one line; a snapshot of none is a line of its own.
    line: Option<Uuid>,
    age_ms: u64,
    /// The need of this node for it, whatever rules say.
    needed: Option<String>,
}

impl Sandboxes {
    /// The verdict on each snapshot of this node, oldest first; nothing where no rules are set.
    pub(super) fn verdicts(&self) -> Vec<KeptSnapshot> {
        let rules = &self.host.settings().keep;
        if rules.is_empty() {
            return Vec::new();
        }
        let users = self.users();
        let candidates: Vec<_> = self.snapshots.all().iter().map(|known| candidate(known, &users)).collect();
        verdicts(rules, &candidates)
    }

    /// Deletes the snapshots that no rule keeps.
    pub(super) fn delete_what_is_not_kept(&self) {
        for verdict in self.verdicts().into_iter().filter(|verdict| !verdict.kept) {
            match self.delete_snapshot(&verdict.snapshot.into()) {
                Ok((id, _)) => {
                    tracing::info!(snapshot = %id, reason = verdict.reason, "deleted by the setting `keep`")
                }
                Err(error) => {
                    tracing::warn!(snapshot = %verdict.snapshot, %error, "a snapshot that is not kept is deleted later");
                }
            }
        }
    }

    /// The sandboxes that run from a snapshot or can go on from it, by snapshot.
    pub(super) fn users(&self) -> HashMap<Uuid, String> {
        let used = |entry: Arc<Entry>| {
            let (record, called) = (entry.record(), entry.called());
            [record.snapshot, record.origin()].into_iter().flatten().map(move |id| (id, called.clone()))
        };
        self.registry.all().into_iter().flat_map(used).collect()
    }
}

fn candidate(known: &Known, users: &HashMap<Uuid, String>) -> Candidate {
    let (id, state) = (known.id(), known.state());
    let needed = if let Some(sandbox) = users.get(&id) {
        Some(format!("{sandbox} goes on from it"))
    } else if images_of(&known.about).is_some() {
        Some("it is the images of a machine's disks".to_owned())
    } else if state == SnapshotState::Published && known.snapshot.status().seal_time.is_none() {
        Some("another node made it".to_owned())
    } else {
        (state != SnapshotState::Published).then(|| format!("it is {state}, not published"))
    };
    Candidate {
        id,
        labels: known.about.labels.clone(),
        is_named: known.about.name.is_some(),
        line: known.about.sandbox,
        age_ms: unix_ms().saturating_sub(known.snapshot.created_unix_ms()),
        needed,
    }
}

/// The verdict of `rules` on each of `candidates`, in their order.
fn verdicts(rules: &[KeepRule], candidates: &[Candidate]) -> Vec<KeptSnapshot> {
    let newest: Vec<BTreeSet<Uuid>> = rules.iter().map(|rule| newest_of_lines(rule, candidates)).collect();
    let verdict = |candidate: &Candidate| {
        let (kept, reason) = match &candidate.needed {
            Some(need) => (true, need.clone()),
            None => by_rules(rules.iter().zip(&newest), candidate),
        };
        KeptSnapshot { snapshot: candidate.id, kept, reason }
    };
    candidates.iter().map(verdict).collect()
}

fn by_rules<'a>(
    rules: impl Iterator<Item = (&'a KeepRule, &'a BTreeSet<Uuid>)>,
    candidate: &Candidate,
) -> (bool, String) {
    let mut last = None;
    for (rule, newest) in rules.filter(|(rule, _)| is_for(rule, candidate)) {
        if newest.contains(&candidate.id) {
            return (true, format!("it is among the newest {} of its line: `{rule}`", rule.newest));
        }
        if u128::from(candidate.age_ms) < rule.within.as_millis() {
            return (true, format!("it is not older than `{rule}` says"));
        }
        last = Some(rule);
    }
    match last {
        Some(rule) => (false, format!("no rule keeps it; the last one for it is `{rule}`")),
        None => (true, "no rule is for it".to_owned()),
    }
}

fn is_for(rule: &KeepRule, candidate: &Candidate) -> bool {
    let has = |(name, value): &(String, String)| candidate.labels.get(name) == Some(value);
    rule.labels.iter().all(has) && (rule.named || !candidate.is_named)
}

/// The snapshots that a rule keeps as the newest of their lines.
fn newest_of_lines(rule: &KeepRule, candidates: &[Candidate]) -> BTreeSet<Uuid> {
    let mut lines: BTreeMap<Uuid, Vec<&Candidate>> = BTreeMap::new();
    for candidate in candidates.iter().filter(|candidate| is_for(rule, candidate)) {
        lines.entry(candidate.line.unwrap_or(candidate.id)).or_default().push(candidate);
    }
    let newest = lines.into_values().flat_map(|mut line| {
        // Ids grow with time, also where a clock went back.
        line.sort_by_key(|candidate| Reverse(candidate.id));
        line.into_iter().take(rule.newest).map(|candidate| candidate.id).collect::<Vec<_>>()
    });
    newest.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const DAY_MS: u64 = 24 * 3600 * 1000;

    fn candidate(id: u128, line: u128, days: u64) -> Candidate {
        Candidate {
            id: Uuid::from_u128(id),
            labels: Labels::new(),
            is_named: false,
            line: Some(Uuid::from_u128(line)),
            age_ms: days * DAY_MS,
            needed: None,
        }
    }

    fn kept(rules: &[&str], candidates: &[Candidate]) -> Vec<u128> {
        let rules: Vec<KeepRule> = rules.iter().map(|rule| rule.parse().expect("it is a rule")).collect();
        let verdicts = verdicts(&rules, candidates);
        let kept = verdicts.iter().filter(|verdict| verdict.kept);
        kept.map(|verdict| verdict.snapshot.as_u128()).collect()
    }

    #[test]
    fn the_newest_of_each_line_and_the_young_are_kept() {
        let all = [candidate(1, 100, 9), candidate(2, 100, 8), candidate(3, 200, 9), candidate(4, 100, 1)];
        assert_eq!(kept(&["newest 1"], &all), [3, 4]);
        assert_eq!(kept(&["newest 2"], &all), [2, 3, 4]);
        assert_eq!(kept(&["within 8d"], &all), [4], "one of just this age is not younger");
        assert_eq!(kept(&["newest 1 within 9d"], &all), [2, 3, 4]);
        assert_eq!(kept(&["newest 0"], &all), [0; 0]);
    }

    #[test]
    fn a_snapshot_that_no_rule_is_for_is_kept_and_one_that_any_rule_keeps_too() {
        let label = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
        let blue = Candidate { labels: label.try_into().expect("a label"), ..candidate(1, 100, 9) };
        let all = [blue, candidate(2, 200, 9), candidate(3, 200, 8)];
        assert_eq!(kept(&["team=blue newest 0"], &all), [2, 3]);
        assert_eq!(kept(&["newest 1", "team=blue newest 0"], &all), [1, 3]);
        assert_eq!(kept(&["team=red newest 0"], &all), [1, 2, 3]);
    }

    #[test]
    fn a_name_or_a_need_keeps_a_snapshot_and_a_rule_for_names_ends_the_first() {
        let named = Candidate { is_named: true, ..candidate(1, 100, 9) };
        let needed = Candidate { needed: Some("a sandbox".to_owned()), ..candidate(2, 200, 9) };
        let all = [named, needed, candidate(3, 300, 9)];
        assert_eq!(kept(&["within 1d"], &all), [1, 2]);
        assert_eq!(kept(&["named within 1d"], &all), [2]);
    }
}
