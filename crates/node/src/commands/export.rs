//! `rekindle export` and `rekindle import`: a snapshot as one file, without a daemon's help.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use rekindle_api::types::SnapshotState;
use rekindle_engine::engine::{Engine, Transferred};
use rekindle_engine::identity::SnapshotId;
use rekindle_input::regular_file::RegularFile;
use rekindle_settings::{SettingFlags, Settings};
use serde::Serialize;
use uuid::Uuid;

use super::session::Session;
use super::shown::size;
use super::status::Status;
use super::target::{Target, snapshot_of};
use super::wait::wait_for;
use crate::daemon::engine_on_store;

/// Longest wait for a snapshot to be in the store.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(600);

/// The store.
#[derive(Args, Clone, Debug)]
struct StoreArgument {
    /// Another store than that of the settings: a directory, or a bucket's URL
    #[arg(long = "store", value_name = "PATH|URL")]
    place: Option<String>,
}

/// The snapshot to export, and the file.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
The command reads the store itself, with the settings and the key ring of this machine: run it as the daemon's user, or as \
root. A daemon is asked where the word is not a whole id, and waited for until the snapshot is in the store. The file has \
everything that a node needs which has the key ring: it is a tar archive of the snapshot's objects.")]
pub struct ExportArguments {
    /// A sandbox's or a snapshot's name, an id, or its beginning or end; a whole id needs no daemon
    #[arg(value_name = "NAME|ID")]
    reference: String,
    /// The file to write, which must not be there yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    store: StoreArgument,
}

/// The file to import.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
The command writes to the store itself, with the settings and the key ring of this machine: run it as the daemon's user, or \
as root. It needs as much room beside the file as the snapshot's pages take. Afterwards every node of the store has the \
snapshot: `rekindle resume ID`.")]
pub struct ImportArguments {
    /// The file that `rekindle export` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    store: StoreArgument,
}

/// The result, for programs.
#[derive(Debug, Serialize)]
struct Report {
    snapshot: Uuid,
    file: PathBuf,
    layers: usize,
    stored_bytes: u64,
    was_there: bool,
}

impl StoreArgument {
    fn settings(&self, session: &Session) -> anyhow::Result<Settings> {
        let flags = SettingFlags::default().with("store", "--store", self.place.clone());
        Ok(Settings::load(&session.setting_flags(flags))?)
    }
}

/// Exports a snapshot; of a sandbox, the one of its last pause.
pub fn export(session: &Session, arguments: &ExportArguments) -> anyhow::Result<Status> {
    let file = &arguments.file;
    if file.symlink_metadata().is_ok() {
        bail!("{} is there already: name another file, or remove it", file.display());
    }
    let settings = arguments.store.settings(session)?;
    let snapshot = published(session, &arguments.reference)?;
    let beside = directory_of(file);
    // Only its user may read what was a guest's memory.
    let written = tempfile::NamedTempFile::new_in(beside);
    let written = written.with_context(|| format!("making a file in {}", beside.display()))?;
    let place = tempfile::tempdir().context("making a directory")?;
    let exported = session.output.during("reading the store", || {
        let engine = engine_on_store(&settings, place.path())?;
        let exported = engine.export(SnapshotId::from(snapshot), io::BufWriter::new(written.as_file()));
        sign_off(session, &engine);
        exported.with_context(|| format!("reading the store {}", settings.store))
    })?;
    written.as_file().sync_all().with_context(|| format!("writing {}", file.display()))?;
    written.persist_noclobber(file).map_err(|error| error.error).context("naming the file")?;
    File::open(beside)?.sync_all().with_context(|| format!("writing {}", beside.display()))?;
    report(session, file, exported, &format!("is in {}", file.display()))
}

/// Imports a snapshot.
pub fn import(session: &Session, arguments: &ImportArguments) -> anyhow::Result<Status> {
    let file = &arguments.file;
    let opened = RegularFile::open(file, u64::MAX).with_context(|| file.display().to_string())?;
    let opened = opened.file().try_clone().with_context(|| file.display().to_string())?;
    let settings = arguments.store.settings(session)?;
    let beside = directory_of(file);
    let place = tempfile::Builder::new().prefix(".rekindle-import-").tempdir_in(beside);
    let place = place.with_context(|| format!("making a directory in {}", beside.display()))?;
    let imported = session.output.during("writing to the store", || {
        let engine = engine_on_store(&settings, place.path())?;
        let imported = engine.import(opened);
        sign_off(session, &engine);
        imported.with_context(|| format!("{} into the store {}", file.display(), settings.store))
    })?;
    let done = if imported.was_there { "was in the store already" } else { "is in the store" };
    report(session, file, imported, done)
}

/// Takes the traces of the command's own engine out of the store.
fn sign_off(session: &Session, engine: &Engine) {
    if let Err(error) = engine.sign_off() {
        session.output.note(&format!("rekindle: the store keeps a sign of this command: {error}"));
    }
}

/// The id of the snapshot that a word means, once it is in the store.
fn published(session: &Session, word: &str) -> anyhow::Result<Uuid> {
    let found = session.client().and_then(|client| {
        let snapshot = snapshot_of(&Target::find(&client, word)?)?;
        wait_for(session, &client, snapshot, SnapshotState::Published, PUBLISHED_WITHIN)?;
        Ok(snapshot)
    });
    match (found, Uuid::try_parse(word)) {
        (Err(error), Ok(id)) if Status::of_error(&error) == Status::NoDaemon => Ok(id),
        (found, _) => found,
    }
}

fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn report(session: &Session, file: &Path, of: Transferred, done: &str) -> anyhow::Result<Status> {
    let Transferred { snapshot, layers, bytes, was_there } = of;
    if session.output.json {
        let (snapshot, file) = (snapshot.uuid(), file.to_owned());
        session.output.value(&Report { snapshot, file, layers, stored_bytes: bytes, was_there })?;
    } else {
        session.output.line(&format!("snapshot {snapshot} {done}: {layers} layers, {}", size(bytes)))?;
    }
    Ok(Status::Done)
}
