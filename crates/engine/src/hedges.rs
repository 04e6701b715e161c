//! Asks a source a second time when a read takes longer than usual: seldom, and not while the source as a whole is slow.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::future::{FutureExt as _, TryFutureExt as _, select_ok};
use tokio::time::{Instant, timeout_at};

use crate::limits;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, lock};

/// The reads of one class from one source, and those that were asked twice.
#[derive(Debug, Default)]
pub(crate) struct Hedges {
    state: Mutex<State>,
    sent: AtomicU64,
    won: AtomicU64,
}

/// Counts of second requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HedgeCounts {
    /// Requests sent a second time, as the first took longer than usual.
    pub sent: u64,
    /// Of those, answered before the first.
    pub won: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Times until the last answers began, the oldest first.
    times: VecDeque<Duration>,
    /// Reads since the last second request, as far as they count.
    reads: u32,
    under_way: usize,
    /// Of those, reads that have taken longer than usual.
    late: usize,
}

/// A read under way.
struct Flight<'a> {
    hedges: &'a Hedges,
    is_late: bool,
}

impl Hedges {
    /// Counts so far.
    pub(crate) fn counts(&self) -> HedgeCounts {
        HedgeCounts { sent: self.sent.load(Ordering::Relaxed), won: self.won.load(Ordering::Relaxed) }
    }

    /// Does `read`, and a second time beside the first if that takes longer than usual; the first success counts.
    pub(crate) async fn ask<T, E, F>(&self, read: impl Fn() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>> + Send,
    {
        self.go_on(read(), Instant::now(), read).await
    }

    /// The same of a read that was begun at `asked`.
    pub(crate) async fn go_on<T, E, F>(
        &self,
        first: impl Future<Output = Result<T, E>> + Send,
        asked: Instant,
        read: impl Fn() -> F,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>> + Send,
    {
        let (mut flight, usual) = self.begin();
        let mut first = first.boxed();
        let in_time = match usual {
            Some(usual) => timeout_at(asked + usual, &mut first).await.ok(),
            None => Some((&mut first).await),
        };
        let answer = match in_time {
            Some(answer) => answer,
            None if flight.may_ask_again() => {
                self.sent.fetch_add(1, Ordering::Relaxed);
                let second = read().map_ok(|answer| (answer, 1)).boxed();
                let answers = [first.map_ok(|answer| (answer, 0)).boxed(), second];
                select_ok(answers).await.map(|((answer, won), _)| {
                    self.won.fetch_add(won, Ordering::Relaxed);
                    answer
                })
            }
            None => first.await,
        };
        if answer.is_ok() {
            lock(&self.state).note(asked.elapsed());
        }
        answer
    }

    fn begin(&self) -> (Flight<'_>, Option<Duration>) {
        let mut state = lock(&self.state);
        state.under_way += 1;
        state.reads = (state.reads + 1).min(limits::HEDGE_READS * limits::HEDGES_IN_A_ROW);
        let usual = state.usual();
        drop(state);
        (Flight { hedges: self, is_late: false }, usual)
    }
}

impl Flight<'_> {
    /// Notes that the read is late; true if it may be asked a second time.
    fn may_ask_again(&mut self) -> bool {
        self.is_late = true;
        lock(&self.hedges.state).may_ask_again()
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.hedges.state);
        state.under_way -= 1;
        state.late -= usize::from(self.is_late);
    }
}

impl State {
    fn note(&mut self, time: Duration) {
        self.times.push_back(time);
        if self.times.len() > limits::HEDGE_TIMES {
            self.times.pop_front();
        }
    }

    /// The time in which nineteen of twenty answers begin; none before enough were seen.
    fn usual(&self) -> Option<Duration> {
        if self.times.len() < limits::HEDGE_TIMES_MIN {
            return None;
        }
        let mut sorted: Vec<Duration> = self.times.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 19 / 20).copied()
    }

    /// Counts a late read. Another request is sent unless one in twenty was, or many of those under way are late: then the
    /// source as a whole is slow, and more requests make it slower.
    fn may_ask_again(&mut self) -> bool {
        let others_late = self.late;
        self.late += 1;
        let may = self.reads >= limits::HEDGE_READS && others_late * 4 <= self.under_way.saturating_sub(1);
        if may {
            self.reads -= limits::HEDGE_READS;
        }
        may
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::future::{pending, ready};
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::sync::block_on;

    /// Reads that answered at once, as many as one second request needs.
    fn with_usual_times() -> Hedges {
        let hedges = Hedges::default();
        for _ in 0..limits::HEDGE_READS {
            lock(&hedges.state).note(Duration::from_micros(1));
            let (flight, _) = hedges.begin();
            drop(flight);
        }
        hedges
    }

    #[test]
    fn a_read_that_takes_longer_than_usual_is_asked_again_and_the_second_answer_counts() {
        let (hedges, asked) = (with_usual_times(), AtomicUsize::new(0));
        let read = || {
            let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if first {
                    pending::<()>().await;
                }
                Ok::<_, ()>(7)
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        assert_eq!(runtime.block_on(hedges.ask(read)), Ok(7));
        assert_eq!(hedges.counts(), HedgeCounts { sent: 1, won: 1 });
        assert_eq!(lock(&hedges.state).under_way, 0);
    }

    #[test]
    fn a_read_is_asked_once_before_the_usual_time_is_known_and_an_error_is_not_hidden() {
        let hedges = Hedges::default();
        assert_eq!(block_on(hedges.ask(|| ready(Err::<(), _>("gone")))), Err("gone"));
        assert_eq!(hedges.counts(), HedgeCounts::default());
    }

    #[test]
    fn at_most_one_read_in_twenty_is_asked_again() {
        let hedges = Hedges::default();
        let hedged = (0..1000).filter(|_| {
            let (mut flight, _) = hedges.begin();
            flight.may_ask_again()
        });
        assert_eq!(hedged.count(), 1000 / 20);
    }

    #[test]
    fn no_read_is_asked_again_while_a_quarter_of_those_under_way_are_late() {
        let hedges = with_usual_times();
        let mut flights: Vec<_> = (0..8).map(|_| hedges.begin().0).collect();
        lock(&hedges.state).reads = limits::HEDGE_READS * limits::HEDGES_IN_A_ROW;
        let asked: Vec<bool> = flights.iter_mut().map(Flight::may_ask_again).collect();
        assert_eq!(asked, [true, true, false, false, false, false, false, false]);
        drop(flights);
        assert_eq!(lock(&hedges.state).late, 0);
    }

    #[test]
    fn the_usual_time_is_that_of_nineteen_in_twenty_of_the_last_answers() {
        let mut state = State::default();
        (0..10).for_each(|_| state.note(Duration::from_secs(9)));
        assert_eq!(state.usual(), None);
        for millis in (1..=u64::try_from(limits::HEDGE_TIMES).unwrap()).rev() {
            state.note(Duration::from_millis(millis));
        }
        assert_eq!(state.usual(), Some(Duration::from_millis(61)), "the old ones are forgotten");
    }
}
