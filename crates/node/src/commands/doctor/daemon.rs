//! Who is there: the daemon, its keeper, and virtual machine monitors.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::Check;
use crate::commands::failure::sentence;
use crate::commands::session::Session;
use crate::settings::Settings;

/// Programs that run virtual machines.
const MONITORS: [&str; 2] = ["qemu-system-x86_64", "firecracker"];

/// Looks for all of them.
pub(super) fn look(session: &Session, settings: &Settings) -> Vec<Check> {
    let daemon = daemon(session, settings);
    let runs = daemon.advice.is_none();
    vec![monitors(), daemon, keeper(settings, runs)]
}

fn monitors() -> Check {
    let found: Vec<String> = MONITORS.iter().filter_map(|name| monitor(name)).collect();
    let words = if found.is_empty() {
        format!("none found in PATH ({}); process guests need none", MONITORS.join(", "))
    } else {
        format!(
            "{}; this version starts process guests only, and serves others at fault sockets",
            found.join("; ")
        )
    };
    Check::ok("VMMs", words)
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
        Err(error) => {
            let socket = session.socket(settings);
            return Check::warn(
                name,
                sentence(&error),
                format!("start it with `rekindle serve`; it listens on {}", socket.display()),
            );
        }
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
