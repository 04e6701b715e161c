//! Faults of a store or a server, which last as long as a test wants: rules say which operations they hit.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

/// Operations of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A multipart upload is begun.
    Begin,
    /// An object or a part is written, or a multipart upload is completed.
    Put,
    /// An object, or a range of one, is read.
    Get,
    /// An object is deleted.
    Delete,
    /// Objects are listed by a prefix.
    List,
}

/// A fault and the operations that it hits.
#[derive(Debug, Clone, Copy)]
pub struct Rule<Fault> {
    /// The operation that it hits; none for all.
    pub on: Option<Operation>,
    /// The beginning of the object names that it hits, or of the prefix of a list; empty for all.
    pub under: &'static str,
    /// The fault.
    pub fault: Fault,
    /// Number of such operations that succeed first.
    pub after: u32,
    /// Number of operations that are then hit.
    pub times: u32,
}

impl<Fault> Rule<Fault> {
    /// Hits every such operation.
    pub fn always(on: Operation, under: &'static str, fault: Fault) -> Self {
        Self::next(u32::MAX, on, under, fault)
    }

    /// Hits one operation.
    pub fn once(on: Operation, under: &'static str, fault: Fault) -> Self {
        Self::next(1, on, under, fault)
    }

    /// Hits the next `times` operations.
    pub fn next(times: u32, on: Operation, under: &'static str, fault: Fault) -> Self {
        Self { on: Some(on), under, fault, after: 0, times }
    }
}

/// The rules of one store, and the operations that it was asked for. Clones are those of the same store.
#[derive(Debug)]
pub struct Rules<Fault>(Arc<Shared<Fault>>);

#[derive(Debug)]
struct Shared<Fault> {
    state: Mutex<State<Fault>>,
    /// Counts changes of the state, so that those who wait for one look again.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State<Fault> {
    next: RuleNumber,
    active: Vec<Active<Fault>>,
    calls: Vec<(Operation, String)>,
    struck: usize,
    stalled: usize,
}

/// Number of a rule in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RuleNumber(u64);

#[derive(Debug)]
struct Active<Fault> {
    number: RuleNumber,
    rule: Rule<Fault>,
    seen: u32,
}

/// A rule that holds until this is dropped.
#[derive(Debug)]
#[must_use = "dropped, the fault ends"]
pub struct Injected<Fault> {
    rules: Rules<Fault>,
    number: RuleNumber,
}

impl<Fault> Clone for Rules<Fault> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Fault> Default for Rules<Fault> {
    fn default() -> Self {
        let (active, calls) = (Vec::new(), Vec::new());
        let state = State { next: RuleNumber(0), active, calls, struck: 0, stalled: 0 };
        Self(Arc::new(Shared { state: Mutex::new(state), changes: watch::Sender::new(0) }))
    }
}

impl<Fault> Rules<Fault> {
    /// Applies `rule` until the result is dropped.
    pub fn inject(&self, rule: Rule<Fault>) -> Injected<Fault> {
        let mut state = self.state();
        let number = state.next;
        state.next = RuleNumber(number.0 + 1);
        state.active.push(Active { number, rule, seen: 0 });
        Injected { rules: self.clone(), number }
    }

    /// Number of calls of an operation on objects whose names start with `under`.
    pub fn calls(&self, on: Operation, under: &str) -> usize {
        let called = |(operation, name): &&(Operation, String)| *operation == on && name.starts_with(under);
        self.state().calls.iter().filter(called).count()
    }

    /// Number of operations that were hit by a fault.
    pub fn struck(&self) -> usize {
        self.state().struck
    }

    /// Blocks until some operation waits for the end of its fault.
    pub fn wait_stalled(&self) {
        self.wait_until(|rules| rules.state().stalled > 0);
    }

    /// Blocks until there were `times` calls of an operation on objects whose names start with `under`.
    pub fn wait_calls(&self, on: Operation, under: &str, times: usize) {
        self.wait_until(|rules| rules.calls(on, under) >= times);
    }

    /// Blocks until `reached` says so, which is asked after each change.
    pub(crate) fn wait_until(&self, reached: impl Fn(&Self) -> bool) {
        let mut changes = self.0.changes.subscribe();
        let runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
        runtime.block_on(async {
            while !reached(self) {
                changes.changed().await.expect("the sender is ours");
            }
        });
    }

    /// Notes a call.
    pub(crate) fn called(&self, on: Operation, name: &str) {
        self.state().calls.push((on, name.to_owned()));
        self.changed();
    }

    /// Waits until the rule is over.
    pub(crate) async fn ended(&self, number: RuleNumber) {
        let mut changes = self.0.changes.subscribe();
        self.state().stalled += 1;
        self.changed();
        while self.state().active.iter().any(|active| active.number == number) {
            changes.changed().await.expect("the sender is ours");
        }
        self.state().stalled -= 1;
    }

    /// Lets those who wait look again.
    pub(crate) fn changed(&self) {
        self.0.changes.send_modify(|changes| *changes += 1);
    }

    fn state(&self) -> MutexGuard<'_, State<Fault>> {
        self.0.state.lock().expect("no thread panics while it holds a lock")
    }
}

impl<Fault: Copy> Rules<Fault> {
    /// The fault that hits this operation.
    pub(crate) fn strike(&self, on: Operation, name: &str) -> Option<(RuleNumber, Fault)> {
        let mut state = self.state();
        let struck = state.active.iter_mut().find_map(|active| active.strike(on, name));
        state.struck += usize::from(struck.is_some());
        struck
    }
}

impl<Fault: Copy> Active<Fault> {
    /// Counts an operation that the rule is about; the fault, if it is the operation's turn.
    fn strike(&mut self, on: Operation, name: &str) -> Option<(RuleNumber, Fault)> {
        let Rule { under, fault, after, times, .. } = self.rule;
        if self.rule.on.is_some_and(|its| its != on) || !name.starts_with(under) {
            return None;
        }
        self.seen += 1;
        (self.seen > after && self.seen - after <= times).then_some((self.number, fault))
    }
}

impl<Fault> Drop for Injected<Fault> {
    fn drop(&mut self) {
        self.rules.state().active.retain(|active| active.number != self.number);
        self.rules.changed();
    }
}
