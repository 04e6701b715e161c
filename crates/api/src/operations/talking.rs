//! Operations that talk to a sandbox's guest.

use super::OF_RECORDS;
use crate::operation::{AnyJson, Body, ByteStream, Done, GuestCommand, InQuery, Json, OfSandbox, Operation};
use crate::problem::Code;
use crate::types::{ConnectSandbox, ConsoleInput, ConsoleOutput, ConsoleQuery};

pub(crate) const TELL_GUEST: Operation<OfSandbox, GuestCommand, AnyJson> =
    Operation::post("tell_guest", "/v1/sandboxes/{reference}/guest", "sandboxes")
        .does("Tells a process guest to do something, and gives its answer.")
        .answers(200, "The guest's answer")
        .fails(OF_RECORDS);

pub(crate) const READ_CONSOLE: Operation<OfSandbox, InQuery<ConsoleQuery>, Json<ConsoleOutput>> =
    Operation::get("read_console", "/v1/sandboxes/{reference}/console", "sandboxes")
        .does("Reads what a sandbox's guests printed at their console.")
        .more(
            "Each answer gives the position to go on from, so that nothing is missed: ask again from `next` on, and \
             wait there.",
        )
        .answers(200, "The output; empty if none came in time")
        .fails(&[Code::WrongState]);

pub(crate) const TYPE_AT_CONSOLE: Operation<OfSandbox, Body<ConsoleInput>, Done> =
    Operation::post("type_at_console", "/v1/sandboxes/{reference}/console", "sandboxes")
        .does("Types at the console of a sandbox's guest.")
        .answers(204, "It is typed")
        .fails(OF_RECORDS);

pub(crate) const CONNECT_SANDBOX: Operation<OfSandbox, InQuery<ConnectSandbox>, ByteStream> =
    Operation::post("connect_sandbox", "/v1/sandboxes/{reference}/connect", "sandboxes")
        .does("Connects to the agent of a virtual machine that has a channel.")
        .more(
            "The request has the fields `Connection: Upgrade` and `Upgrade: rekindle-channel`. After the answer the \
             connection carries the\nguest's bytes as they are, both ways, until either side ends it. It ends when the \
             guest is paused, not with a checkpoint.",
        )
        .answers(101, "The connection is the guest's channel from now on")
        .fails(&[Code::WrongState, Code::GuestFailed]);
