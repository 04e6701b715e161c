//! An index of things by id and by name: finding one by either takes as long among many as among few.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use rekindle_api::control::Answer;
use rekindle_api::types::Reference;
use uuid::Uuid;

use super::references::{Named, find};

/// Things, oldest first.
#[derive(Debug)]
pub(super) struct Index<T> {
    by_id: BTreeMap<Uuid, T>,
    /// Snapshots of other nodes may have the name of one that is here.
    by_name: HashMap<String, BTreeSet<Uuid>>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { by_id: BTreeMap::new(), by_name: HashMap::new() }
    }
}

impl<T: Named> Index<T> {
    /// Puts a thing in, in place of the one with its id.
    pub(super) fn insert(&mut self, thing: T) {
        self.remove(thing.id());
        if let Some(name) = thing.name() {
            self.by_name.entry(name.to_owned()).or_default().insert(thing.id());
        }
        self.by_id.insert(thing.id(), thing);
    }

    /// Takes a thing out.
    pub(super) fn remove(&mut self, id: Uuid) {
        let Some(thing) = self.by_id.remove(&id) else { return };
        let Some(name) = thing.name() else { return };
        if let Some(ids) = self.by_name.get_mut(name) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_name.remove(name);
            }
        }
    }

    /// The thing with an id.
    pub(super) fn get(&self, id: Uuid) -> Option<&T> {
        self.by_id.get(&id)
    }

    /// The number of things.
    pub(super) fn count(&self) -> usize {
        self.by_id.len()
    }

    /// The oldest thing with a name.
    pub(super) fn named(&self, name: &str) -> Option<&T> {
        self.get(*self.by_name.get(name)?.first()?)
    }

    /// The one thing that `reference` means; only a part of an id is looked for among all of them.
    pub(super) fn find(&self, what: &str, reference: &Reference) -> Answer<&T> {
        let by_id = Uuid::try_parse(reference).ok().and_then(|id| self.get(id));
        match by_id.or_else(|| self.named(reference)) {
            Some(found) => Ok(found),
            None => find(what, reference, self.by_id.values()),
        }
    }

    /// All of them, or those after an id, oldest first.
    pub(super) fn after(&self, id: Option<Uuid>) -> impl Iterator<Item = &T> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_id.range((from, Bound::Unbounded)).map(|(_, thing)| thing)
    }
}

#[cfg(test)]
mod tests {
    use rekindle_api::problem::Code;

    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Thing(u128, Option<&'static str>);

    impl Named for Thing {
        fn id(&self) -> Uuid {
            Uuid::from_u128(self.0)
        }

        fn name(&self) -> Option<&str> {
            self.1
        }
    }

    #[test]
    fn a_thing_is_found_by_id_by_name_and_by_a_part_of_its_id() {
        let mut index = Index::default();
        let (first, second) = (Thing(7 << 96, Some("a")), Thing(8 << 96, None));
        index.insert(first.clone());
        index.insert(second.clone());
        let found = |index: &Index<Thing>, reference: &str| {
            index
                .find("thing", &reference.parse().expect("it can be one"))
                .cloned()
                .map_err(|problem| problem.code)
        };
        assert_eq!(found(&index, &first.id().to_string()), Ok(first.clone()));
        assert_eq!(found(&index, "a"), Ok(first.clone()));
        assert_eq!(found(&index, "00000008"), Ok(second));
        index.remove(first.id());
        assert_eq!(found(&index, "a"), Err(Code::NotFound));
    }

    #[test]
    fn a_name_that_two_things_have_means_the_older_one_and_stays_when_that_goes() {
        let mut index = Index::default();
        for id in [3, 1, 2] {
            index.insert(Thing(id, Some("a")));
        }
        assert_eq!(index.named("a"), Some(&Thing(1, Some("a"))));
        index.remove(Uuid::from_u128(1));
        assert_eq!(index.named("a"), Some(&Thing(2, Some("a"))));
        let after: Vec<_> = index.after(Some(Uuid::from_u128(2))).collect();
        assert_eq!(after, [&Thing(3, Some("a"))]);
    }
}
