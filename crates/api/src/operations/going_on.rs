//! The operations by which a sandbox goes on as several ones, or at another node.

use super::*;
use crate::types::{ForkSandbox, MoveSandbox, MovedSandbox};

/// Reasons that a move fails.
const OF_MOVES: &[Code] = &[
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
    Code::PeerFailed,
    Code::Lost,
    Code::KeeperFailed,
    Code::DiskFailed,
];

pub(crate) const MOVE_SANDBOX: Operation<OfSandbox, Body<MoveSandbox>, Json<MovedSandbox>> =
    Operation::post("move_sandbox", "/v1/sandboxes/{reference}/move", "sandboxes")
        .does("Pauses a sandbox here and has it go on at another node.")
        .more(
            "It goes on at once, from a snapshot that this node need not have saved. If the other node does not take it, it \
             goes on here. If that node gives no answer it stays paused here, and the request can be repeated: no second one \
             is started there.",
        )
        .keyed()
        .answers(200, "The sandbox at the other node")
        .fails(OF_MOVES);

pub(crate) const FORK_SANDBOX: Operation<OfSandbox, Body<ForkSandbox>, Json<SandboxList>> =
    Operation::post("fork_sandbox", "/v1/sandboxes/{reference}/fork", "sandboxes")
        .does("Makes new sandboxes that go on from this one's present state.")
        .more("A running sandbox is paused for it and goes on from the same snapshot.")
        .keyed()
        .with_optional_body()
        .answers(201, "The new sandboxes")
        .fails(OF_PAUSES);
