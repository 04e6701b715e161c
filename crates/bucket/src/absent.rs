//! Stores in buckets where the program was built without them.

use std::sync::Arc;

use rekindle_engine::store_opener::{FailedRequests, OpenedStore};

use super::{BucketAccess, BucketUrl, Environment};

/// Watches the requests to a bucket, of which there are none.
#[derive(Debug, Default)]
pub struct RequestWatch;

impl RequestWatch {
    /// Counts so far.
    pub fn failed(&self) -> FailedRequests {
        FailedRequests::default()
    }
}

/// Says that this program was built without stores in buckets.
pub fn open(
    url: &BucketUrl,
    _: &BucketAccess,
    _: &Environment,
    _: &Arc<RequestWatch>,
) -> Result<OpenedStore, String> {
    Err(format!(
        "store is {url}, and this rekindle was built without the cargo feature `buckets`: build it with that, or set \
         `store` to a directory"
    ))
}
