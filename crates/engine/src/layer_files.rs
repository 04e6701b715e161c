//! The directory of this node's layer files, shared by all of them: paths, bytes on the disk, and open files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use crate::aside::AsideDirectory;
use crate::disk_use::DiskUse;
use crate::identity::LayerId;
use crate::only_here::OnlyHere;
use crate::private;

/// The directory, with what is counted of its files.
#[derive(Debug)]
pub struct LayerFiles {
    directory: PathBuf,
    aside: AsideDirectory,
    bytes: Arc<DiskUse>,
    only_here: Arc<OnlyHere>,
    open: AtomicUsize,
    open_max: usize,
    closer: OnceLock<Weak<dyn CloseFiles>>,
    is_closing: AtomicBool,
    /// A clock for comparing when layers were used: it advances at each look at the disk and at each open.
    ticks: AtomicU64,
}

/// Closes layer files that are not in use; they are opened again when they are needed.
pub trait CloseFiles: std::fmt::Debug + Send + Sync {
    /// Closes up to `count` files, the least recently used first.
    fn close(&self, count: usize);
}

/// One open file, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct CountedOpen(Arc<LayerFiles>);

impl LayerFiles {
    /// The files of a directory, of which about `open_max` are open at once.
    pub fn new(directory: &Path, open_max: usize) -> Self {
        Self {
            directory: directory.to_owned(),
            aside: AsideDirectory::below(directory),
            bytes: Arc::default(),
            only_here: Arc::default(),
            open: AtomicUsize::new(0),
            open_max: open_max.max(1),
            closer: OnceLock::new(),
            is_closing: AtomicBool::new(false),
            ticks: AtomicU64::new(1),
        }
    }

    /// Sets what closes files when too many are open; the first one stays.
    pub fn set_closer(&self, closer: Weak<dyn CloseFiles>) {
        self.closer.get_or_init(|| closer);
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The files that were set aside.
    pub fn aside(&self) -> &AsideDirectory {
        &self.aside
    }

    /// Bytes that the files take on the disk.
    pub fn bytes(&self) -> &Arc<DiskUse> {
        &self.bytes
    }

    /// The layers that are nowhere else.
    pub fn only_here(&self) -> &Arc<OnlyHere> {
        &self.only_here
    }

    /// Path of a layer's file.
    pub fn path_of(&self, layer: LayerId) -> PathBuf {
        self.directory.join(format!("{layer}.raw"))
    }

    /// A new file, under a name that the next start removes.
    pub(crate) fn unfinished(&self) -> io::Result<(File, PathBuf)> {
        let path = self.directory.join(format!("{}.{UNFINISHED}", uuid::Uuid::now_v7()));
        Ok((private::options().create_new(true).open(&path)?, path))
    }

    /// Opens the file at a layer's path, which may have been set aside by a start whose catalog did not name it.
    pub(crate) fn open_there(&self, layer: LayerId) -> io::Result<File> {
        let path = self.path_of(layer);
        match private::options().open(&path) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && self.aside.give_back(layer, &path)? =>
            {
                private::options().open(&path)
            }
            opened => opened,
        }
    }

    /// Counts one more open file. If there are too many now, others are closed.
    pub(crate) fn count_open(self: &Arc<Self>) -> CountedOpen {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.tick();
        let counted = CountedOpen(Arc::clone(self));
        if open > self.open_max && !self.is_closing.swap(true, Ordering::Acquire) {
            if let Some(closer) = self.closer.get().and_then(Weak::upgrade) {
                closer.close(open - self.open_max + self.open_max / 4);
            }
            self.is_closing.store(false, Ordering::Release);
        }
        counted
    }

    /// Number of files that are open.
    pub fn open_count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Largest number of files that stay open without a reader.
    pub fn open_max(&self) -> usize {
        self.open_max
    }

    /// The clock's present value.
    pub fn now(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// Advances the clock.
    pub fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }
}

/// End of the names of files that no layer has yet.
pub(crate) const UNFINISHED: &str = "packing";

impl Drop for CountedOpen {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
