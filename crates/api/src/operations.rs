//! The table of operations: everything that the control API does, each entry once.
//!
//! The server answers these, the client asks for these, and the OpenAPI document describes these.

mod going_on;
mod placing;
mod talking;

use super::operation::{
    AnyJson, Body, Done, EventStreamOf, InQuery, Json, JsonArray, Measurements, NoInput, Nothing,
    OfFaultSocket, OfSandbox, OfSnapshot, Operation,
};
use super::problem::Code;
use super::types::{
    CaptureMemory, CheckpointSandbox, Collect, Collection, CreateSandbox, DeletedSnapshot, Drain, DrainNode,
    Event, EventsQuery, FaultSocket, Health, KeptSnapshot, ListQuery, OpenFaultSocket, PauseSandbox,
    Placement, Readiness, ResumeSandbox, ResumeSnapshot, Sandbox, SandboxList, Snapshot, SnapshotList,
    SnapshotUsage, StoredSnapshotList, Usage, Verification, Version, WaitQuery, WithdrawnSnapshotList,
};

pub(crate) use going_on::{FORK_SANDBOX, MOVE_SANDBOX};
pub(crate) use placing::{SHOW_NODE_PLACEMENT, SHOW_PLACEMENT};
pub(crate) use talking::{CONNECT_SANDBOX, READ_CONSOLE, TELL_GUEST, TYPE_AT_CONSOLE};

/// Kinds of problems of an operation that ends a guest, or only changes records.
const OF_RECORDS: &[Code] = &[Code::WrongState, Code::GuestFailed, Code::KeeperFailed, Code::DiskFailed];

/// Of one that reads a snapshot, which may have to be opened from the store first.
const OF_READING: &[Code] = &[
    Code::NotYet,
    Code::WrongState,
    Code::NoKey,
    Code::StoreFailed,
    Code::Lost,
    Code::KeeperFailed,
    Code::DiskFailed,
];

/// Of one that brings a guest up.
const OF_GUESTS: &[Code] = &[
    Code::NotYet,
    Code::NameTaken,
    Code::WrongState,
    Code::Misfit,
    Code::Drained,
    Code::NoKey,
    Code::NoRam,
    Code::GuestFailed,
    Code::StoreFailed,
    Code::Lost,
    Code::KeeperFailed,
    Code::DiskFailed,
];

/// Of one that makes guests of a snapshot, which another node may have.
const OF_RESUMES: &[Code] = &[
    Code::NotYet,
    Code::NameTaken,
    Code::WrongState,
    Code::Misfit,
    Code::Drained,
    Code::NoKey,
    Code::NoRam,
    Code::GuestFailed,
    Code::StoreFailed,
    Code::PeerFailed,
    Code::Lost,
    Code::KeeperFailed,
    Code::DiskFailed,
];

/// Of one that takes a snapshot, and perhaps brings guests up on it.
const OF_PAUSES: &[Code] = &[
    Code::NotYet,
    Code::NameTaken,
    Code::WrongState,
    Code::Misfit,
    Code::Drained,
    Code::NoKey,
    Code::NoRam,
    Code::TooManyUnsealed,
    Code::TooManyUnpublished,
    Code::GuestFailed,
    Code::StoreFailed,
    Code::Lost,
    Code::KeeperFailed,
    Code::DiskFailed,
];

/// Of one whose body names a snapshot and brings a guest up on it.
const OF_GUESTS_ON_NAMED: &[Code] = &[
    Code::NotFound,
    Code::AmbiguousReference,
    Code::NotYet,
    Code::WrongState,
    Code::Misfit,
    Code::Drained,
    Code::NoKey,
    Code::NoRam,
    Code::GuestFailed,
    Code::StoreFailed,
    Code::Lost,
    Code::KeeperFailed,
    Code::DiskFailed,
];

/// Of one whose body names a process and perhaps a parent, and that takes a snapshot.
const OF_CAPTURES: &[Code] = &[
    Code::NotFound,
    Code::AmbiguousReference,
    Code::NameTaken,
    Code::WrongState,
    Code::NoKey,
    Code::NoRam,
    Code::TooManyUnsealed,
    Code::TooManyUnpublished,
    Code::GuestFailed,
    Code::StoreFailed,
    Code::Lost,
    Code::KeeperFailed,
    Code::DiskFailed,
];

/// Answer of an operation that makes a snapshot.
const MADE_SNAPSHOT: &str = "The snapshot; its path is in `Location`";

pub(crate) const CREATE_SANDBOX: Operation<Nothing, Body<CreateSandbox>, Json<Sandbox>> =
    Operation::post("create_sandbox", "/v1/sandboxes", "sandboxes")
        .does("Starts a sandbox on empty memory.")
        .keyed()
        .answers(201, "The sandbox; its path is in `Location`")
        .fails(OF_GUESTS)
        .located(|made: &Sandbox| SHOW_SANDBOX.path_of(&made.id.to_string()));

