//! Metrics of collections of the store.

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use rekindle_engine::collect::CollectCounts;

/// Registers the collections of this node.
pub(super) fn register(counts: CollectCounts, registry: &mut Registry) {
    let CollectCounts { passes, deleted, manifests_read } = counts;
    let counters = [
        ("collections", "Looks at the whole store for what nobody needs", passes),
        ("collected_objects", "Objects of the store that were deleted, as nobody needed them", deleted),
        ("collected_manifests_read", "Manifests that were read for that", manifests_read),
    ];
    for (name, help, count) in counters {
        registry.register(name, help, ConstCounter::new(count));
    }
}
