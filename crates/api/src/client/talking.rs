//! Calls that talk to a sandbox's guest.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::channel::Channel;
use super::exchange::Call;
use super::{Client, Result};
use crate::operations::{CONNECT_SANDBOX, READ_CONSOLE, TELL_GUEST, TYPE_AT_CONSOLE};
use crate::types::{ConnectSandbox, ConsoleInput, ConsoleOutput, ConsoleQuery};

impl Client {
    /// Tells a process guest to do something, and gives its answer.
    pub fn tell_guest(&self, reference: &str, command: &Value) -> Result<Value> {
        self.ask(&TELL_GUEST, reference, command)
    }

    /// The output of a sandbox's guests at their console, from `from` on; waits for it at most `wait_seconds`.
    pub fn read_console(&self, reference: &str, query: ConsoleQuery) -> Result<ConsoleOutput> {
        let wait = Duration::from_secs(query.wait_seconds.unwrap_or_default().into());
        let patient = self.clone().answered_within(self.answered_within + wait);
        patient.ask(&READ_CONSOLE, reference, &query)
    }

    /// Types at the console of a sandbox's guest.
    pub fn type_at_console(&self, reference: &str, bytes: &[u8]) -> Result<()> {
        let input = ConsoleInput { bytes: BASE64_STANDARD.encode(bytes) };
        self.ask(&TYPE_AT_CONSOLE, reference, &input).map(drop)
    }

    /// Connects to the agent of a sandbox's guest.
    pub fn connect_sandbox(&self, reference: &str, how: &ConnectSandbox) -> Result<Channel> {
        let call = Call::of(&CONNECT_SANDBOX, reference, how).upgraded();
        Channel::open(&self.endpoint, call, self.answered_within)
    }
}
