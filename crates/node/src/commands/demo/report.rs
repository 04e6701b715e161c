//! The demo's measurements, as one JSON object or as the last lines of its output.

use bytesize::ByteSize;
use rekindle_api::types::Snapshot;
use serde::Serialize;

/// Everything the demo measured. Times are seconds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// The second pause, of the guest with rewritten pages.
    pub pause: Pause,
    /// The resume that overlapped the seal.
    pub overlap_resume: OverlapResume,
    /// The same resume with early serving off.
    pub waiting_resume: FirstProgress,
    /// The fork that was paused again.
    pub window_pause: WindowPause,
    /// The seal of the second pause.
    pub seal: Seal,
    /// Bytes published to the store.
    pub publish: Publish,
    /// The resume by a new engine that had nothing but the store.
    pub cold_resume: ColdResume,
    /// The checkpoint of that guest, which went on.
    pub checkpoint: Pause,
    /// Every check of all guests together.
    pub verified: Verified,
    /// The virtual machine, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestReport>,
}

/// The virtual machine of the demo.
#[derive(Debug, Serialize)]
pub struct GuestReport {
    /// Its VMM.
    pub vmm: &'static str,
    /// Its kernel.
    pub kernel: &'static str,
    /// Its accelerator.
    pub accelerator: &'static str,
}

/// A pause or a checkpoint.
#[derive(Debug, Serialize)]
pub struct Pause {
    /// From the request to the answer.
    pub answer_seconds: f64,
    /// Of that, the time in which the guest stood still.
    pub frozen_seconds: f64,
}

/// The resume that overlapped the seal.
#[derive(Debug, Serialize)]
pub struct OverlapResume {
    /// From the request to the guest's first step.
    pub first_progress_seconds: f64,
    /// The median of smaller resumes with nothing else running.
    pub control_first_progress_seconds: f64,
    /// The median of the pairs' ratios: during a seal over with nothing else running.
    pub ratio: f64,
    /// The least of them.
    pub ratio_min: f64,
    /// The greatest of them.
    pub ratio_max: f64,
    /// The pairs.
    pub pairs: Vec<Pair>,
    /// Pages that both forks were given from the capture.
    pub pages_from_capture: u64,
    /// True if the seal was still under way at the guest's first step.
    pub seal_was_running: bool,
}

/// Two smaller resumes of the same kind, one after the other.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pair {
    /// To the first step, while the snapshot was being sealed.
    pub during_seconds: f64,
    /// To the first step, with nothing else running.
    pub alone_seconds: f64,
    /// True if the seal was still under way at the first one's first step.
    pub seal_was_running: bool,
}

/// Work that goes on beside a resume whose time is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// The seal of its own snapshot.
    Seal,
    /// Nothing.
    Nothing,
}

/// Some resume.
#[derive(Debug, Serialize)]
pub struct FirstProgress {
    /// From the request to the guest's first step.
    pub first_progress_seconds: f64,
}

/// A fork paused again.
#[derive(Debug, Serialize)]
pub struct WindowPause {
    /// From the request to the answer.
    pub answer_seconds: f64,
    /// True if its parent was still unsealed at the answer.
    pub parent_was_unsealed: bool,
}

/// A seal.
#[derive(Debug, Serialize)]
pub struct Seal {
    /// From the proof that the memory is not written any more to the manifest.
    pub seconds: f64,
    /// Pages captured.
    pub dirty_pages: u32,
    /// Of those, zero.
    pub zero_pages: u32,
    /// Of those, equal to the parent's.
    pub equal_pages: u32,
    /// Of those, stored.
    pub kept_pages: u32,
}

/// Bytes published to the store.
#[derive(Debug, Serialize)]
pub struct Publish {
    /// Bytes of all objects.
    pub stored_bytes: u64,
}

/// A cold resume.
#[derive(Debug, Serialize)]
pub struct ColdResume {
    /// From the request, which begins with the manifest, to the guest's first step.
    pub first_progress_seconds: f64,
    /// Bytes fetched until every page was verified.
    pub fetched_bytes: u64,
    /// Requests that took.
    pub fetches: u64,
}

/// Checks of guest pages.
#[derive(Debug, Default, Serialize)]
pub struct Verified {
    /// Pages compared with what they must hold.
    pub pages: u64,
    /// Of those, wrong.
    pub mismatches: u64,
}

/// The forks' work while their snapshot was being saved; `last` is the snapshot that one of them became.
pub(super) struct Window {
    pub(super) overlap_seconds: f64,
    pub(super) waiting: FirstProgress,
    pub(super) seal_was_running: bool,
    pub(super) pages_from_capture: u64,
    pub(super) pause: WindowPause,
    pub(super) last: Snapshot,
}

impl Window {
    /// The first fork's resume, and how smaller ones compare with those with nothing else running.
    pub(super) fn overlap_resume(&self, pairs: Vec<Pair>) -> OverlapResume {
        let sorted = |of: fn(&Pair) -> f64| {
            let mut values: Vec<f64> = pairs.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let ratios = sorted(|pair| pair.during_seconds / pair.alone_seconds);
        let median = |values: &[f64]| values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
        OverlapResume {
            first_progress_seconds: self.overlap_seconds,
            control_first_progress_seconds: median(&sorted(|pair| pair.alone_seconds)),
            ratio: median(&ratios),
            ratio_min: ratios.first().copied().unwrap_or(f64::NAN),
            ratio_max: ratios.last().copied().unwrap_or(f64::NAN),
            pairs,
            pages_from_capture: self.pages_from_capture,
            seal_was_running: self.seal_was_running,
        }
    }
}

impl Report {
    /// Prints the summary; the last line says how many pages were verified.
    pub fn print(&self) {
        let Self { overlap_resume: overlap, seal, .. } = self;
        println!();
        println!("pause answered in       {}", seconds(self.pause.answer_seconds));
        println!("resume during the seal  {} to the first step", seconds(overlap.first_progress_seconds));
        println!(
            "beside a quiet resume   {:.2}x as long: the median of {} pairs of smaller resumes, {:.2}x to {:.2}x",
            overlap.ratio,
            overlap.pairs.len(),
            overlap.ratio_min,
            overlap.ratio_max
        );
        println!("had it waited           {}", seconds(self.waiting_resume.first_progress_seconds));
        println!(
            "seal                    {}: {} dirty pages, {} zero, {} equal to the parent's, {} stored",
            seconds(seal.seconds),
            seal.dirty_pages,
            seal.zero_pages,
            seal.equal_pages,
            seal.kept_pages
        );
        println!("in the store            {}", ByteSize::b(self.publish.stored_bytes));
        println!(
            "cold resume             {} to the first step; {} fetched in {} requests to read every page",
            seconds(self.cold_resume.first_progress_seconds),
            ByteSize::b(self.cold_resume.fetched_bytes),
            self.cold_resume.fetches
        );
        println!(
            "checkpoint              {}; the guest stood for {} of it and went on",
            seconds(self.checkpoint.answer_seconds),
            seconds(self.checkpoint.frozen_seconds)
        );
        println!("{} pages verified, {} wrong", self.verified.pages, self.verified.mismatches);
    }
}

/// A time as a person reads it.
pub(super) fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1000.0) } else { format!("{seconds:.2} s") }
}
