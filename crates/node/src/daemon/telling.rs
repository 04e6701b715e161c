//! Speaks to the guest of a sandbox: by commands of a process guest, or at the console of a machine.

use std::sync::Arc;
use std::time::Duration;

use rekindle_api::control::{Answer, Asked, Connected};
use rekindle_api::limits;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{ConnectSandbox, ConsoleOutput, Reference, VmmKind};
use rekindle_guest::process::protocol::Command;

use super::channel::GuestChannel;
use super::entry::{Entry, TELLING};
use super::guest_watch::stopped_by_signal;
use super::live::Live;
use super::problems::guest_failed;
use super::references::Named as _;
use super::sandboxes::{Sandboxes, not_running};

impl Sandboxes {
    pub(super) fn tell(
        &self,
        reference: &Reference,
        asked: &Asked,
        command: serde_json::Value,
    ) -> Answer<serde_json::Value> {
        let entry = self.registry.find(reference)?;
        let command: Command = serde_json::from_value(command).map_err(|error| {
            Problem::new(Code::InvalidRequest, format!("no command of a process guest: {error}"))
        })?;
        if matches!(command, Command::Restore { .. } | Command::Exit | Command::Place { .. }) {
            let why = "a sandbox's guest is restored, placed and ended by the daemon alone";
            return Err(Problem::new(Code::InvalidRequest, why));
        }
        let mut turn = entry.turn(TELLING, self.host.settings().pause_wait, asked)?;
        let Some(live) = &mut turn.live else { return Err(not_running(&turn, "told anything")) };
        live.go_on_if_stuck(&self.host).map_err(|problem| problem.sandbox(entry.id()))?;
        tell_live(&entry, live, asked, &command).map_err(|problem| problem.sandbox(entry.id()))
    }

    pub(super) fn connect(&self, reference: &Reference, how: ConnectSandbox) -> Answer<Connected> {
        let entry = self.registry.find(reference)?;
        let problem = |code, why: String| Problem::new(code, why).sandbox(entry.id());
        let called = entry.called();
        if !entry.record().spec.has_channel() {
            let why =
                format!("{called} has no channel: a machine gets one when it is made, by `run --channel`");
            return Err(problem(Code::WrongState, why));
        }
        let Some((channel, guest)) = entry.channel() else {
            let why = format!("{called} is {}: only a running one can be connected to", entry.show().state);
            return Err(problem(Code::WrongState, why));
        };
        let connected = match (guest, how.port) {
            (GuestChannel::Port(port), None) => channel.connect(port, how.take_over.unwrap_or(false)),
            (GuestChannel::Vsock(vsock), Some(port)) => channel.connect_to(&vsock, port).map(Some),
            (GuestChannel::Port(_), Some(_)) => {
                let why = format!("the channel of {called} has no numbered ports: leave the port out");
                return Err(problem(Code::WrongState, why));
            }
            (GuestChannel::Vsock(_), None) => {
                let why = format!(
                    "name the port at which the agent of {called} listens: `rekindle connect NAME PORT`"
                );
                return Err(problem(Code::WrongState, why));
            }
        };
        match connected {
            Ok(Some(stream)) => Ok(Connected { sandbox: entry.id(), stream }),
            Ok(None) => {
                let why = format!(
                    "{called} has a connection to its channel: end it, or connect with `--take-over`"
                );
                Err(problem(Code::WrongState, why))
            }
            Err(error) => Err(problem(Code::GuestFailed, format!("the channel of {called}: {error}"))),
        }
    }

    pub(super) fn read_console(
        &self,
        reference: &Reference,
        from: Option<u64>,
        limit: Duration,
    ) -> Answer<ConsoleOutput> {
        let entry = self.registry.find(reference)?;
        check_has_console(&entry)?;
        Ok(entry.console().read(from, limit))
    }

    pub(super) fn type_at(&self, reference: &Reference, bytes: &[u8]) -> Answer<()> {
        let entry = self.registry.find(reference)?;
        check_has_console(&entry)?;
        entry.console().write(bytes).map_err(|error| {
            let why = format!("the console of {} has no reader: {error}", entry.called());
            Problem::new(Code::WrongState, why).sandbox(entry.id())
        })
    }
}

/// Tells a guest something, and waits for its answer as long as the client does and the guest can give one.
fn tell_live(entry: &Entry, live: &mut Live, asked: &Asked, command: &Command) -> Answer<serde_json::Value> {
    let process = live.process();
    let stopped = || {
        let why = stopped_by_signal(&process)?;
        Some(Problem::new(Code::WrongState, format!("{why}, and it can be told something then")))
    };
    let Some(control) = live.control() else {
        let why = format!("{} is a virtual machine: use its console instead", entry.called());
        return Err(Problem::new(Code::WrongState, why));
    };
    stopped().map_or(Ok(()), Err)?;
    let is_wanted = || !asked.asker.is_gone() && stopped().is_none();
    let told = control.begin_tell(command).and_then(|told| told.wait_while(limits::WAIT_TURN, is_wanted));
    match told {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_given_up)) => Err(stopped().unwrap_or_else(|| {
            let why = "the client went away before the guest answered; the guest does what it was told";
            Problem::new(Code::Abandoned, why)
        })),
        Err(error) => {
            Err(entry.ended_meanwhile("told something").unwrap_or_else(|| guest_failed(error.into())))
        }
    }
}

fn check_has_console(entry: &Arc<Entry>) -> Answer<()> {
    match entry.record().spec.kind() {
        VmmKind::Qemu | VmmKind::Firecracker => Ok(()),
        VmmKind::Process => {
            let why = format!("{} is a process guest and has no console", entry.called());
            Err(Problem::new(Code::WrongState, why).sandbox(entry.id()))
        }
    }
}
