//! The number of orders that are tried, and the way they are chosen.

use shuttle::scheduler::{DfsScheduler, RandomScheduler};
use shuttle::{Config, Runner};

/// Bytes of a thread's stack: sealing, compiled without optimisation, needs more than Shuttle gives.
const STACK_BYTES: usize = 1 << 20;

/// Runs `operations` in `orders` random orders of their threads.
pub(crate) fn random(orders: usize, operations: impl Fn() + Send + Sync + 'static) {
    Runner::new(RandomScheduler::new(orders), config()).run(operations);
}

/// Runs `operations` in every order of their threads; there must be fewer than `orders_max`.
pub(crate) fn every(orders_max: usize, operations: impl Fn() + Send + Sync + 'static) {
    let tried = Runner::new(DfsScheduler::new(Some(orders_max), false), config()).run(operations);
    assert!(tried < orders_max, "there are more than {orders_max} orders");
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config
}
