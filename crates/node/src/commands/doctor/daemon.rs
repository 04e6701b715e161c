//! Checks of the daemon, its keeper, and virtual machine monitors.

use std::io;
use std::path::Path;

use rekindle_api::client::ClientError;
use rekindle_keeper::{KeeperClient, KeeperError};
use rekindle_settings::Settings;
use rekindle_vmm::qemu::{NoQemu, QemuProgram};

use super::{Check, firecracker};
use crate::commands::failure::sentence;
use crate::commands::session::Session;
use crate::daemon::aside_at;

/// Looks for all of them.
pub(super) fn look(session: &Session, settings: &Settings) -> Vec<Check> {
    let daemon = daemon(session, settings);
    let runs = daemon.advice.is_none();
    vec![qemu(), firecracker::look(settings), daemon, keeper(session, settings, runs)]
}

fn qemu() -> Check {
    let name = "QEMU";
    match QemuProgram::find(None) {
        Ok(qemu) => Check::ok(name, format!("{} ({})", qemu.version, qemu.path.display())),
        Err(NoQemu::NotFound { looked_for }) => {
            Check::ok(name, format!("none in PATH ({looked_for}); process guests need none"))
        }
        Err(error @ (NoQemu::NotRun { .. } | NoQemu::NotQemu { .. } | NoQemu::NoShim(_))) => {
            Check::warn(name, error.to_string(), "install it again, or take it out of PATH")
        }
    }
}

fn daemon(session: &Session, settings: &Settings) -> Check {
    let name = "daemon";
    let asked = session.client().and_then(|client| Ok((client.version()?, client.readiness()?)));
    let (version, readiness) = match asked {
        Ok(answers) => answers,
        Err(error) => return unreachable_daemon(&error, &session.socket(settings)),
    };
    let found = format!("version {} answers (process {})", version.version, version.pid);
    if !readiness.reasons.is_empty() {
        let reasons = readiness.reasons.join("; ");
        let is_ready = if readiness.ready { "is ready, though" } else { "is not ready" };
        return Check::warn(name, format!("{found} and {is_ready}: {reasons}"), "see its log");
    }
    if version.version != env!("CARGO_PKG_VERSION") {
        let ours = env!("CARGO_PKG_VERSION");
        return Check::warn(
            name,
            found,
            format!("this program is {ours}: restart the daemon with it; guests run on meanwhile"),
        );
    }
    Check::ok(name, found)
}

/// A daemon that cannot be asked: none runs, or this user may not.
fn unreachable_daemon(error: &anyhow::Error, socket: &Path) -> Check {
    let (name, said) = ("daemon", sentence(error));
    let unreachable = match error.downcast_ref() {
        Some(ClientError::Unreachable { source, .. }) => Some(source.kind()),
        _ => None,
    };
    match unreachable {
        Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Check::warn(
            name,
            format!("none answers on {}", socket.display()),
            "start it: rekindle serve; or ask one elsewhere with --socket",
        ),
        Some(io::ErrorKind::PermissionDenied) => Check::warn(
            name,
            said,
            "ask as root or as the daemon's user, or have this user added to api.allowed_uids",
        ),
        _ => Check::warn(name, said, "see its log, or start it again: rekindle serve"),
    }
}

fn keeper(session: &Session, settings: &Settings, daemon_runs: bool) -> Check {
    let (name, socket) = ("keeper", settings.keeper_socket_of(&session.socket(settings)));
    match KeeperClient::connect(&socket) {
        Ok(keeper) => set_aside(name, &socket, &keeper),
        Err(error @ KeeperError::Silent { pid, .. }) => Check::fail(
            name,
            error.to_string(),
            format!("kill -CONT {pid} where it is stopped; without it no guest is started or paused"),
        ),
        Err(_) if !daemon_runs => Check::ok(name, "does not run; the daemon starts it"),
        Err(error) => Check::warn(
            name,
            format!("cannot be reached on {}: {error}", socket.display()),
            "restart the daemon, which starts it; without it guests do not outlive the daemon",
        ),
    }
}

/// Checks for things at the keeper that the catalog does not name.
fn set_aside(name: &'static str, socket: &Path, keeper: &KeeperClient) -> Check {
    let answers = format!("answers on {}", socket.display());
    match aside_at(keeper) {
        Ok(aside) if aside.is_some() => Check::warn(
            name,
            format!("{answers}; {aside} are set aside, as the catalog does not name them"),
            "restore the catalog that names them; to end them, set set_aside_kept to 0s and restart the daemon; they go by \
             themselves after set_aside_kept",
        ),
        // A keeper tells its own user and root what it holds.
        Ok(_) | Err(_) => Check::ok(name, answers),
    }
}
