//! Who is there: the daemon, its keeper, and virtual machine monitors.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Check;
use crate::client::ClientError;
use crate::commands::failure::sentence;
use crate::commands::session::Session;
use crate::settings::Settings;
use crate::vmm::qemu::{NoQemu, QemuProgram};

/// Looks for all of them.
pub(super) fn look(session: &Session, settings: &Settings) -> Vec<Check> {
    let daemon = daemon(session, settings);
    let runs = daemon.advice.is_none();
    vec![monitors(), daemon, keeper(settings, runs)]
}

fn monitors() -> Check {
    let name = "VMMs";
    let firecracker = monitor("firecracker");
    let with =
        |qemu: String| [Some(qemu), firecracker.clone()].into_iter().flatten().collect::<Vec<_>>().join("; ");
    match QemuProgram::find(None) {
        Ok(qemu) => Check::ok(name, with(format!("QEMU {} ({})", qemu.version, qemu.path.display()))),
        Err(NoQemu::NotFound { looked_for }) => Check::ok(
            name,
            firecracker.unwrap_or_else(|| {
                format!("none found in PATH ({looked_for}, firecracker); process guests need none")
            }),
        ),
        Err(error @ (NoQemu::NotRun { .. } | NoQemu::NotQemu { .. } | NoQemu::NoShim(_))) => {
            Check::warn(name, with(error.to_string()), "install it again, or take it out of PATH")
        }
    }
}

fn monitor(name: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let program: PathBuf =
        std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())?;
    let said = Command::new(&program).arg("--version").stdin(Stdio::null()).output().ok();
    let said = said.filter(|said| said.status.success());
    let first =
        said.and_then(|said| Some(String::from_utf8(said.stdout).ok()?.lines().next()?.trim().to_owned()));
    let version = first.unwrap_or_else(|| "which does not tell its version".to_owned());
    Some(format!("{} ({version})", program.display()))
}

fn daemon(session: &Session, settings: &Settings) -> Check {
    let name = "daemon";
    let asked = session.client().and_then(|client| Ok((client.version()?, client.readiness()?)));
    let (version, readiness) = match asked {
        Ok(answers) => answers,
        Err(error) => return unreachable_daemon(&error, &session.socket(settings)),
    };
    let found = format!("version {} answers (process {})", version.version, version.pid);
    if !readiness.ready {
        let reasons = readiness.reasons.join("; ");
        return Check::warn(name, format!("{found} but is not ready: {reasons}"), "see its log");
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

fn keeper(settings: &Settings, daemon_runs: bool) -> Check {
    let (name, socket) = ("keeper", settings.keeper_socket());
    match UnixStream::connect(&socket) {
        Ok(_) => Check::ok(name, format!("answers on {}", socket.display())),
        Err(_) if !daemon_runs => Check::ok(name, "does not run; the daemon starts it"),
        Err(error) => Check::warn(
            name,
            format!("cannot be reached on {}: {error}", socket.display()),
            "restart the daemon, which starts it; without it guests do not outlive the daemon",
        ),
    }
}
