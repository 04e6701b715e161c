//! `rekindle connect`: joins standard input and output to the agent of a virtual machine's guest.

use std::io::{self, ErrorKind, IsTerminal as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use rekindle_api::types::ConnectSandbox;
use rekindle_settings::parse_time;

use super::console::lines_until;
use super::session::Session;
use super::status::Status;

/// The sandbox of the connection.
#[derive(Args, Clone, Debug)]
pub struct ConnectArguments {
    /// The sandbox: its name, its id, or the beginning or end of that
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// The port at which the agent listens, in Firecracker
    #[arg(value_name = "PORT")]
    port: Option<u32>,
    /// End another connection to it, which refuses this one otherwise
    #[arg(long)]
    take_over: bool,
    /// End after the first line with this text in it; status 1 if none comes in time
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    until: Option<String>,
    /// Longest time to wait for that line: 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "60s", requires = "until", value_parser = parse_time)]
    timeout: Duration,
}

/// Joins them, until the connection ends.
pub fn run(session: &Session, arguments: &ConnectArguments) -> anyhow::Result<Status> {
    let how = ConnectSandbox { port: arguments.port, take_over: arguments.take_over.then_some(true) };
    let channel = session.client()?.connect_sandbox(&arguments.sandbox, &how)?;
    if io::stdin().is_terminal() {
        session.output.hint("Connected. Press Ctrl-C to disconnect.");
    }
    let mut to_guest = channel.stream().try_clone().context("a second handle of the connection")?;
    // The end of the input does not end the connection: an answer may still come.
    let send = move || io::copy(&mut io::stdin().lock(), &mut to_guest);
    std::thread::Builder::new().name("connect-input".into()).spawn(send)?;
    match &arguments.until {
        Some(text) => until(channel.stream(), text, arguments.timeout),
        None => {
            let mut stdout = io::stdout().lock();
            carry(channel.stream(), |bytes| {
                stdout.write_all(bytes)?;
                stdout.flush().map(|()| None)
            })?;
            session
                .output
                .hint("The connection ended: the guest was paused or ended, or another client took over.");
            Ok(Status::Done)
        }
    }
}

/// Prints what comes until a line has `text` in it.
fn until(guest: &UnixStream, text: &str, limit: Duration) -> anyhow::Result<Status> {
    let deadline = Instant::now() + limit;
    let mut stdout = io::stdout().lock();
    let (mut bytes, mut printed) = (Vec::new(), 0);
    let found = carry(guest, |more| {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Some(Status::CheckFailed));
        }
        guest.set_read_timeout(Some(left))?;
        bytes.extend_from_slice(more);
        let end = lines_until(&bytes, text);
        let whole = end.unwrap_or(bytes.len());
        stdout.write_all(&bytes[printed..whole])?;
        stdout.flush()?;
        printed = whole;
        Ok(end.map(|_| Status::Done))
    })?;
    Ok(found.unwrap_or(Status::CheckFailed))
}

/// Gives `take` what the guest sends, first nothing, until it has an outcome or nothing more comes.
fn carry(
    mut guest: &UnixStream,
    mut take: impl FnMut(&[u8]) -> io::Result<Option<Status>>,
) -> anyhow::Result<Option<Status>> {
    let (mut bytes, mut count) = (vec![0; 16 << 10], 0);
    loop {
        if let Some(outcome) = take(&bytes[..count])? {
            return Ok(Some(outcome));
        }
        count = match guest.read(&mut bytes) {
            Ok(0) => return Ok(None),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(error) => return Err(error).context("reading from the guest"),
        };
    }
}
