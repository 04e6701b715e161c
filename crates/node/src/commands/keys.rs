//! `rekindle keys`: shows the keys in this node's key ring, and replaces them.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use rekindle_engine::identity::DomainName;
use rekindle_engine::key_ring::DomainKey;
use rekindle_settings::{SettingFlags, Settings};
use serde::Serialize;

use super::output::{Rows, Tone, Word};
use super::session::Session;
use super::status::Status;
use crate::key_ring::{self, KeyRingFileError};

/// The ring, and what to do with it.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
A daemon reads its key ring when it starts. After a rotation, copy the file to all nodes of the store and into the back-up \
before any of their daemons is restarted: a node without the new key cannot read what others make with it, and says so.")]
pub struct KeysArguments {
    #[command(subcommand)]
    command: Option<KeysCommand>,
    /// The key ring [default: the setting key_ring]
    #[arg(long, global = true, value_name = "PATH")]
    key_ring: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
enum KeysCommand {
    /// Make a new key of a domain, which the daemon takes at its next start; the one before it goes on to read
    Rotate {
        /// The domain
        domain: DomainName,
    },
}

/// A key, as programs read it.
#[derive(Debug, Serialize)]
struct Shown {
    domain: String,
    key: String,
    #[serde(rename = "use")]
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<String>,
}

/// Use of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Usage {
    /// It names what is packed in its domain.
    Write,
    /// It reads what it named before.
    Read,
}

/// The new key, as programs read it.
#[derive(Debug, Serialize)]
struct Rotated {
    domain: String,
    key: String,
    replaces: String,
    file: PathBuf,
}

/// Shows the keys, or replaces one.
pub fn run(session: &Session, arguments: &KeysArguments) -> anyhow::Result<Status> {
    let key_ring = arguments.key_ring.as_ref().map(|path| path.display().to_string());
    let flags = SettingFlags::default().with("key_ring", "--key-ring", key_ring);
    let path = Settings::load(&session.setting_flags(flags))?.key_ring;
    match &arguments.command {
        None => list(session, path),
        Some(KeysCommand::Rotate { domain }) => rotate(session, path, domain),
    }
}

fn list(session: &Session, path: PathBuf) -> anyhow::Result<Status> {
    let file = key_ring::read(&path)?.ok_or(KeyRingFileError::NotThere { path })?;
    let keys = shown(&file.keys());
    if session.output.json {
        session.output.value(&keys)?;
        return Ok(Status::Done);
    }
    let mut rows = Rows::new(&["DOMAIN", "KEY", "USE", "REPLACES"]);
    for Shown { domain, key, usage, replaces } in keys {
        let usage = match usage {
            Usage::Write => Word::from("writes"),
            Usage::Read => Word::from("reads").tone(Tone::Faint),
        };
        rows.add([domain.into(), key.into(), usage, replaces.unwrap_or_default().into()]);
    }
    session.output.rows(rows)?;
    Ok(Status::Done)
}

fn shown(keys: &[DomainKey]) -> Vec<Shown> {
    let is_first = |at: usize| keys[..at].iter().all(|key| key.domain().name() != keys[at].domain().name());
    let show = |(at, key): (usize, &DomainKey)| Shown {
        domain: key.domain().name().to_string(),
        key: key.domain().key_id().to_string(),
        usage: if is_first(at) { Usage::Write } else { Usage::Read },
        replaces: key.replaced().map(|id| id.to_string()),
    };
    keys.iter().enumerate().map(show).collect()
}

fn rotate(session: &Session, path: PathBuf, domain: &DomainName) -> anyhow::Result<Status> {
    let rotation = key_ring::rotate(&path, domain)?;
    let (key, replaced) = (rotation.key, rotation.replaced);
    if session.output.json {
        let (domain, key, replaces) = (domain.to_string(), key.to_string(), replaced.to_string());
        session.output.value(&Rotated { domain, key, replaces, file: path })?;
        return Ok(Status::Done);
    }
    let path = path.display();
    session.output.line(&format!(
        "Key {key} names what is packed in domain {domain} once the daemon has started again; key {replaced} reads."
    ))?;
    session.output.line(&format!(
        "Copy {path} to the other nodes of the store and to its back-up now, and restart the daemons after that."
    ))?;
    Ok(Status::Done)
}
