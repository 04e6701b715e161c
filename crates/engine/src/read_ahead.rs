//! Decides the number of frames of a layer to fetch at once, from the frames requested so far.

use crate::frame::FrameNumber;
use crate::limits;

/// The pattern of a layer's fetches: forward frame by frame, or random.
#[derive(Debug, Default)]
pub struct ReadAhead {
    /// The frame after the last window.
    next: usize,
    /// Frames of the last window; 0 before there was one.
    frames: usize,
}

impl ReadAhead {
    /// Number of frames to fetch from `frame` on: one at first and after a jump, then twice as many each time `frame`
    /// directly follows the last window.
    pub fn window(&mut self, frame: FrameNumber) -> usize {
        let ahead = frame.index().checked_sub(self.next);
        let goes_on = self.frames > 0 && ahead.is_some_and(|ahead| ahead <= self.frames);
        self.frames = if goes_on { (self.frames * 2).min(limits::READ_AHEAD_FRAMES_MAX) } else { 1 };
        self.next = frame.index() + self.frames;
        self.frames
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn windows(frames: &[usize]) -> Vec<usize> {
        let mut ahead = ReadAhead::default();
        frames.iter().map(|frame| ahead.window(FrameNumber::new(*frame))).collect()
    }

    #[test]
    fn a_walk_soon_fetches_many_frames_at_once() {
        assert_eq!(windows(&[0, 1, 3, 7, 15, 31]), [1, 2, 4, 8, 16, 16]);
    }

    #[test]
    fn a_walk_may_leave_frames_out() {
        assert_eq!(windows(&[10, 12, 15]), [1, 2, 4]);
    }

    #[test]
    fn a_jump_fetches_one_frame() {
        assert_eq!(windows(&[0, 1, 100, 50, 0]), [1, 2, 1, 1, 1]);
    }
}
