//! The console of a machine, used through the daemon's socket.

use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rekindle_api::client::Client;
use rekindle_api::types::ConsoleQuery;
use rekindle_guest::machine::ConsoleLines;

use super::{BlackBoxError, PATIENCE};

/// A machine's console, read line by line.
#[derive(Debug)]
pub struct Console<'a> {
    client: &'a Client,
    sandbox: String,
    read_to: Option<u64>,
    lines: ConsoleLines,
}

impl<'a> Console<'a> {
    /// The console with all earlier output that the daemon still has.
    pub fn of(client: &'a Client, sandbox: &str) -> Self {
        Self { client, sandbox: sandbox.to_owned(), read_to: None, lines: ConsoleLines::default() }
    }

    /// The console with new output only.
    pub fn from_now(client: &'a Client, sandbox: &str) -> Result<Self, BlackBoxError> {
        let known = client.read_console(sandbox, ConsoleQuery::default())?;
        Ok(Self { read_to: Some(known.next), ..Self::of(client, sandbox) })
    }

    /// Waits for a line that begins with `start`, and returns the rest of it. Linux takes seconds to start.
    pub fn line(&mut self, start: &str) -> Result<String, BlackBoxError> {
        let deadline = Instant::now() + 2 * PATIENCE;
        let failed = |why: String| BlackBoxError::Guest { sandbox: self.sandbox.clone(), why };
        loop {
            match self.lines.answer(start) {
                Ok(Some(rest)) => return Ok(rest),
                Ok(None) => {}
                Err(refuses) => return Err(failed(refuses.to_string())),
            }
            if Instant::now() > deadline {
                return Err(failed(format!("it never said {start:?}")));
            }
            let query = ConsoleQuery { from: self.read_to, wait_seconds: Some(1) };
            let output = self.client.read_console(&self.sandbox, query)?;
            self.read_to = Some(output.next);
            let bytes = BASE64_STANDARD.decode(output.bytes);
            self.lines.add(&bytes.map_err(|error| failed(error.to_string()))?);
        }
    }

    /// Types a line, and returns the rest of the answer that begins with `start`.
    pub fn ask(&mut self, line: &str, start: &str) -> Result<String, BlackBoxError> {
        self.client.type_at_console(&self.sandbox, format!("{line}\n").as_bytes())?;
        self.line(start)
    }

    /// Asks for one more step of the guest's counter.
    pub fn tick(&mut self) -> Result<u64, BlackBoxError> {
        let answer = self.ask("tick", "tick ")?;
        let wrong = || BlackBoxError::Guest { sandbox: self.sandbox.clone(), why: format!("tick {answer}") };
        answer.parse().map_err(|_| wrong())
    }

    /// Makes the guest check its memory; the number of pages, and of wrong ones.
    pub fn verify(&mut self) -> Result<(u64, u64), BlackBoxError> {
        let answer = self.ask("verify", "verified ")?;
        let mut numbers = answer.split_whitespace().map(|word| word.parse().ok());
        let mut next = || numbers.next().flatten();
        let wrong =
            || BlackBoxError::Guest { sandbox: self.sandbox.clone(), why: format!("verified {answer}") };
        next().zip(next()).ok_or_else(wrong)
    }
}
