//! Bytes that layer files take on this node's disk, counted by file: blocks of the disk, not lengths.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::limits;

/// Unit of `st_blocks` (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// Bytes of all layer files. Its watcher is woken when they pass a mark, or have grown much since it last looked.
#[derive(Debug)]
pub struct DiskUse {
    bytes: AtomicU64,
    /// Bytes above which the watcher is woken.
    mark: AtomicU64,
    grown: AtomicU64,
    woken: Notify,
}

/// Bytes of one file. They count until no reader holds the file and no name leads to it.
#[derive(Debug)]
pub struct FileBytes {
    all: Arc<DiskUse>,
    counted: AtomicU64,
}

impl Default for DiskUse {
    fn default() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            mark: AtomicU64::new(u64::MAX),
            grown: AtomicU64::new(0),
            woken: Notify::new(),
        }
    }
}

impl DiskUse {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A file of which nothing is counted yet.
    pub fn file(self: &Arc<Self>) -> Arc<FileBytes> {
        Arc::new(FileBytes { all: Arc::clone(self), counted: AtomicU64::new(0) })
    }

    /// Says that the watcher has looked, and will look again once there are more than `mark` bytes.
    pub fn looked(&self, mark: u64) {
        self.mark.store(mark, Ordering::Relaxed);
        self.grown.store(0, Ordering::Relaxed);
    }

    /// Wakes the watcher if there are more bytes than it wants: more of them may go by now.
    pub fn wake_above_mark(&self) {
        if self.bytes() > self.mark.load(Ordering::Relaxed) {
            self.woken.notify_one();
        }
    }

    /// Waits until there is a reason to look.
    pub async fn reason_to_look(&self) {
        self.woken.notified().await;
    }
}

impl FileBytes {
    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// Counts what the system says of the file now.
    pub fn note(&self, found: &Metadata) {
        self.count(bytes_on_disk(found));
    }

    fn count(&self, now: u64) {
        let before = self.counted.swap(now, Ordering::Relaxed);
        if now <= before {
            self.all.bytes.fetch_sub(before - now, Ordering::Relaxed);
            return;
        }
        let more = now - before;
        let bytes = self.all.bytes.fetch_add(more, Ordering::Relaxed) + more;
        let grown = self.all.grown.fetch_add(more, Ordering::Relaxed) + more;
        // Above the mark it is woken by growth alone: perhaps nothing can go.
        let mark = self.all.mark.load(Ordering::Relaxed);
        if (bytes - more..bytes).contains(&mark) || grown >= limits::DISK_LOOK_BYTES {
            self.all.woken.notify_one();
        }
    }
}

impl Drop for FileBytes {
    fn drop(&mut self) {
        self.all.bytes.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

/// Bytes that a file takes on its disk: those of its holes are not among them.
pub fn bytes_on_disk(found: &Metadata) -> u64 {
    found.blocks() * BLOCK_BYTES
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_until_the_last_holder_of_a_file_is_gone() {
        let all = Arc::<DiskUse>::default();
        let (file, other) = (all.file(), all.file());
        file.count(10);
        other.count(5);
        file.count(4);
        assert_eq!((all.bytes(), file.bytes()), (9, 4));
        let reader = Arc::clone(&file);
        drop(file);
        assert_eq!(all.bytes(), 9);
        drop(reader);
        assert_eq!(all.bytes(), 5);
    }

    #[test]
    fn the_watcher_is_woken_above_its_mark_and_by_much_growth() {
        let all = Arc::<DiskUse>::default();
        let is_woken = || {
            let waiting = std::pin::pin!(all.reason_to_look());
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            waiting.poll(&mut context).is_ready()
        };
        let file = all.file();
        file.count(10);
        assert!(!is_woken());
        all.looked(20);
        file.count(21);
        assert!(is_woken());
        all.looked(u64::MAX);
        file.count(22 + limits::DISK_LOOK_BYTES);
        assert!(is_woken());
    }
}
