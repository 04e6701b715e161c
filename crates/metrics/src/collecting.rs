//! Metrics of collections of the store.

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::{Registry, Unit};
use rekindle_engine::collect::CollectCounts;
use rekindle_engine::store_usage::StoredBytes;

use super::series::Rows;

/// Registers the collections of this node.
pub(super) fn register(counts: CollectCounts, registry: &mut Registry) {
    let CollectCounts { passes, deleted, manifests_read, stored } = counts;
    let counters = [
        ("collections", "Looks at the whole store for what nobody needs", passes),
        ("collected_objects", "Objects of the store that were deleted, as nobody needed them", deleted),
        ("collected_manifests_read", "Manifests that were read for that", manifests_read),
    ];
    for (name, help, count) in counters {
        registry.register(name, help, ConstCounter::new(count));
    }
    let StoredBytes { own, unique, shared, unnamed } = stored;
    let parts = [("own", own), ("unique", unique), ("shared", shared), ("unnamed", unnamed)];
    registry.register_with_unit(
        "stored",
        "Bytes of the store's snapshots at this node's last collection, by the use of the objects",
        Unit::Bytes,
        Rows::gauges(parts.map(|(part, bytes)| ([("part", part)], bytes))),
    );
}
