//! Checks of the directories that settings name: they can be written, have room, and the store does what a store must.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use rekindle_engine::aside::{Aside, SetAside};
use rekindle_engine::catalog::CatalogError;
use rekindle_engine::store_gate::StoreIdentity;
use uuid::Uuid;

use super::{Check, Outcome};
use crate::commands::shown::{duration, size};
use crate::privacy::open_places;
use crate::settings::Settings;

/// TMPFS_MAGIC (linux/magic.h).
const TMPFS: u64 = 0x0102_1994;

/// Room below which a warning is due: a snapshot's layer can be as large as its guest's memory.
const ROOM_WANTED: u64 = 2 << 30;

/// Room below which nothing can be saved for long.
const ROOM_NEEDED: u64 = 64 << 20;

/// Longest time of all that is tried on the store.
const STORE_LIMIT: Duration = Duration::from_secs(30);

/// Looks at all of them.
pub(super) fn look(settings: &Settings) -> Vec<Check> {
    let from = settings.file.as_ref().map_or_else(
        || "defaults, variables and flags; there is no settings file".to_owned(),
        |path| path.display().to_string(),
    );
    vec![
        Check::ok("settings", from),
        state_directory(&settings.state_directory),
        run_directory(settings),
        store(settings),
        privacy(settings),
        set_aside(&settings.state_directory.join("layers")),
    ]
}

/// Layer files that a start set aside, and what lies among layer files and is none.
fn set_aside(layers: &Path) -> Check {
    let name = "set aside";
    let aside = Aside::below(layers);
    let looked = aside.count().and_then(|held| Ok((held, strange_things(layers, aside.directory())?)));
    let (SetAside { files, bytes }, strange) = match looked {
        Ok(looked) => looked,
        Err(error) => return Check::ok(name, format!("cannot be looked at by this user: {error}")),
    };
    let held = (files > 0).then(|| {
        let size = size(bytes);
        let held = format!(
            "{files} layer files ({size}) that the catalog does not name, in {}",
            aside.directory().display()
        );
        (
            held,
            "restore the catalog that names them, or remove them; they go by themselves after set_aside_kept",
        )
    });
    let strange = strange.first().map(|first| {
        let others = match strange.len() - 1 {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        let told = format!("no layer file, among the layer files: {}{others}", first.display());
        (told, "see what it is and move it away; rekindle does not remove it")
    });
    let (found, advice): (Vec<_>, Vec<_>) = held.into_iter().chain(strange).unzip();
    if found.is_empty() {
        return Check::ok(name, "nothing: the catalog names every layer file");
    }
    Check::warn(name, found.join("; "), advice.join("; "))
}

/// All entries of the directories of layers that are no regular files.
fn strange_things(layers: &Path, aside: &Path) -> io::Result<Vec<PathBuf>> {
    let mut strange = Vec::new();
    for directory in [layers, aside] {
        let entries = match directory.read_dir() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_type()?.is_file() && entry.path() != aside {
                strange.push(entry.path());
            }
        }
    }
    strange.sort();
    Ok(strange)
}

/// Names the places of guests' memory that other users can read.
fn privacy(settings: &Settings) -> Check {
    let name = "privacy";
    let open = open_places(settings);
    let Some((first, _)) = open.first() else {
        return Check::ok(name, "no other user can enter the directories that guests' memory is in");
    };
    let shown: Vec<String> =
        open.iter().map(|(path, mode)| format!("{} (mode {mode:04o})", path.display())).collect();
    Check::warn(
        name,
        format!("other users can enter {}", shown.join(", ")),
        format!("chmod go-rwx {}", first.display()),
    )
}

fn state_directory(path: &Path) -> Check {
    let name = "state directory";
    match room(path) {
        Err(refused) => Check::fail(name, refused, "make it writable, or set state_directory to one that is"),
        Ok(room) if room.filesystem == TMPFS => Check::warn(
            name,
            format!(
                "{} is in RAM (tmpfs): what is sealed but not published is gone after a reboot",
                path.display()
            ),
            "set state_directory to one on a disk",
        ),
        Ok(room) => room.check(name, path, "make room there, or set state_directory to a larger disk"),
    }
}

