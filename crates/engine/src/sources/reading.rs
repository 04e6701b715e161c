//! A read of a part of an object, once its answer has begun.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use object_store::path::Path as ObjectPath;
use tokio::time::{Instant, timeout_at};

use super::SourceError;
use crate::byte_budget::ByteLease;
use crate::identity::LayerId;
use crate::limits;
use crate::source_speed::SourceSpeed;
use crate::store_read::Arriving;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::urgency::{Class, Urgency};

/// A read whose bytes come one after the other.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(super) arriving: Arriving,
    pub(super) wanted: Wanted,
    pub(super) bytes: u64,
    pub(super) began: Instant,
    pub(super) urgency: Arc<Urgency>,
    pub(super) limited: Limited,
    pub(super) speed: Arc<SourceSpeed>,
    pub(super) ended: Arc<AtomicU64>,
    pub(super) lease: ByteLease<Class>,
}

/// The time limit of a read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limited {
    /// The class that it is of.
    pub(super) class: Class,
    pub(super) until: Instant,
}

/// The object of a read, for errors.
#[derive(Debug)]
pub(super) enum Wanted {
    OfLayer(LayerId),
    Named(ObjectPath),
}

impl fmt::Display for Wanted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfLayer(layer) => write!(out, "an object of layer {layer}"),
            Self::Named(path) => path.fmt(out),
        }
    }
}

impl Reading {
    /// The next bytes; none after as many as were asked for.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            let next = timeout_at(self.limited.until, self.arriving.next());
            match select(pin!(next), pin!(self.urgency.above(self.limited.class))).await {
                Either::Left((Ok(next), _)) => return Ok(next?),
                Either::Left((Err(_), _)) => {
                    self.ended.fetch_add(1, Ordering::Relaxed);
                    let waited = read_limit(self.limited.class, self.bytes);
                    return Err(SourceError::Silent { wanted: self.wanted.to_string(), waited });
                }
                Either::Right(_) => {
                    self.limited.class = self.urgency.now();
                    self.limited.until =
                        self.limited.until.min(Instant::now() + read_limit(self.limited.class, self.bytes));
                }
            }
        }
    }

    /// Sees that no more bytes come than were asked for, and notes how fast they came.
    pub(crate) async fn end(mut self) -> Result<ByteLease<Class>, SourceError> {
        self.speed.note_body(self.bytes, self.began.elapsed());
        while self.next().await?.is_some() {}
        Ok(self.lease)
    }
}

/// Time that a read of so many bytes may take.
pub(super) fn read_limit(class: Class, bytes: u64) -> Duration {
    let wait = match class {
        Class::Fault => limits::FAULT_READ_WAIT,
        Class::Ahead | Class::Background => limits::READ_WAIT,
    };
    wait + Duration::from_secs(bytes / limits::READ_BYTES_A_SECOND_MIN)
}
