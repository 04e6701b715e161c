//! Touches the pages of a trace and measures the time: the cost of faults for a guest.

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use rekindle_kernel::placement;

use super::content::mix;
use super::history::History;
use super::memory::{GuestSpace, index};
use super::trace::{Access, Pattern, Timing, Trace, TraceTimes};
use super::workload::nanoseconds_since;

/// A page and its first byte.
#[derive(Clone, Copy)]
struct Touch {
    page: u32,
    first_byte: u8,
}

impl Pattern {
    /// The pages in order; an error if one is not in a guest of `all` pages.
    pub fn pages(&self, all: u32) -> anyhow::Result<Vec<u32>> {
        match self {
            Self::Sequential { first, pages } => {
                let end = first.checked_add(*pages).filter(|end| *end <= all);
                Ok((*first..end.context("the trace ends beyond guest memory")?).collect())
            }
            Self::Random { seed, pages } => chosen(*seed, all, *pages),
            Self::Runs { seed, runs, run_pages } => {
                ensure!(*run_pages > 0, "a run has at least one page");
                let starts = chosen(*seed, all / run_pages, *runs)?;
                Ok(starts.iter().flat_map(|run| run * run_pages..(run + 1) * run_pages).collect())
            }
            Self::List(pages) => {
                ensure!(pages.iter().all(|page| *page < all), "a page of the list is not in guest memory");
                Ok(pages.clone())
            }
        }
    }
}

impl Trace {
    /// Touches the pages; a single thread without a CPU is the calling one. `history` gives the content of the pages,
    /// so that a write keeps it without a read.
    pub(super) fn run(&self, memory: &GuestSpace, history: &History) -> anyhow::Result<TraceTimes> {
        let pages = self.pattern.pages(memory.pages())?;
        ensure!(!pages.is_empty(), "a trace touches at least one page");
        let touch = |page| Touch { page, first_byte: history.expected(page).first_byte() };
        let touches: Vec<_> = pages.into_iter().map(touch).collect();
        if self.threads.get() == 1 && self.cpus.is_empty() {
            let started = Instant::now();
            let each = self.touch_all(memory, &touches);
            return Ok(self.times(touches.len(), nanoseconds_since(started), vec![each]));
        }
        let stretches: Vec<_> = touches.chunks(touches.len().div_ceil(self.threads.get())).collect();
        let start = Barrier::new(stretches.len());
        let finished: Vec<anyhow::Result<_>> = thread::scope(|scope| {
            let spawn = |(number, stretch)| {
                scope.spawn({
                    let start = &start;
                    move || self.run_thread(memory, number, stretch, start)
                })
            };
            let threads: Vec<_> = stretches.into_iter().enumerate().map(spawn).collect();
            threads.into_iter().map(|thread| thread.join().expect("a trace does not panic")).collect()
        });
        let finished = finished.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let nanoseconds = finished.iter().map(|(nanoseconds, _)| *nanoseconds).max().unwrap_or(0);
        Ok(self.times(touches.len(), nanoseconds, finished.into_iter().map(|(_, each)| each).collect()))
    }

    fn run_thread(
        &self,
        memory: &GuestSpace,
        number: usize,
        touches: &[Touch],
        start: &Barrier,
    ) -> anyhow::Result<(u64, Vec<u64>)> {
        let placed = self.cpus.get(number).map_or(Ok(()), |cpu| placement::run_on(*cpu));
        start.wait();
        placed.context("placing a tracing thread")?;
        let started = Instant::now();
        let each = self.touch_all(memory, touches);
        Ok((nanoseconds_since(started), each))
    }

    fn touch_all(&self, memory: &GuestSpace, touches: &[Touch]) -> Vec<u64> {
        let one = |touch: &Touch| self.access.touch(memory, *touch);
        match self.timing {
            Timing::Whole => {
                touches.iter().for_each(one);
                Vec::new()
            }
            Timing::EachTouch => touches
                .iter()
                .map(|touch| {
                    let started = Instant::now();
                    one(touch);
                    nanoseconds_since(started)
                })
                .collect(),
        }
    }

    fn times(&self, touches: usize, nanoseconds: u64, each: Vec<Vec<u64>>) -> TraceTimes {
        let each_nanoseconds = match self.timing {
            Timing::Whole => Vec::new(),
            Timing::EachTouch => each,
        };
        TraceTimes {
            touches: u64::try_from(touches).expect("usize is 64 bits"),
            nanoseconds,
            each_nanoseconds,
        }
    }
}

impl Access {
    fn touch(self, memory: &GuestSpace, touch: Touch) {
        match self {
            Self::Read => memory.touch(touch.page),
            Self::Write => memory.touch_write(touch.page, touch.first_byte),
        }
    }
}

/// `count` different numbers below `all`, in an order that follows from `seed`.
fn chosen(seed: u64, all: u32, count: u32) -> anyhow::Result<Vec<u32>> {
    ensure!(count <= all, "{count} different ones of {all} cannot be touched");
    let mut numbers: Vec<u32> = (0..all).collect();
    for place in 0..count {
        let left = u64::from(all - place);
        let other = u32::try_from(mix(mix(seed).wrapping_add(u64::from(place))) % left)?;
        numbers.swap(index(place), index(place + other));
    }
    numbers.truncate(index(count));
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    use crate::process::arguments::MemoryKind;
    use crate::process::history::Operation;

    #[test]
    fn patterns_name_different_pages_of_the_guest() {
        let sorted = |pattern: Pattern| {
            let mut pages = pattern.pages(1000).expect("a pattern that fits");
            pages.sort_unstable();
            pages
        };
        let all: Vec<u32> = (0..1000).collect();
        assert_eq!(sorted(Pattern::Sequential { first: 0, pages: 1000 }), all);
        assert_eq!(sorted(Pattern::Random { seed: 3, pages: 1000 }), all);
        assert_eq!(sorted(Pattern::Runs { seed: 3, runs: 10, run_pages: 100 }), all);
        let runs = Pattern::Runs { seed: 3, runs: 4, run_pages: 64 }.pages(1000).expect("fits");
        assert!(runs.chunks(64).all(|run| run[0] % 64 == 0 && run.is_sorted()));
        for refused in [
            Pattern::Sequential { first: 1, pages: 1000 },
            Pattern::Random { seed: 3, pages: 1001 },
            Pattern::Runs { seed: 3, runs: 16, run_pages: 64 },
            Pattern::Runs { seed: 3, runs: 1, run_pages: 0 },
            Pattern::List(vec![1000]),
        ] {
            assert!(refused.pages(1000).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn a_trace_by_two_threads_touches_everything_and_changes_nothing() {
        let space = GuestSpace::map(MemoryKind::Private, 1 << 20, 1).expect("1 MiB can be mapped");
        let mut history = History::default();
        history.push(Operation::Fill { seed: 77 });
        (0..256).for_each(|page| space.write(page, &history.expected(page).bytes()));
        let trace = Trace {
            pattern: Pattern::Random { seed: 1, pages: 255 },
            access: Access::Write,
            threads: NonZeroUsize::new(2).expect("not zero"),
            cpus: vec![0],
            timing: Timing::EachTouch,
        };
        let times = trace.run(&space, &history).expect("runs");
        assert_eq!(times.touches, 255);
        assert_eq!(times.each_nanoseconds.iter().map(Vec::len).collect::<Vec<_>>(), [128, 127]);
        assert!((0..256).all(|page| space.equals(page, &history.expected(page).bytes())));
    }
}
