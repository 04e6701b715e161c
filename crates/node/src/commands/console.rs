//! `rekindle console`: shows a virtual machine's serial console, and types at it.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use rekindle_api::client::Client;
use rekindle_api::types::ConsoleQuery;
use rekindle_settings::parse_time;
use serde::Serialize;

use super::session::Session;
use super::status::Status;

/// Key that ends an interactive console: control and ].
const END: u8 = 0x1d;
/// Longest wait of one request for output, in seconds.
const TURN_SECONDS: u32 = 30;

/// The sandbox of the console.
#[derive(Args, Clone, Debug)]
pub struct ConsoleArguments {
    /// The sandbox: its name, its id, or the beginning or end of that
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Print what is known of its output and end
    #[arg(long, conflicts_with_all = ["send", "until"])]
    known: bool,
    /// Type this line, and print what comes from then on
    #[arg(long, value_name = "LINE", allow_hyphen_values = true)]
    send: Option<String>,
    /// End after the first line with this text in it; status 1 if none comes in time
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    until: Option<String>,
    /// Longest time to wait for that line: 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "60s", requires = "until", value_parser = parse_time)]
    timeout: Duration,
}

#[derive(Debug, Serialize)]
struct FoundOutput<'a> {
    output: &'a str,
    found: bool,
}

/// Shows it.
pub fn run(session: &Session, arguments: &ConsoleArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let name = &arguments.sandbox;
    let known = client.read_console(name, ConsoleQuery::default())?;
    if arguments.known {
        print_bytes(&decoded(&known.bytes)?)?;
        return Ok(Status::Done);
    }
    if let Some(line) = &arguments.send {
        client.type_at_console(name, format!("{line}\n").as_bytes())?;
    }
    if let Some(text) = &arguments.until {
        // Without a line to send, earlier output counts too.
        let from = arguments.send.as_ref().map_or(known.from, |_| known.next);
        return until(session, &client, arguments, from, text);
    }
    if arguments.send.is_some() {
        return Ok(Status::Done);
    }
    print_bytes(&decoded(&known.bytes)?)?;
    talk(session, &client, name, known.next)
}

/// Prints whole lines until one has `text` in it.
fn until(
    session: &Session,
    client: &Client,
    arguments: &ConsoleArguments,
    from: u64,
    text: &str,
) -> anyhow::Result<Status> {
    let deadline = Instant::now() + arguments.timeout;
    let (mut next, mut bytes, mut printed) = (from, Vec::new(), 0);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let seconds = u32::try_from(left.as_secs().saturating_add(1)).unwrap_or(TURN_SECONDS);
        let query = ConsoleQuery { from: Some(next), wait_seconds: Some(seconds.min(TURN_SECONDS)) };
        let output = client.read_console(&arguments.sandbox, query)?;
        next = output.next;
        bytes.extend(decoded(&output.bytes)?);
        let end = lines_until(&bytes, text);
        let whole =
            end.unwrap_or_else(|| bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
        if !session.output.json {
            print_bytes(&bytes[printed..whole.max(printed)])?;
            printed = whole.max(printed);
        }
        let is_over = left.is_zero();
        if end.is_some() || is_over {
            if session.output.json {
                let output = String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]);
                session.output.value(&FoundOutput { output: &output, found: end.is_some() })?;
            }
            return Ok(if end.is_some() { Status::Done } else { Status::CheckFailed });
        }
    }
}

/// The end of the first whole line with `text` in it.
pub(super) fn lines_until(bytes: &[u8], text: &str) -> Option<usize> {
    let mut start = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        start += line.len();
        if line.ends_with(b"\n") && String::from_utf8_lossy(line).contains(text) {
            return Some(start);
        }
    }
    None
}

/// Prints what comes, and types what is typed, until the input ends or says so.
fn talk(session: &Session, client: &Client, name: &str, mut next: u64) -> anyhow::Result<Status> {
    let typing = client.clone();
    let typed_at = name.to_owned();
    let is_terminal = io::stdin().is_terminal();
    if is_terminal {
        session.output.hint("Connected. Press Ctrl-] to disconnect.");
        crossterm::terminal::enable_raw_mode().context("making the terminal give every key")?;
    }
    let input =
        std::thread::Builder::new().name("console-input".into()).spawn(move || match is_terminal {
            true => type_keys(&typing, &typed_at),
            false => type_lines(&typing, &typed_at),
        })?;
    let talked = loop {
        let ended = input.is_finished();
        let seconds = if ended { 0 } else { 1 };
        let query = ConsoleQuery { from: Some(next), wait_seconds: Some(seconds) };
        match client.read_console(name, query).map_err(anyhow::Error::from).and_then(|output| {
            next = output.next;
            print_bytes(&decoded(&output.bytes)?)
        }) {
            Ok(()) if ended => break Ok(()),
            Ok(()) => {}
            Err(error) => break Err(error),
        }
    };
    if is_terminal {
        crossterm::terminal::disable_raw_mode().context("giving the terminal back")?;
        println!();
    }
    talked?;
    match input.is_finished() {
        true => input.join().unwrap_or(Ok(())).map(|()| Status::Done),
        false => Ok(Status::Done),
    }
}

fn type_keys(client: &Client, name: &str) -> anyhow::Result<()> {
    let (mut stdin, mut keys) = (io::stdin().lock(), [0; 1024]);
    loop {
        let count = stdin.read(&mut keys)?;
        let typed = &keys[..count];
        match typed.iter().position(|key| *key == END) {
            _ if count == 0 => return Ok(()),
            Some(at) => return Ok(client.type_at_console(name, &typed[..at])?),
            None => client.type_at_console(name, typed)?,
        }
    }
}

fn type_lines(client: &Client, name: &str) -> anyhow::Result<()> {
    for line in io::stdin().lock().lines() {
        client.type_at_console(name, format!("{}\n", line?).as_bytes())?;
    }
    Ok(())
}

fn decoded(text: &str) -> anyhow::Result<Vec<u8>> {
    BASE64_STANDARD.decode(text).context("the daemon's answer is not base64")
}

fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_only_when_it_is_whole() {
        let said = b"tick 1\r\nverified 10 0\r\ntick 2\r\n";
        assert_eq!(lines_until(said, "verified"), Some(23));
        assert_eq!(lines_until(&said[..20], "verified"), None);
        assert_eq!(lines_until(said, "wrong"), None);
    }
}
