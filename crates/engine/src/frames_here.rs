//! Frames of a layer for another node, which proves each by the layer's name as it proves those of a store.

use std::ops::Range;
use std::sync::Arc;

use crate::frame::FrameNumber;
use crate::local_file::{LayerError, LocalFile};

/// Frames of a layer, one after the other, with those of them that are on this disk and were right when they were looked at.
#[derive(Debug)]
pub struct FramesHere {
    file: Option<Arc<LocalFile>>,
    frames: Range<usize>,
    there: Vec<bool>,
}

impl FramesHere {
    /// Looks at these frames of a layer's file; none is there without a file.
    pub(crate) fn of(file: Option<Arc<LocalFile>>, frames: Range<usize>) -> Self {
        let is_there = |frame: usize| {
            file.as_ref().is_some_and(|file| matches!(file.load_local(FrameNumber::new(frame)), Ok(true)))
        };
        let there = frames.clone().map(is_there).collect();
        Self { file, frames, there }
    }

    /// Of each frame, true if it is there.
    pub fn there(&self) -> &[bool] {
        &self.there
    }

    /// Appends the raw bytes of those that are there, one after the other.
    pub fn append_to(&self, bytes: &mut Vec<u8>) -> Result<(), LayerError> {
        let Some(file) = &self.file else { return Ok(()) };
        let there = self.frames.clone().zip(&self.there).filter(|(_, is_there)| **is_there);
        there.map(|(frame, _)| FrameNumber::new(frame)).try_for_each(|frame| file.append_frame(frame, bytes))
    }
}
