//! The files shipped beside the program name only metrics, settings and paths that the program has.

mod manifests;
mod metrics;
mod packaging;
mod promql;
mod settings;

use std::path::{Path, PathBuf};

/// A file of the repository.
fn file(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).expect("the repository has the file")
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
