//! A trace: pages to be touched in a given order, and the times that it took.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

/// Pages to be touched, the kind of touch, and the number of threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The pages and their order.
    pub pattern: Pattern,
    /// Kind of touch.
    pub access: Access,
    /// Number of threads. Each gets an equal part of the pages; all start at once.
    pub threads: NonZeroUsize,
    /// The CPU of each thread; a thread beyond the list runs anywhere.
    pub cpus: Vec<usize>,
    /// Times to be taken.
    pub timing: Timing,
}

/// Pages in an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// Each page after the one before it.
    Sequential {
        /// The first page.
        first: u32,
        /// Number of pages.
        pages: u32,
    },
    /// Different pages in random order.
    Random {
        /// The seed of the order.
        seed: u64,
        /// Number of pages.
        pages: u32,
    },
    /// Different aligned runs in random order, each from its first page to its last.
    Runs {
        /// The seed of the order.
        seed: u64,
        /// Number of runs.
        runs: u32,
        /// Pages in a run.
        run_pages: u32,
    },
    /// These pages.
    List(Vec<u32>),
}

/// Kind of a touch of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// One byte is read.
    Read,
    /// The first byte is written with its present value.
    Write,
}

/// Times to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// The whole trace.
    Whole,
    /// The whole trace and each touch.
    EachTouch,
}

/// Times of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceTimes {
    /// Pages touched.
    pub touches: u64,
    /// From the common start until the last thread ended.
    pub nanoseconds: u64,
    /// Of each touch in order, one list a thread; empty unless asked for.
    pub each_nanoseconds: Vec<Vec<u64>>,
}