pub(crate) const LIST_SANDBOXES: Operation<Nothing, InQuery<ListQuery>, Json<SandboxList>> =
    Operation::get("list_sandboxes", "/v1/sandboxes", "sandboxes")
        .does("Lists the sandboxes, oldest first.")
        .answers(200, "A page of them");

pub(crate) const SHOW_SANDBOX: Operation<OfSandbox, NoInput, Json<Sandbox>> =
    Operation::get("show_sandbox", "/v1/sandboxes/{reference}", "sandboxes")
        .does("Shows one sandbox.")
        .answers(200, "The sandbox");

pub(crate) const REMOVE_SANDBOX: Operation<OfSandbox, NoInput, Done> =
    Operation::delete("remove_sandbox", "/v1/sandboxes/{reference}", "sandboxes")
        .does("Ends a sandbox's guest if it runs and forgets the sandbox; its snapshots stay.")
        .answers(204, "It is gone")
        .fails(OF_RECORDS);

pub(crate) const PAUSE_SANDBOX: Operation<OfSandbox, Body<PauseSandbox>, Json<Snapshot>> =
    Operation::post("pause_sandbox", "/v1/sandboxes/{reference}/pause", "sandboxes")
        .does("Pauses a sandbox into a snapshot, which can be resumed at once.")
        .keyed()
        .with_optional_body()
        .answers(201, MADE_SNAPSHOT)
        .fails(OF_PAUSES)
        .located(path_of_snapshot);

pub(crate) const CHECKPOINT_SANDBOX: Operation<OfSandbox, Body<CheckpointSandbox>, Json<Snapshot>> =
    Operation::post("checkpoint_sandbox", "/v1/sandboxes/{reference}/checkpoint", "sandboxes")
        .does("Takes a snapshot of a running sandbox, which goes on in the same VMM.")
        .keyed()
        .with_optional_body()
        .answers(201, MADE_SNAPSHOT)
        .fails(OF_PAUSES)
        .located(path_of_snapshot);

pub(crate) const RESUME_SANDBOX: Operation<OfSandbox, Body<ResumeSandbox>, Json<Sandbox>> =
    Operation::post("resume_sandbox", "/v1/sandboxes/{reference}/resume", "sandboxes")
        .does("Resumes a paused sandbox from its last snapshot.")
        .with_optional_body()
        .answers(200, "The sandbox, running")
        .fails(OF_GUESTS);

pub(crate) const STOP_SANDBOX: Operation<OfSandbox, NoInput, Json<Sandbox>> =
    Operation::post("stop_sandbox", "/v1/sandboxes/{reference}/stop", "sandboxes")
        .does("Ends a sandbox's guest; its work since its last snapshot is gone.")
        .answers(200, "The sandbox, stopped")
        .fails(OF_RECORDS);

pub(crate) const LIST_SNAPSHOTS: Operation<Nothing, InQuery<ListQuery>, Json<SnapshotList>> =
    Operation::get("list_snapshots", "/v1/snapshots", "snapshots")
        .does("Lists the snapshots, oldest first.")
        .answers(200, "A page of them");

pub(crate) const LIST_STORED_SNAPSHOTS: Operation<Nothing, NoInput, Json<StoredSnapshotList>> =
    Operation::get("list_stored_snapshots", "/v1/store/snapshots", "snapshots")
        .does("Lists the snapshots in the store, whichever node published them; oldest first.")
        .more("Each can be referred to as those of this node: by its id, or by a unique beginning or end of it.")
        .answers(200, "All of them")
        .fails(&[Code::StoreFailed]);

pub(crate) const LIST_WITHDRAWN_SNAPSHOTS: Operation<Nothing, NoInput, Json<WithdrawnSnapshotList>> =
    Operation::get("list_withdrawn_snapshots", "/v1/store/withdrawn", "snapshots")
        .does("Lists the deleted snapshots of the store that can be brought back, oldest first.")
        .answers(200, "All of them")
        .fails(&[Code::StoreFailed]);

pub(crate) const LIST_KEPT: Operation<Nothing, NoInput, JsonArray<KeptSnapshot>> =
    Operation::get("list_kept", "/v1/kept", "snapshots")
        .does("Tells which snapshots of this node the setting `keep` keeps, and why; oldest first.")
        .answers(200, "All of them; none where the setting has no rules");

pub(crate) const SHOW_USAGE: Operation<Nothing, NoInput, Json<Usage>> =
    Operation::get("show_usage", "/v1/usage", "snapshots")
        .does("Tells how many bytes the store holds, for what, and this node's disk.")
        .more("The store is listed, and each manifest is read that this daemon has not read yet.")
        .answers(200, "The bytes")
        .fails(&[Code::StoreFailed]);

