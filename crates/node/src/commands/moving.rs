//! `rekindle move`: has a sandbox go on at another node.

use clap::Args;
use rekindle_api::types::MoveSandbox;

use super::session::Session;
use super::shown;
use super::status::Status;

/// The sandbox, and the node that it moves to.
#[derive(Args, Clone, Debug)]
pub struct MoveArguments {
    /// The sandbox: its name, its id, or the beginning or end of that
    #[arg(value_name = "NAME|ID")]
    sandbox: String,
    /// The node: a name in peers.static, or HOST:PORT
    #[arg(long, value_name = "NODE")]
    to: String,
    /// A key of your choice: the same request under the same key is done once, however often it is sent
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// Moves it.
pub fn run(session: &Session, arguments: &MoveArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let MoveArguments { sandbox, to, idempotency_key } = arguments;
    let (how, key) = (MoveSandbox { to: to.clone() }, idempotency_key.as_deref());
    let doing = format!("moving to {to}");
    let moved = session.output.during(&doing, || client.move_sandbox(sandbox, key, &how))?;
    if session.output.json {
        session.output.value(&moved)?;
        return Ok(Status::Done);
    }
    let stood = moved.stopped_seconds.map(std::time::Duration::from_secs_f64);
    let stood =
        stood.map_or_else(String::new, |stood| format!(", it stood still for {}", shown::duration(stood)));
    session.output.line(&format!("sandbox {sandbox} runs at node {to} as {}{stood}", moved.sandbox))?;
    Ok(Status::Done)
}
