//! Checks of the directories that settings name: they can be written and have room.

use std::io;
use std::path::{Path, PathBuf};

use rekindle_engine::aside::{AsideDirectory, SetAside};
use rekindle_settings::Settings;

use super::room::room;
use super::{Check, store};
use crate::commands::shown::size;
use crate::privacy::open_places;

/// TMPFS_MAGIC (linux/magic.h).
const TMPFS: u64 = 0x0102_1994;

/// Looks at all of them.
pub(super) fn look(settings: &Settings) -> Vec<Check> {
    let from = settings.file.as_ref().map_or_else(
        || "defaults, variables and flags; there is no settings file".to_owned(),
        |path| path.display().to_string(),
    );
    let places =
        [Check::ok("settings", from), state_directory(&settings.state_directory), run_directory(settings)];
    let others =
        [super::keys::look(settings), privacy(settings), set_aside(&settings.state_directory.join("layers"))];
    places.into_iter().chain(store::look(settings)).chain(others).collect()
}

/// Layer files that a start set aside, and what lies among layer files and is none.
fn set_aside(layers: &Path) -> Check {
    let name = "set aside";
    let aside = AsideDirectory::below(layers);
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
        Ok(room) if room.filesystem() == TMPFS => Check::warn(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::Outcome;

    #[test]
    fn a_directory_among_the_layer_files_is_named() {
        let layers = tempfile::tempdir().unwrap();
        assert_eq!(set_aside(layers.path()).outcome, Outcome::Ok);
        std::fs::write(layers.path().join("one.raw"), "a layer").unwrap();
        let aside = AsideDirectory::below(layers.path());
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
}