pub(crate) const SHOW_SNAPSHOT_USAGE: Operation<OfSnapshot, NoInput, Json<SnapshotUsage>> =
    Operation::get("show_snapshot_usage", "/v1/snapshots/{reference}/usage", "snapshots")
        .does("Tells how many bytes a snapshot takes, and how many its deletion gives back.")
        .answers(200, "The bytes")
        .fails(OF_READING);

pub(crate) const SHOW_SNAPSHOT: Operation<OfSnapshot, NoInput, Json<Snapshot>> =
    Operation::get("show_snapshot", "/v1/snapshots/{reference}", "snapshots")
        .does("Shows one snapshot.")
        .answers(200, "The snapshot")
        .fails(OF_READING);

pub(crate) const WAIT_SNAPSHOT: Operation<OfSnapshot, InQuery<WaitQuery>, Json<Snapshot>> =
    Operation::get("wait_snapshot", "/v1/snapshots/{reference}/wait", "snapshots")
        .does("Waits until a snapshot is in a state, or beyond it.")
        .more("If it is not in time, the answer is the problem `not_yet`.")
        .answers(200, "The snapshot, in that state or beyond it")
        .fails(OF_READING);

pub(crate) const DELETE_SNAPSHOT: Operation<OfSnapshot, NoInput, Json<DeletedSnapshot>> =
    Operation::delete("delete_snapshot", "/v1/snapshots/{reference}", "snapshots")
        .does("Deletes a snapshot; sandboxes that run from it and its children go on.")
        .more("A published one can be brought back for as long as the setting `undelete_window` says.")
        .answers(200, "It is deleted; the other nodes that use it")
        .fails(OF_READING);

pub(crate) const UNDELETE_SNAPSHOT: Operation<OfSnapshot, NoInput, Json<Snapshot>> =
    Operation::post("undelete_snapshot", "/v1/snapshots/{reference}/undelete", "snapshots")
        .does("Brings a deleted snapshot back, for all nodes.")
        .more("It is referred to by its id, or by a unique beginning or end of it among those that can be brought back.")
        .answers(200, "The snapshot, which this node knows from now on")
        .fails(OF_READING);

pub(crate) const FORGET_SNAPSHOT: Operation<OfSnapshot, NoInput, Done> =
    Operation::post("forget_snapshot", "/v1/snapshots/{reference}/forget", "snapshots")
        .does("Forgets a snapshot on this node; it stays in the store, for all nodes.")
        .more("One that is not in the store yet, or that something here uses, is refused.")
        .answers(204, "This node does not list it any more")
        .fails(OF_READING);

pub(crate) const VERIFY_SNAPSHOT: Operation<OfSnapshot, NoInput, Json<Verification>> =
    Operation::post("verify_snapshot", "/v1/snapshots/{reference}/verify", "snapshots")
        .does("Reads every page of a snapshot and checks it.")
        .answers(200, "The result")
        .fails(OF_READING);

pub(crate) const RESUME_SNAPSHOT: Operation<OfSnapshot, Body<ResumeSnapshot>, Json<SandboxList>> =
    Operation::post("resume_snapshot", "/v1/snapshots/{reference}/resume", "snapshots")
        .does("Makes new sandboxes of a snapshot.")
        .keyed()
        .with_optional_body()
        .answers(201, "The new sandboxes")
        .fails(OF_RESUMES);

pub(crate) const OPEN_FAULT_SOCKET: Operation<Nothing, Body<OpenFaultSocket>, Json<FaultSocket>> =
    Operation::post("open_fault_socket", "/v1/fault-sockets", "memory")
        .does("Opens a socket at which a VMM is served with a snapshot's memory.")
        .answers(201, "The socket; its path is in `Location`")
        .fails(OF_GUESTS_ON_NAMED)
        .located(|made: &FaultSocket| SHOW_FAULT_SOCKET.path_of(&made.id));

pub(crate) const LIST_FAULT_SOCKETS: Operation<Nothing, NoInput, JsonArray<FaultSocket>> =
    Operation::get("list_fault_sockets", "/v1/fault-sockets", "memory")
        .does("Lists the fault sockets.")
        .answers(200, "All of them");

pub(crate) const SHOW_FAULT_SOCKET: Operation<OfFaultSocket, NoInput, Json<FaultSocket>> =
    Operation::get("show_fault_socket", "/v1/fault-sockets/{id}", "memory")
        .does("Shows one fault socket.")
        .answers(200, "The socket");

