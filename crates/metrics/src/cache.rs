//! Metrics of layer files, their disk, and what is on it alone.

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use rekindle_engine::cache_limits::{CacheStatus, Evicted};

/// Registers the layer files and their disk.
pub(super) fn register(status: &CacheStatus, registry: &mut Registry) {
    let CacheStatus {
        bytes,
        bytes_max,
        free_bytes,
        free_bytes_min,
        only_here_bytes,
        only_here_oldest,
        files_open,
        evicted: Evicted { files, bytes: evicted_bytes },
        shortage,
    } = status;
    let sizes = [
        ("cache", "Blocks of the disk that layer files take", *bytes),
        ("cache_limit", "Bytes that they may take; 0 without a bound", bytes_max.unwrap_or_default()),
        ("disk_free", "Free space of their disk", free_bytes.unwrap_or_default()),
        ("disk_free_limit", "Space that stays free on it", *free_bytes_min),
        ("only_here", "Bytes of layers that are on this disk and not in the store", *only_here_bytes),
    ];
    for (name, help, bytes) in sizes {
        registry.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(bytes));
    }
    registry.register_with_unit(
        "only_here_oldest_age",
        "Age of the oldest layer that is on this disk and not in the store",
        Unit::Seconds,
        ConstGauge::new(only_here_oldest.as_secs_f64()),
    );
    let open = u64::try_from(*files_open).unwrap_or(u64::MAX);
    registry.register("cache_open_files", "Layer files that are open", ConstGauge::new(open));
    registry.register(
        "cache_short",
        "1 while a bound on layer files is not held, as none of those that are left may go",
        ConstGauge::new(u64::from(shortage.is_some())),
    );
    registry.register(
        "cache_evicted_files",
        "Layer files that were evicted, as the store has them",
        ConstCounter::new(*files),
    );
    registry.register_with_unit(
        "cache_evicted",
        "Bytes on the disk of those files",
        Unit::Bytes,
        ConstCounter::new(*evicted_bytes),
    );
}
