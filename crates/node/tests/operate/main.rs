//! What is shipped beside the program speaks of what the program has: metrics, settings, paths.

mod metrics;
mod packaging;
mod promql;
mod settings;

use std::path::{Path, PathBuf};

/// A file of the repository.
fn file(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
