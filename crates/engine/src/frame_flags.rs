//! One bit per frame of a layer, set and read by many threads.

use crate::frame::FrameNumber;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The bits. Setting one releases what was written before it.
#[derive(Debug)]
pub(crate) struct FrameFlags(Box<[AtomicU64]>);

impl FrameFlags {
    /// None of `frames` is set.
    pub(crate) fn new(frames: usize) -> Self {
        Self((0..frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn get(&self, frame: FrameNumber) -> bool {
        self.0[frame.index() / 64].load(Ordering::Acquire) & Self::bit(frame) != 0
    }

    pub(crate) fn set(&self, frame: FrameNumber) {
        self.0[frame.index() / 64].fetch_or(Self::bit(frame), Ordering::Release);
    }

    pub(crate) fn clear(&self, frame: FrameNumber) {
        self.0[frame.index() / 64].fetch_and(!Self::bit(frame), Ordering::Release);
    }

    pub(crate) fn set_all(&self) {
        for word in &self.0 {
            word.store(u64::MAX, Ordering::Release);
        }
    }

    pub(crate) fn clear_all(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Release);
        }
    }

    fn bit(frame: FrameNumber) -> u64 {
        1 << (frame.index() % 64)
    }
}