fn run_directory(settings: &Settings) -> Check {
    let (name, path) = ("run directory", &settings.run_directory);
    if let Err(error) = settings.check_sockets() {
        return Check::fail(name, error.to_string(), "the daemon does not start like this");
    }
    match room(path) {
        Err(refused) => Check::fail(name, refused, "make it writable, or set run_directory to one that is"),
        Ok(room) => Check::ok(name, room.describe(path)),
    }
}

fn store(settings: &Settings) -> Check {
    let name = "store";
    let directory = settings.store.directory();
    let room = match room(directory) {
        Ok(room) => room,
        Err(refused) => return Check::fail(name, refused, "make it writable, or set store to one that is"),
    };
    let is_own = directory.starts_with(&settings.state_directory);
    if !room.exists && !is_own && !directory.parent().is_some_and(Path::is_dir) {
        return Check::fail(
            name,
            format!("{} is not there, and neither is the directory above it", directory.display()),
            "mount the store, make its directory, or set store to another; until then nothing is published",
        );
    }
    if !room.exists {
        return room.check(name, directory, "make room there, or set store to a larger disk");
    }
    let tried = settings.store.objects().map_err(anyhow::Error::from);
    let found = match tried.and_then(|objects| try_store(&objects, whose_store(settings))) {
        Ok(found) => found,
        Err(error) => {
            return Check::fail(
                name,
                format!("{}: {error:#}", settings.store),
                "nothing can be published until the store does this; the daemon tries again until it does",
            );
        }
    };
    let tried = room.check(name, directory, "make room there, or set store to a larger disk");
    Check { found: format!("{}; {found}", tried.found), ..tried }
}

/// Knowledge of the store that this node's snapshots are in.
enum Whose {
    /// Any store may become it.
    Anyones,
    /// It is this one.
    Known(StoreIdentity),
    /// The catalog cannot be read now, for this reason.
    Unknown(String),
}

fn whose_store(settings: &Settings) -> Whose {
    match StoreIdentity::remembered_in(&settings.state_directory.join("catalog.redb")) {
        Ok(None) => Whose::Anyones,
        Ok(Some(known)) => Whose::Known(known),
        Err(CatalogError::Held { .. }) => Whose::Unknown("a daemon uses it".to_owned()),
        Err(error) => Whose::Unknown(error.to_string()),
    }
}

/// A place for files.
struct Room {
    exists: bool,
    free: u64,
    total: u64,
    filesystem: u64,
}

/// The room that `path` has, or will have once it is made; an error says that it cannot be written.
fn room(path: &Path) -> Result<Room, String> {
    let exists = path.exists();
    let place = if exists { path.to_owned() } else { nearest_directory(path) };
    let here = path.display();
    tempfile::tempfile_in(&place).map_err(|error| {
        let error = bare(&error);
        if exists {
            format!("{here} cannot be written: {error}")
        } else {
            format!("{here} is not there and cannot be made in {}: {error}", place.display())
        }
    })?;
    let unreadable = |error: rustix::io::Errno| format!("{here}: its room cannot be told: {error}");
    let space = rustix::fs::statvfs(&place).map_err(unreadable)?;
    let filesystem = rustix::fs::statfs(&place).map_err(unreadable)?.f_type;
    Ok(Room {
        exists,
        free: space.f_bavail.saturating_mul(space.f_frsize),
        total: space.f_blocks.saturating_mul(space.f_frsize),
        filesystem: u64::try_from(filesystem).unwrap_or(0),
    })
}

/// The system's error, without the path of the file it was tried with.
fn bare(error: &io::Error) -> io::Error {
    let inner =
        error.get_ref().and_then(|inner| std::error::Error::source(inner)?.downcast_ref::<io::Error>());
    let code = inner.and_then(io::Error::raw_os_error).or_else(|| error.raw_os_error());
    code.map_or_else(|| io::Error::from(error.kind()), io::Error::from_raw_os_error)
}

