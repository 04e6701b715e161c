//! Commands to a sandbox's guest through the daemon, with typed answers.

use rekindle_api::client::{Client, ClientError};
use rekindle_guest::process::history::{Rewrite, Share};
use rekindle_guest::process::protocol::{
    Command, DeviceState, DiscardHow, Discarded, Ticked, Verified, Written,
};
use serde::de::DeserializeOwned;

/// The guest of one sandbox.
#[derive(Clone, Debug)]
pub struct Told<'a> {
    client: &'a Client,
    sandbox: String,
}

impl<'a> Told<'a> {
    /// The guest of `sandbox`: its id or its name.
    pub fn new(client: &'a Client, sandbox: impl Into<String>) -> Self {
        Self { client, sandbox: sandbox.into() }
    }

    /// Writes every page.
    pub fn fill(&self, seed: u64) -> Result<Written, ClientError> {
        self.tell(&Command::Fill { seed })
    }

    /// Writes a share of the pages.
    pub fn rewrite(&self, rewrite: Rewrite) -> Result<Written, ClientError> {
        self.tell(&Command::Rewrite(rewrite))
    }

    /// Gives a share of the pages back to the kernel.
    pub fn discard(&self, share: Share, how: DiscardHow) -> Result<Discarded, ClientError> {
        self.tell(&Command::Discard { share, how })
    }

    /// Compares every page with its expected content.
    pub fn verify(&self) -> Result<Verified, ClientError> {
        self.tell(&Command::Verify)
    }

    /// Compares `pages` pages and counts a step of progress.
    pub fn tick(&self, pages: u32) -> Result<Ticked, ClientError> {
        self.tell(&Command::Tick { pages })
    }

    /// The guest's state besides its memory.
    pub fn state(&self) -> Result<DeviceState, ClientError> {
        self.tell(&Command::State)
    }

    /// Sends any command, for an answer of the given type.
    pub fn tell<Answer: DeserializeOwned>(&self, command: &Command) -> Result<Answer, ClientError> {
        let words = serde_json::to_value(command).expect("commands are plain data");
        let answer = self.client.tell_guest(&self.sandbox, &words)?;
        serde_json::from_value(answer).map_err(|error| ClientError::Strange {
            endpoint: self.client.endpoint().to_string(),
            status: 200,
            reason: format!("not the answer of {command:?}: {error}"),
        })
    }
}
