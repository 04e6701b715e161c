//! Operations on sandboxes and their consoles.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::{Routes, Taken};
use crate::audit::Removed;
use crate::limits;
use crate::operations::{
    CHECKPOINT_SANDBOX, CONNECT_SANDBOX, CREATE_SANDBOX, FORK_SANDBOX, LIST_SANDBOXES, MOVE_SANDBOX,
    PAUSE_SANDBOX, READ_CONSOLE, REMOVE_SANDBOX, RESUME_SANDBOX, SHOW_SANDBOX, STOP_SANDBOX, TELL_GUEST,
    TYPE_AT_CONSOLE,
};
use crate::problem::{Code, Problem};
use crate::upgrade::Upgrade;

pub(super) fn routes() -> Routes {
    Routes::default()
        .changes(&CREATE_SANDBOX, |control, asked, (), wanted| control.create_sandbox(asked, wanted))
        .reads(&LIST_SANDBOXES, |control, (), query| control.sandboxes(&query))
        .reads(&SHOW_SANDBOX, |control, of, ()| control.sandbox(&of))
        .changes(&REMOVE_SANDBOX, |control, asked, of, ()| {
            control.remove_sandbox(&of, asked).map(Removed::Sandbox)
        })
        .changes(&PAUSE_SANDBOX, |control, asked, of, how| control.pause_sandbox(&of, asked, how))
        .changes(&CHECKPOINT_SANDBOX, |control, asked, of, how| control.checkpoint_sandbox(&of, asked, how))
        .changes(&RESUME_SANDBOX, |control, asked, of, how| control.resume_sandbox(&of, asked, how))
        .changes(&FORK_SANDBOX, |control, asked, of, how| control.fork_sandbox(&of, asked, how))
        .changes(&MOVE_SANDBOX, |control, asked, of, how| control.move_sandbox(&of, asked, how))
        .changes(&STOP_SANDBOX, |control, asked, of, ()| control.stop_sandbox(&of, asked))
        .changes(&TELL_GUEST, |control, asked, of, command| control.tell_guest(&of, asked, command))
        .changes(&TYPE_AT_CONSOLE, |control, _, of, input| {
            let bytes = BASE64_STANDARD.decode(&input.bytes).map_err(|error| {
                Problem::new(Code::InvalidRequest, format!("`bytes` is not base64: {error}"))
            })?;
            control.type_console(&of, &bytes)
        })
}

/// The operation that goes on with a connection as bytes.
pub(super) fn channels() -> Routes {
    Routes::default().answers(&CONNECT_SANDBOX, async |control, Taken { place, of, input, upgrade, .. }| {
        let upgrade = upgrade.ok_or_else(Upgrade::missing)?;
        let kept_place = place.after_answer();
        let connected =
            control.change(place, None, move |control, _| control.connect_sandbox(&of, input)).await?;
        upgrade.answer(connected.stream, kept_place, control.ending())
    })
}

/// The operation that waits for output.
pub(super) fn console_reads() -> Routes {
    Routes::default().answers(&READ_CONSOLE, async |control, Taken { place, of, input: query, .. }| {
        let until = Instant::now() + Duration::from_secs(query.wait_seconds.unwrap_or_default().into());
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let turn = left.min(limits::WAIT_TURN);
            let of = of.clone();
            let output =
                control.ask(place.clone(), move |control| control.console(&of, query.from, turn)).await?;
            if output.next > output.from || left == turn || control.ending().has_come() {
                return Ok(READ_CONSOLE.response(output));
            }
        }
    })
}
