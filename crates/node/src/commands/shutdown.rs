//! `rekindle shutdown`: ends the guests and the keeper that a daemon left running when it ended.

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Args;
use rekindle_api::client::Client;
use rekindle_keeper::KeeperClient;
use rekindle_kernel::ProcessHandle;
use rekindle_settings::{SettingFlags, Settings};

use super::confirm::confirmed;
use super::session::Session;
use super::status::Status;

/// Longest time for the keeper to end.
const ENDED_WITHIN: Duration = Duration::from_secs(30);

/// Options of the end.
#[derive(Args, Clone, Debug)]
pub struct ShutdownArguments {
    /// Do not ask first
    #[arg(long, short)]
    yes: bool,
}

/// Ends them.
pub fn run(session: &Session, arguments: &ShutdownArguments) -> anyhow::Result<Status> {
    let settings = Settings::load(&session.setting_flags(SettingFlags::default()))?;
    let api = &settings.api.socket;
    let socket = settings.keeper_socket_of(api);
    if Client::of_socket(api).health().is_ok() {
        bail!("a daemon runs at {}: end it first, by SIGTERM or `systemctl stop rekindle`", api.display());
    }
    let keeper = match KeeperClient::connect(&socket) {
        Err(error) if error.is_absence() => {
            session
                .output
                .line(&format!("no keeper runs at {}: nothing is left to end", socket.display()))?;
            return Ok(Status::Done);
        }
        found => found?,
    };
    let question = "End every guest and the keeper? What guests did since their last pause is lost, and so are \
                    snapshots that are not sealed.";
    if !confirmed(question, arguments.yes)? {
        bail!("nothing was ended");
    }
    let process = ProcessHandle::open(keeper.identity().pid)?;
    keeper.shutdown(true)?;
    ensure!(
        process.wait_exit(ENDED_WITHIN),
        "the keeper, process {}, has not ended within {ENDED_WITHIN:?}",
        process.pid()
    );
    session.output.line("the keeper has ended, and all guests with it")?;
    Ok(Status::Done)
}