pub(crate) const CLOSE_FAULT_SOCKET: Operation<OfFaultSocket, NoInput, Done> =
    Operation::delete("close_fault_socket", "/v1/fault-sockets/{id}", "memory")
        .does("Closes a fault socket and ends its serving; the caller has ended the VMM.")
        .answers(204, "It is closed")
        .fails(OF_RECORDS);

pub(crate) const CAPTURE_MEMORY: Operation<Nothing, Body<CaptureMemory>, Json<Snapshot>> =
    Operation::post("capture_memory", "/v1/captures", "memory")
        .does("Captures memory of a process that others manage.")
        .answers(201, MADE_SNAPSHOT)
        .fails(OF_CAPTURES)
        .located(path_of_snapshot);

pub(crate) const STREAM_EVENTS: Operation<Nothing, InQuery<EventsQuery>, EventStreamOf<Event>> =
    Operation::get("stream_events", "/v1/events", "events")
        .does("Streams events: `id` is the event's id, `event` its kind, `data` the event as JSON.")
        .more(
            "An event of kind `lost` says that events were left out, as its `missed` at most; the stream ends with it. \
             The client\nread too slowly, or the event it had last is not followed by those that are still known. A \
             restart of the daemon\nforgets all events: a client that asks for those after one of an earlier daemon \
             first receives `lost`. It should\nlist sandboxes and snapshots again, and then continue after the `id` of \
             this `lost`.",
        )
        .after_event()
        .answers(200, "A stream without an end, unless `follow` is false");

pub(crate) const DRAIN: Operation<Nothing, Body<DrainNode>, Json<Drain>> =
    Operation::post("drain", "/v1/drain", "daemon")
        .does("Pauses the sandboxes of this node, until that is undone or the next daemon starts.")
        .more(
            "Without labels all of them are paused, and no new guest is taken meanwhile. A sandbox that cannot be paused \
             is in the\nanswer with its problem. If nodes are given, each sandbox goes on at one of them, from its pause, \
             and is paused here if none\ntakes it. The same request may be repeated.",
        )
        .with_optional_body()
        .answers(200, "The drained sandboxes, and those that could not be paused")
        .fails(&[Code::NotFound, Code::NotYet, Code::WrongState]);

pub(crate) const SHOW_DRAIN: Operation<Nothing, NoInput, Json<Drain>> =
    Operation::get("show_drain", "/v1/drain", "daemon")
        .does("Shows the sandboxes that a drain has paused or moved.")
        .answers(200, "The drain");

pub(crate) const UNDO_DRAIN: Operation<Nothing, NoInput, Json<Drain>> =
    Operation::post("undo_drain", "/v1/drain/undo", "daemon")
        .does("Takes new guests again, and resumes the sandboxes that a drain has paused.")
        .more("Sandboxes that it moved to other nodes stay there, and are in the answer a last time.")
        .answers(200, "The sandboxes, each with the problem if it could not be resumed");

pub(crate) const COLLECT: Operation<Nothing, Body<Collect>, Json<Collection>> =
    Operation::post("collect", "/v1/collections", "daemon")
        .does("Deletes from the store what no snapshot and no node needs, once the probation is over.")
        .more(
            "Without a probation all of it is gone when this is answered; otherwise the daemon does the rest in time. A dry \
             run tells\nthe verdict on each object, and deletes nothing.",
        )
        .with_optional_body()
        .answers(200, "What was condemned and deleted")
        .fails(&[Code::StoreFailed]);

pub(crate) const SHOW_HEALTH: Operation<Nothing, NoInput, Json<Health>> =
    Operation::get("show_health", "/v1/health", "daemon")
        .does("Says that the daemon answers.")
        .answers(200, "It does");

pub(crate) const SHOW_READINESS: Operation<Nothing, NoInput, Json<Readiness>> =
    Operation::get("show_readiness", "/v1/ready", "daemon")
        .does("Tells if requests can be done, and names the obstacles.")
        .answers(200, "They can")
        .or_answers(503, "They cannot now");

pub(crate) const SHOW_VERSION: Operation<Nothing, NoInput, Json<Version>> =
    Operation::get("show_version", "/v1/version", "daemon")
        .does("Gives the daemon's version.")
        .answers(200, "The version");

pub(crate) const SHOW_METRICS: Operation<Nothing, NoInput, Measurements> =
    Operation::get("show_metrics", "/metrics", "daemon")
        .does("Gives the measurements, in a form Prometheus reads.")
        .answers(200, "The measurements");

pub(crate) const SHOW_DOCUMENT: Operation<Nothing, NoInput, AnyJson> =
    Operation::get("show_document", "/openapi.json", "daemon")
        .does("Gives this document.")
        .answers(200, "The OpenAPI document");

fn path_of_snapshot(made: &Snapshot) -> String {
    SHOW_SNAPSHOT.path_of(&made.id.to_string())
}
