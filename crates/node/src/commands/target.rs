//! The thing that a word on the command line names: a sandbox or a snapshot, by name, id, or a part of its id as lists
//! show it.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Args;
use rekindle_api::client::{Client, ClientError};
use rekindle_api::problem::Code;
use rekindle_api::types::{LabelFilter, Labels, Sandbox, Snapshot};
use uuid::Uuid;

use super::shown;
use super::status::{NeverPaused, NoSuchThing};

/// The thing that a word names.
#[derive(Clone, Debug)]
pub enum Target {
    /// A sandbox.
    Sandbox(Box<Sandbox>),
    /// A snapshot.
    Snapshot(Box<Snapshot>),
}

/// A word that names a sandbox or a snapshot.
#[derive(Args, Clone, Debug)]
pub struct Reference {
    /// A name, an id, or its beginning or end; sandbox/NAME or snapshot/NAME if both have the name
    #[arg(value_name = "NAME|ID")]
    pub reference: String,
}

/// Labels to be put on something.
#[derive(Args, Clone, Debug)]
pub struct LabelArguments {
    /// A label to put on it; can be given again
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
}

impl LabelArguments {
    /// The labels; an error where one name has two values.
    pub fn labels(&self) -> anyhow::Result<Labels> {
        labels(&self.labels, "--label")
    }
}

/// The labels that were given by `option`; an error where one name has two values.
pub fn labels(given: &[(String, String)], option: &str) -> anyhow::Result<Labels> {
    let mut labels = BTreeMap::new();
    for (name, value) in given {
        let before = labels.insert(name.clone(), value.clone());
        if let Some(before) = before.filter(|before| before != value) {
            bail!("{option} {name}: it is both {before} and {value}; give each label one value");
        }
    }
    Ok(Labels::try_from(labels)?)
}

/// A label as the command line has it.
pub fn label(word: &str) -> Result<(String, String), String> {
    let (name, value) = word.split_once('=').ok_or("a label is NAME=VALUE, such as team=blue")?;
    if name.is_empty() {
        Err("a label has a name before its =".to_owned())
    } else {
        Ok((name.into(), value.into()))
    }
}

/// A label to look for, as the command line has it.
pub fn label_filter(word: &str) -> Result<LabelFilter, String> {
    let (name, value) = label(word)?;
    LabelFilter::try_from(format!("{name}={value}")).map_err(|error| error.to_string())
}

impl Target {
    /// Looks a word up.
    pub fn find(client: &Client, word: &str) -> anyhow::Result<Self> {
        if let Some(name) = word.strip_prefix("sandbox/") {
            return Ok(Self::Sandbox(Box::new(sandbox(client, name)?)));
        }
        if let Some(name) = word.strip_prefix("snapshot/") {
            return Ok(Self::Snapshot(Box::new(snapshot(client, name)?)));
        }
        let (sandbox, snapshot) = (there(client.sandbox(word))?, there(client.snapshot(word))?);
        match (sandbox, snapshot) {
            (Some(sandbox), None) => Ok(Self::Sandbox(Box::new(sandbox))),
            (None, Some(snapshot)) => Ok(Self::Snapshot(Box::new(snapshot))),
            (None, None) => {
                Err(NoSuchThing { what: "sandbox or snapshot", reference: word.to_owned() }.into())
            }
            (Some(sandbox), Some(snapshot)) => bail!(
                "`{word}` is both sandbox {} and snapshot {}; write sandbox/{word} or snapshot/{word}",
                sandbox.id,
                snapshot.id
            ),
        }
    }

    /// Its id.
    pub fn id(&self) -> Uuid {
        match self {
            Self::Sandbox(sandbox) => sandbox.id,
            Self::Snapshot(snapshot) => snapshot.id,
        }
    }

    /// Its kind, in one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sandbox(_) => "sandbox",
            Self::Snapshot(_) => "snapshot",
        }
    }

    /// `sandbox web`, or with its id where it has no name.
    pub fn title(&self) -> String {
        match self {
            Self::Sandbox(sandbox) => sandbox_title(sandbox),
            Self::Snapshot(snapshot) => snapshot_title(snapshot),
        }
    }
}

/// `sandbox web`, or with its id where it has no name.
pub fn sandbox_title(sandbox: &Sandbox) -> String {
    format!("sandbox {}", shown::name_or_id(sandbox.name.as_deref(), &sandbox.id))
}

/// The id in brackets, for behind a title that does not have it.
pub fn bracketed_id(name: Option<&str>, id: &Uuid) -> String {
    if name.is_some() { format!(" ({id})") } else { String::new() }
}

/// `snapshot base`, or with its id where it has no name.
pub fn snapshot_title(snapshot: &Snapshot) -> String {
    format!("snapshot {}", shown::name_or_id(snapshot.name.as_deref(), &snapshot.id))
}

/// The sandbox that a word names.
pub fn sandbox(client: &Client, word: &str) -> anyhow::Result<Sandbox> {
    let name = word.strip_prefix("sandbox/").unwrap_or(word);
    if let Some(sandbox) = there(client.sandbox(name))? {
        return Ok(sandbox);
    }
    match there(client.snapshot(name))? {
        Some(_) => {
            bail!("`{name}` is a snapshot; this is done with a sandbox. `rekindle list sandboxes` shows them")
        }
        None => Err(NoSuchThing { what: "sandbox", reference: name.to_owned() }.into()),
    }
}

/// The snapshot that a word names; of a sandbox, that of its last pause.
pub fn snapshot(client: &Client, word: &str) -> anyhow::Result<Snapshot> {
    let name = word.strip_prefix("snapshot/").unwrap_or(word);
    if let Some(snapshot) = there(client.snapshot(name))? {
        return Ok(snapshot);
    }
    Err(NoSuchThing { what: "snapshot", reference: name.to_owned() }.into())
}

/// The id of the snapshot that a target is or was last paused into.
pub fn snapshot_of(target: &Target) -> anyhow::Result<Uuid> {
    match target {
        Target::Snapshot(snapshot) => Ok(snapshot.id),
        Target::Sandbox(sandbox) => match sandbox.snapshot {
            Some(id) => Ok(id),
            None => Err(NeverPaused { sandbox: target.title() }.into()),
        },
    }
}

/// The thing asked for; `None` if it does not exist.
fn there<T>(answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Ok(thing) => Ok(Some(thing)),
        Err(error) if error.code() == Some(Code::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}
