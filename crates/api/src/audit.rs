//! A log line for each requested change: its caller, the change, the things it was about, and its outcome.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

use super::control::{Answer, Connected};
use super::problem::{Code, Problem};
use super::types::{
    Collection, DeletedSnapshot, Drain, FaultSocket, MovedSandbox, Sandbox, SandboxList, Snapshot,
};

/// Bytes of a path that are logged: far more than any route has.
const PATH_BYTES_MAX: usize = 256;

/// The caller at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Caller {
    /// A process of this machine.
    Local {
        /// Its user.
        uid: u32,
        /// Its number, where the kernel says it.
        pid: Option<i32>,
    },
    /// A client that comes over TCP.
    Remote {
        /// From where; none where the kernel does not say.
        address: Option<SocketAddr>,
    },
}

/// A change that is asked for. Its line is written once it is done and answered, also when the client is gone before.
#[derive(Clone, Debug)]
pub(crate) struct Audit(Arc<Change>);

#[derive(Debug)]
struct Change {
    caller: Option<Caller>,
    method: Method,
    path: String,
    outcome: Mutex<Option<Outcome>>,
}

#[derive(Clone, Debug, Default)]
struct Outcome {
    /// The reason of a refusal; none for a change that was made.
    refused: Option<(Code, String)>,
    things: Things,
}

/// The things a change was about.
#[derive(Clone, Debug, Default)]
pub(crate) struct Things {
    sandboxes: Vec<Uuid>,
    snapshots: Vec<Uuid>,
    fault_sockets: Vec<Uuid>,
}

/// A thing that is there no longer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Removed {
    /// A sandbox.
    Sandbox(Uuid),
    /// A snapshot.
    Snapshot(Uuid),
    /// A fault socket.
    FaultSocket(Uuid),
}

/// An answer to a change, which names the things it is about.
pub(crate) trait About {
    /// The things.
    fn things(&self) -> Things;
}

impl About for Sandbox {
    fn things(&self) -> Things {
        Things { sandboxes: vec![self.id], snapshots: self.origin.into_iter().collect(), ..Things::default() }
    }
}

impl About for SandboxList {
    fn things(&self) -> Things {
        let snapshots: std::collections::BTreeSet<Uuid> =
            self.sandboxes.iter().filter_map(|sandbox| sandbox.origin).collect();
        Things {
            sandboxes: self.sandboxes.iter().map(|sandbox| sandbox.id).collect(),
            snapshots: snapshots.into_iter().collect(),
            ..Things::default()
        }
    }
}

impl About for Snapshot {
    fn things(&self) -> Things {
        Things {
            sandboxes: self.sandbox.into_iter().collect(),
            snapshots: vec![self.id],
            ..Things::default()
        }
    }
}

impl About for MovedSandbox {
    fn things(&self) -> Things {
        Things { sandboxes: vec![self.sandbox], snapshots: vec![self.snapshot], ..Things::default() }
    }
}

impl About for Drain {
    fn things(&self) -> Things {
        Things {
            sandboxes: self.sandboxes.iter().map(|drained| drained.sandbox).collect(),
            snapshots: self.sandboxes.iter().filter_map(|drained| drained.snapshot).collect(),
            ..Things::default()
        }
    }
}

impl About for DeletedSnapshot {
    fn things(&self) -> Things {
        Things { snapshots: vec![self.snapshot], ..Things::default() }
    }
}

impl About for Collection {
    fn things(&self) -> Things {
        Things::default()
    }
}

impl About for FaultSocket {
    fn things(&self) -> Things {
        Things { snapshots: vec![self.snapshot], fault_sockets: vec![self.id], ..Things::default() }
    }
}

impl About for Removed {
    fn things(&self) -> Things {
        match *self {
            Self::Sandbox(id) => Things { sandboxes: vec![id], ..Things::default() },
            Self::Snapshot(id) => Things { snapshots: vec![id], ..Things::default() },
            Self::FaultSocket(id) => Things { fault_sockets: vec![id], ..Things::default() },
        }
    }
}

impl About for Connected {
    fn things(&self) -> Things {
        Things { sandboxes: vec![self.sandbox], ..Things::default() }
    }
}

/// A guest's commands and typed text: the path names the guest.
impl About for () {
    fn things(&self) -> Things {
        Things::default()
    }
}

impl About for serde_json::Value {
    fn things(&self) -> Things {
        Things::default()
    }
}

impl Audit {
    fn begin(request: &Request) -> Self {
        let mut path = request.uri().path().to_owned();
        path.truncate(path.floor_char_boundary(PATH_BYTES_MAX));
        Self(Arc::new(Change {
            caller: request.extensions().get::<Caller>().copied(),
            method: request.method().clone(),
            path,
            outcome: Mutex::default(),
        }))
    }

    /// Notes what came of the work.
    pub(crate) fn came_to<T: About>(&self, answer: &Answer<T>) {
        self.note(match answer {
            Ok(done) => Outcome { refused: None, things: done.things() },
            Err(problem) => Outcome::of(problem),
        });
    }

    /// Notes what was answered, unless the work has said it: then no work was begun.
    fn was_answered(&self, status: StatusCode, problem: Option<&Problem>) {
        let refused = || (Code::Internal, format!("it was answered with {status}"));
        self.note(match problem {
            Some(problem) => Outcome::of(problem),
            None if status.is_success() => Outcome::default(),
            None => Outcome { refused: Some(refused()), ..Outcome::default() },
        });
    }

    fn note(&self, outcome: Outcome) {
        self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(outcome);
    }
}

impl Outcome {
    fn of(problem: &Problem) -> Self {
        let Problem { code, sandboxes, snapshots, .. } = problem;
        let (sandboxes, snapshots) = (sandboxes.clone(), snapshots.clone());
        Self {
            refused: Some((*code, problem.body().detail)),
            things: Things { sandboxes, snapshots, ..Things::default() },
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let outcome = self.outcome.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let unanswered = || Outcome {
            refused: Some((
                Code::Abandoned,
                "the client went away before the request had come whole".to_owned(),
            )),
            ..Outcome::default()
        };
        let Outcome { refused, things } = outcome.unwrap_or_else(unanswered);
        let (code, detail) = refused.unzip();
        let (uid, pid, address) = match self.caller {
            Some(Caller::Local { uid, pid }) => (Some(uid), pid, None),
            Some(Caller::Remote { address }) => (None, None, address),
            None => (None, None, None),
        };
        // There is one token, and every client that passed over TCP has it.
        let is_by_token =
            matches!(self.caller, Some(Caller::Remote { .. })) && code != Some(Code::Unauthorized);
        tracing::info!(
            target: "audit",
            uid,
            pid,
            address = address.map(tracing::field::display),
            token = is_by_token.then_some("token"),
            method = %self.method,
            path = self.path,
            sandboxes = listed(&things.sandboxes),
            snapshots = listed(&things.snapshots),
            fault_sockets = listed(&things.fault_sockets),
            outcome = code.map_or("done", Code::name),
            detail,
            "change"
        );
    }
}

fn listed(ids: &[Uuid]) -> Option<String> {
    let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    (!ids.is_empty()).then(|| ids.join(","))
}

/// Has a line written for each request that may change something; verifying changes nothing.
pub(crate) async fn audited(mut request: Request, next: Next) -> Response {
    let is_change = !request.method().is_safe() && !request.uri().path().ends_with("/verify");
    if !is_change {
        return next.run(request).await;
    }
    let audit = Audit::begin(&request);
    request.extensions_mut().insert(audit.clone());
    let response = next.run(request).await;
    audit.was_answered(response.status(), response.extensions().get::<Problem>());
    response
}
