//! The file that says what is on this node, in lines that label a node of Kubernetes or Nomad.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rekindle_api::types::NodePlacement;
use rekindle_engine::private;

/// Permissions of the file: it names snapshots by their ids, and whoever labels the node need not be this user.
const READABLE_BY_ALL: u32 = 0o644;

/// The file, and what it says now.
#[derive(Debug)]
pub(super) struct PlacementFile {
    path: PathBuf,
    says: Option<String>,
    /// True once a failure was logged, until a write succeeds.
    failing: bool,
}

impl PlacementFile {
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), says: None, failing: false }
    }

    /// True if the file does not say what it was told to.
    pub(super) fn is_amiss(&self) -> bool {
        self.says.is_none() || self.failing || !self.path.exists()
    }

    /// Replaces the file as a whole, if it has to say something else: a reader sees the old text or the new one.
    pub(super) fn say(&mut self, node: &NodePlacement) {
        let text = lines(node);
        if !self.is_amiss() && self.says.as_ref() == Some(&text) {
            return;
        }
        match self.replace(&text) {
            Ok(()) => (self.says, self.failing) = (Some(text), false),
            Err(error) => {
                let path = self.path.display();
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%path, %error, "the file of placement_file cannot be written; it is tried again");
                }
            }
        }
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let unfinished = self.unfinished();
        fs::write(&unfinished, text).map_err(|error| private::at(&unfinished, "writing", &error))?;
        fs::set_permissions(&unfinished, Permissions::from_mode(READABLE_BY_ALL))?;
        fs::rename(&unfinished, &self.path)
    }

    fn unfinished(&self) -> PathBuf {
        self.path.with_added_extension("unfinished")
    }

    /// Removes the file: from here on nobody keeps it true.
    pub(super) fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the file of placement_file stays");
        }
    }
}

/// The node in lines of a name, `=` and a value, each of them a label that Kubernetes takes.
fn lines(node: &NodePlacement) -> String {
    let gib = node.layer_bytes.div_ceil(1 << 30);
    let mut lines = format!(
        "rekindle/open={}\nrekindle/running={}\nrekindle/layers-gib={gib}\n",
        node.open, node.running
    );
    for placed in &node.placed {
        if let Some(hint) = placed.resume {
            lines += &format!("rekindle/snapshot-{}={}\n", placed.snapshot, hint.word());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use rekindle_api::types::{PlacedSnapshot, ResumeHint};
    use uuid::Uuid;

    use super::*;

    fn node(running: u64) -> NodePlacement {
        let placed = PlacedSnapshot {
            snapshot: Uuid::from_u128(7),
            state: None,
            resume: Some(ResumeHint::Warm),
            bytes: Some(8192),
            local_bytes: 4096,
        };
        NodePlacement {
            node: "first".to_owned(),
            address: None,
            open: true,
            running,
            snapshots: 1,
            layer_bytes: (2 << 30) + 1,
            layer_bytes_max: None,
            capture_bytes: 0,
            capture_bytes_max: 0,
            event: 1,
            placed: vec![placed],
        }
    }

    #[test]
    fn each_line_is_a_label_that_kubernetes_takes() {
        let text = lines(&node(2));
        let snapshot = "rekindle/snapshot-00000000-0000-0000-0000-000000000007=warm";
        let said: Vec<&str> = text.lines().collect();
        assert_eq!(said, ["rekindle/open=true", "rekindle/running=2", "rekindle/layers-gib=3", snapshot]);
        for line in said {
            let (name, value) = line.split_once('=').expect("a label");
            let (prefix, name) = name.split_once('/').expect("a prefix");
            assert!(prefix == "rekindle" && name.len() <= 63 && value.len() <= 63, "{line}");
        }
    }

    #[test]
    fn the_file_is_replaced_as_a_whole_and_gone_when_it_is_not_kept_true() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("placement");
        let mut file = PlacementFile::at(&path);
        file.say(&node(1));
        let opened = fs::File::open(&path).expect("it is there");
        file.say(&node(2));
        assert_eq!(
            io::read_to_string(opened).expect("it is readable"),
            lines(&node(1)),
            "a reader has the old one"
        );
        assert_eq!(fs::read_to_string(&path).expect("it is there"), lines(&node(2)));
        assert_eq!(path.metadata().expect("it is there").permissions().mode() & 0o777, READABLE_BY_ALL);
        file.remove();
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn a_file_that_could_not_be_written_is_written_once_it_can_be() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("later/placement");
        let mut file = PlacementFile::at(&path);
        file.say(&node(1));
        fs::create_dir(directory.path().join("later")).expect("there is room");
        file.say(&node(1));
        assert!(path.exists());
    }
}
