//! Names that are being given: two requests at the same time cannot give one name to two things.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::Name;
use uuid::Uuid;

/// The names of things that are being made.
#[derive(Debug, Default)]
pub(super) struct Names {
    reserved: Mutex<HashSet<Name>>,
}

/// A name that no other request gets, until the thing is there or this is dropped.
#[derive(Debug)]
pub(super) struct Reserved<'a> {
    names: &'a Names,
    name: Option<Name>,
}

impl Names {
    /// Takes `name` for a new `what` unless `holder` says who has it; the problem comes with that one.
    pub(super) fn reserve(
        &self,
        what: &str,
        name: Option<&Name>,
        holder: impl FnOnce(&Name) -> Option<Uuid>,
    ) -> Result<Reserved<'_>, (Problem, Option<Uuid>)> {
        let taken =
            |name: &Name| Problem::new(Code::NameTaken, format!("there is a {what} called {name:?} already"));
        let Some(name) = name else { return Ok(Reserved { names: self, name: None }) };
        if !self.reserved.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
            return Err((taken(name), None));
        }
        let reserved = Reserved { names: self, name: Some(name.clone()) };
        // Asked after the name is ours: its earlier owner, if any, has inserted its thing by now.
        match holder(name) {
            Some(holder) => Err((taken(name), Some(holder))),
            None => Ok(reserved),
        }
    }
}

impl Reserved<'_> {
    /// The name, if there is one.
    pub(super) fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.names.reserved.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_once() {
        let names = Names::default();
        let code = |name: &str, holder: Option<u128>| {
            let name: Name = name.parse().expect("it is a name");
            names
                .reserve("thing", Some(&name), |_| holder.map(Uuid::from_u128))
                .map_err(|(problem, _)| problem.code)
        };
        let first = code("a", None).expect("it is free");
        assert_eq!(code("a", None).err(), Some(Code::NameTaken));
        drop(first);
        assert!(code("a", None).is_ok());
        assert_eq!(code("b", Some(1)).err(), Some(Code::NameTaken));
        assert!(code("b", None).is_ok(), "a refused name is not kept");
    }
}