fn nearest_directory(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

impl Room {
    fn describe(&self, path: &Path) -> String {
        let made = if self.exists { "" } else { " (made when the daemon starts)" };
        format!("{}{made}, {} of {} free", path.display(), size(self.free), size(self.total))
    }

    fn check(&self, name: &'static str, path: &Path, advice: &str) -> Check {
        let found = self.describe(path);
        let outcome = match self.free {
            ..ROOM_NEEDED => Outcome::Fail,
            ROOM_NEEDED..ROOM_WANTED => Outcome::Warn,
            _ => Outcome::Ok,
        };
        let advice = (outcome != Outcome::Ok).then(|| advice.to_owned());
        Check { name, outcome, found, advice }
    }
}

/// Does with a store what the daemon does with it, and takes away what it wrote. One that may be another than the one with
/// this node's snapshots is only read.
fn try_store(objects: &Arc<dyn ObjectStore>, whose: Whose) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let silent = |_elapsed| anyhow::anyhow!("it does not answer within {STORE_LIMIT:?}");
    let found =
        runtime.block_on(async { tokio::time::timeout(STORE_LIMIT, StoreIdentity::read(objects)).await });
    let found = found.map_err(silent)?.map_err(anyhow::Error::msg)?;
    match (whose, found) {
        (Whose::Known(known), Some(found)) if found == known => {}
        (Whose::Anyones, _) => {}
        (Whose::Known(known), found) => {
            let found = found.map_or_else(
                || "it is none, or has lost its object `store`".to_owned(),
                |found| format!("it is store {} (epoch {})", found.id, found.epoch),
            );
            anyhow::bail!(
                "{found}, and this node's snapshots are in store {} (epoch {}): nothing was written to it; mount that \
                 one, or accept this one with `rekindle serve --accept-store`",
                known.id,
                known.epoch
            );
        }
        (Whose::Unknown(why), _) => {
            runtime.block_on(list(objects))?;
            return Ok(format!("reading and listing work; nothing was written to try it, as {why}"));
        }
    }
    let write_time = runtime.block_on(write_and_delete(objects))?;
    Ok(format!("writing (in {}), reading, ranges, listing and deleting work", duration(write_time)))
}

/// Writes, reads and deletes an object; the answer is how long the write took.
async fn write_and_delete(objects: &Arc<dyn ObjectStore>) -> anyhow::Result<Duration> {
    let path = ObjectPath::from(format!("rekindle-doctor-{}", Uuid::now_v7()));
    let tried = tokio::time::timeout(STORE_LIMIT, try_object(objects, &path)).await;
    let deleted = tokio::time::timeout(STORE_LIMIT, objects.delete(&path)).await;
    let write_time = tried.map_err(|_| anyhow::anyhow!("it does not answer within {STORE_LIMIT:?}"))??;
    deleted
        .map_err(|_| anyhow::anyhow!("deleting: it does not answer within {STORE_LIMIT:?}"))?
        .map_err(|error| anyhow::anyhow!("deleting: {error}"))?;
    match objects.head(&path).await {
        Err(object_store::Error::NotFound { .. }) => Ok(write_time),
        Ok(_) => anyhow::bail!("deleting: the object is still there"),
        Err(error) => anyhow::bail!("asking for what is not there: {error}"),
    }
}

/// Sees that a store lists what is in it.
async fn list(objects: &Arc<dyn ObjectStore>) -> anyhow::Result<()> {
    let first = async { objects.list(None).try_next().await };
    let listed = tokio::time::timeout(STORE_LIMIT, first).await;
    let listed = listed.map_err(|_| anyhow::anyhow!("listing: it does not answer within {STORE_LIMIT:?}"))?;
    listed.map(drop).map_err(|error| anyhow::anyhow!("listing: {error}"))
}

