//! A node with one snapshot on it, which most tests begin with.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use rekindle_engine::engine::Engine;
use rekindle_engine::handover::Handover;
use rekindle_engine::serve::{Epoch, FaultServer, ServeOptions};
use rekindle_engine::snapshot::Snapshot;
use rekindle_testkit::sandbox::{Paused, Sandbox};
use rekindle_testkit::stores::{Fault, Faults, Injected, Operation, Rule};
use rekindle_vmm::process::{GuestOptions, GuestShape, ProcessGuest};

use super::{
    Case, LIMIT, Node, assert_resumes, filled_snapshot, pause, program, resume, state_of, wait_published,
};

/// A node, and a snapshot on it of a guest that was just filled.
pub(crate) struct FilledNode {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) node: Node,
    pub(crate) case: Case,
}

/// The snapshot in the store, opened on a node that has nothing of it and whose store can be told to fail.
pub(crate) struct Cold {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) engine: Engine,
    pub(crate) faults: Faults,
    pub(crate) shape: GuestShape,
}

impl FilledNode {
    /// The guest was one of `case`.
    pub(crate) fn of(case: &Case) -> Self {
        let node = Node::start();
        let snapshot = filled_snapshot(&node.engine, &case.shape, 1);
        Self { snapshot, node, case: case.clone() }
    }

    /// The guest was the usual one.
    pub(crate) fn usual() -> Self {
        Self::of(&Case::usual())
    }

    /// A guest of the snapshot.
    pub(crate) fn resume(&self) -> Sandbox {
        resume(&self.node.engine, &self.snapshot, &self.case.shape)
    }

    pub(crate) fn pause(&self, sandbox: Sandbox) -> Paused {
        pause(&self.node.engine, sandbox)
    }

    /// A guest of this or a later snapshot runs, and every page of it is right.
    pub(crate) fn assert_resumes(&self, snapshot: &Arc<Snapshot>) {
        assert_resumes(&self.node.engine, snapshot, &self.case.shape);
    }

    /// A guest that has handed its memory over, and is not served yet.
    pub(crate) fn handed_over(&self) -> (ProcessGuest, Handover) {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("handover");
        let listener = UnixListener::bind(&socket).expect("the socket is new");
        let arguments = self.case.guest_arguments(socket);
        let guest =
            ProcessGuest::spawn(&GuestOptions::program(program(), arguments)).expect("a guest starts");
        let (stream, _) = listener.accept().expect("the guest has connected");
        let pages = self.snapshot.memory().pages();
        (guest, Handover::receive(stream, pages, LIMIT).expect("one message"))
    }

    pub(crate) fn serve(&self, handover: Handover, options: ServeOptions) -> FaultServer {
        let (view, fetcher) = (Arc::clone(self.snapshot.memory()), self.node.engine.fetcher().clone());
        FaultServer::start(view, handover, fetcher, options).expect("serves")
    }

    pub(crate) fn serve_again(&self, epoch: Epoch, options: ServeOptions) -> FaultServer {
        let (view, fetcher) = (Arc::clone(self.snapshot.memory()), self.node.engine.fetcher().clone());
        FaultServer::resume(view, epoch, fetcher, options).expect("serves again")
    }

    /// A guest with the snapshot's state, and the server of its pages.
    pub(crate) fn restored(&self, options: ServeOptions) -> (ProcessGuest, FaultServer) {
        let (mut guest, handover) = self.handed_over();
        let server = self.serve(handover, options);
        guest.control.restore(state_of(&self.snapshot)).expect("restores");
        (guest, server)
    }

    /// The snapshot, published and opened elsewhere.
    pub(crate) fn cold(&self) -> Cold {
        wait_published(&self.snapshot);
        let (engine, faults) = self.node.elsewhere_with_faults("second");
        let snapshot = engine.open(self.snapshot.id()).expect("it was published");
        Cold { snapshot, engine, faults, shape: self.case.shape.clone() }
    }
}

impl Cold {
    /// A guest of the snapshot.
    pub(crate) fn resume(&self) -> Sandbox {
        resume(&self.engine, &self.snapshot, &self.shape)
    }

    /// From now on this many more reads of the store succeed, and then none until the answer is dropped.
    pub(crate) fn away_after(&self, reads: u32) -> Injected {
        self.faults.inject(Rule { after: reads, ..Rule::always(Operation::Get, "", Fault::Fail) })
    }
}
