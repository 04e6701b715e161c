//! Files that puts into a store's directory left when their process was killed: no list of the store tells of them.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Time since the last write after which a file is of no put that goes on.
const LEFT_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Removes them from the directory of a store; what cannot be removed stays until the next time.
pub(super) fn remove_unfinished_puts(store: &Path) {
    match remove_below(store, LEFT_AFTER) {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "files of puts that were never finished are removed"),
        Err(error) => tracing::warn!(%error, "files of puts that were never finished stay in the store"),
    }
}

fn remove_below(directory: &Path, left_after: Duration) -> io::Result<u64> {
    let mut removed = 0;
    for entry in directory.read_dir()? {
        let entry = entry?;
        // Any of them may go while this looks.
        let Ok(found) = entry.metadata() else { continue };
        if found.is_dir() {
            removed += remove_below(&entry.path(), left_after).or_else(not_there)?;
        } else if is_unfinished(&entry.file_name().to_string_lossy())
            && found.modified()?.elapsed().is_ok_and(|age| age >= left_after)
        {
            fs::remove_file(entry.path()).or_else(not_there)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn not_there<T: Default>(error: io::Error) -> io::Result<T> {
    if error.kind() == io::ErrorKind::NotFound { Ok(T::default()) } else { Err(error) }
}

/// True if `object_store` stages a put in a file of this name: the object's, `#` and a number.
fn is_unfinished(name: &str) -> bool {
    let number = name.rsplit_once('#').map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_puts_that_were_never_finished_go_and_objects_stay() {
        let store = tempfile::tempdir().expect("a directory");
        let layer = store.path().join("layers/ab");
        fs::create_dir_all(&layer).expect("there is room");
        for name in ["object", "object#1", "object#", "object#1x", "#12"] {
            fs::write(layer.join(name), "bytes").expect("there is room");
        }
        assert_eq!(remove_below(store.path(), LEFT_AFTER).expect("it can be read"), 0, "they are young");
        assert_eq!(remove_below(store.path(), Duration::ZERO).expect("it can be read"), 2);
        let mut left: Vec<_> = layer
            .read_dir()
            .expect("it is there")
            .map(|entry| entry.expect("it can be read").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["object", "object#", "object#1x"]);
    }
}