async fn try_object(objects: &Arc<dyn ObjectStore>, path: &ObjectPath) -> anyhow::Result<Duration> {
    const CONTENT: &[u8] = b"written by rekindle doctor to see whether this store works; it can be deleted";
    let begun = Instant::now();
    let failed = |what: &'static str| move |error| anyhow::anyhow!("{what}: {error}");
    objects.put(path, PutPayload::from_static(CONTENT)).await.map_err(failed("writing"))?;
    let write_time = begun.elapsed();
    let all = objects.get(path).await.map_err(failed("reading"))?.bytes().await.map_err(failed("reading"))?;
    anyhow::ensure!(all == CONTENT, "reading: other bytes than were written");
    let part = objects.get_range(path, 8..18).await.map_err(failed("reading a range"))?;
    anyhow::ensure!(part == CONTENT[8..18], "reading a range: other bytes than were written");
    let mut listing = objects.list(None);
    while let Some(entry) = listing.try_next().await.map_err(failed("listing"))? {
        if entry.location == *path {
            return Ok(write_time);
        }
    }
    anyhow::bail!("listing: the object that was written is not in it")
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn listed(objects: &Arc<dyn ObjectStore>) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let all: Vec<_> = runtime.block_on(objects.list(None).try_collect()).unwrap();
        all.into_iter().map(|entry| entry.location.to_string()).collect()
    }

    #[test]
    fn a_store_that_works_is_left_as_it_was() {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        assert!(try_store(&objects, Whose::Anyones).expect("it works").starts_with("writing "));
        assert_eq!(listed(&objects), [""; 0]);
    }

    #[test]
    fn nothing_is_written_to_a_store_that_is_not_the_remembered_one() {
        let place = tempfile::tempdir().unwrap();
        let objects: Arc<dyn ObjectStore> =
            Arc::new(object_store::local::LocalFileSystem::new_with_prefix(place.path()).unwrap());
        let directory = std::fs::File::open(place.path()).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let try_it = |whose| {
            directory.set_modified(long_ago).unwrap();
            let tried = try_store(&objects, whose).map_err(|error| error.to_string());
            let is_untouched = directory.metadata().unwrap().modified().unwrap() == long_ago;
            (tried, is_untouched)
        };
        let identity = |id| -> StoreIdentity {
            serde_json::from_value(serde_json::json!({ "version": 1, "id": Uuid::from_u128(id), "epoch": 1 }))
                .unwrap()
        };
        let (refused, is_untouched) = try_it(Whose::Known(identity(1)));
        assert!(is_untouched && refused.unwrap_err().contains("--accept-store"), "it is no store");
        std::fs::write(place.path().join("store"), serde_json::to_vec(&identity(2)).unwrap()).unwrap();
        let (refused, is_untouched) = try_it(Whose::Known(identity(1)));
        assert!(is_untouched && refused.unwrap_err().contains(&Uuid::from_u128(2).to_string()));
        let (looked, is_untouched) = try_it(Whose::Unknown("a daemon uses it".to_owned()));
        assert!(
            is_untouched && looked.unwrap().contains("nothing was written to try it, as a daemon uses it")
        );
        let (written, is_untouched) = try_it(Whose::Known(identity(2)));
        assert!(!is_untouched && written.unwrap().starts_with("writing "));
        assert_eq!(listed(&objects), ["store"]);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_has_the_room_of_the_one_above() {
        let above = tempfile::tempdir().unwrap();
        let room = room(&above.path().join("a/b")).unwrap();
        assert!(!room.exists && room.total > 0);
        assert!(!above.path().join("a").exists(), "looking makes nothing");
    }

    #[test]
    fn a_directory_among_the_layer_files_is_named() {
        let layers = tempfile::tempdir().unwrap();
        assert_eq!(set_aside(layers.path()).outcome, Outcome::Ok);
        std::fs::write(layers.path().join("one.raw"), "a layer").unwrap();
        let aside = Aside::below(layers.path());
        aside.take(&layers.path().join("one.raw")).unwrap();
        let (here, set) = (layers.path().join("two.raw"), aside.directory().join("three.raw"));
        std::fs::create_dir(&here).unwrap();
        let check = set_aside(layers.path());
        assert_eq!(check.outcome, Outcome::Warn);
        for told in ["1 layer files".to_owned(), format!("among the layer files: {}", here.display())] {
            assert!(check.found.contains(&told), "{told}: {check:?}");
        }
        std::fs::create_dir(&set).unwrap();
        assert!(set_aside(layers.path()).found.contains("and 1 more"));
        std::fs::remove_dir(&here).unwrap();
        assert!(set_aside(layers.path()).found.contains(&set.display().to_string()));
    }

    #[test]
    fn little_room_is_warned_of_and_none_fails() {
        let of = |free| {
            Room { exists: true, free, total: 1 << 40, filesystem: 0 }.check("x", Path::new("/x"), "more")
        };
        assert_eq!(of(1 << 20).outcome, Outcome::Fail);
        assert_eq!(of(1 << 30).outcome, Outcome::Warn);
        assert_eq!(of(1 << 30).advice.as_deref(), Some("more"));
        assert_eq!(of(1 << 33), Check::ok("x", "/x, 8.0 GiB of 1.0 TiB free"));
    }
}
