//! The bounds on layer files and their disk: from settings to the engine, and from its findings to words.

use std::io;

use bytesize::ByteSize;
use rekindle_engine::cache_limits::{CacheLimits, CacheStatus, Shortage};
use rekindle_engine::limits;
use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};

use rekindle_settings::{Room, Settings};

/// The bounds that settings ask for, on the disk of the state directory.
pub(super) fn cache_limits(settings: &Settings) -> io::Result<CacheLimits> {
    let bytes = |room: Room| on_disk(settings, room);
    Ok(CacheLimits {
        bytes_max: bytes(settings.cache_bytes_max)?,
        free_bytes_min: bytes(settings.disk_free_bytes_min)?.unwrap_or_default(),
        files_open_max: settings.layer_files_open_max.unwrap_or_else(half_of_open_files),
    })
}

/// Bytes of an amount of the disk of the state directory; none without a bound.
pub(super) fn on_disk(settings: &Settings, room: Room) -> io::Result<Option<u64>> {
    let disk = statvfs(&settings.state_directory)?;
    // As `df` counts it: blocks that only root may take are no part of the disk.
    let blocks = disk.f_blocks.saturating_sub(disk.f_bfree).saturating_add(disk.f_bavail);
    Ok(room.on_disk_of(blocks.saturating_mul(disk.f_frsize)))
}

/// Half of the files that this process may open: the others are for guests, sockets and requests.
fn half_of_open_files() -> usize {
    let half = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit / 2).ok());
    half.map_or(limits::LAYER_FILES_OPEN_DEFAULT, |half| half.min(FILES_OPEN_DEFAULT_MAX))
}

/// Each open layer file has a mapping too, and Linux allows a process 65,530 of them (vm.max_map_count).
const FILES_OPEN_DEFAULT_MAX: usize = 16_384;

/// The bound that is not held, and what to do, if one is not.
pub(super) fn shortage(status: &CacheStatus) -> Option<String> {
    let CacheStatus { bytes, bytes_max, free_bytes, free_bytes_min, only_here_bytes, .. } = status;
    let why = match status.shortage? {
        Shortage::NothingToEvict => format!(
            "all that is left is needed here, {} of it as the only copy",
            ByteSize::b(*only_here_bytes)
        ),
        Shortage::StoreAway => "the store is away, so no layer file may go".to_owned(),
    };
    let bound = match (bytes_max, free_bytes) {
        (Some(max), _) if bytes > max => format!(
            "layer files take {}, more than the {} of cache_bytes_max",
            ByteSize::b(*bytes),
            ByteSize::b(*max)
        ),
        (_, free) => format!(
            "the disk of state_directory has {} free, less than the {} of disk_free_bytes_min",
            ByteSize::b(free.unwrap_or_default()),
            ByteSize::b(*free_bytes_min)
        ),
    };
    Some(format!(
        "{bound}, and {why}: see that the store can be reached, delete snapshots, make room, or change the setting"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_that_is_not_held_is_told_with_its_setting_and_human_sizes() {
        let held = CacheStatus { bytes: 5 << 30, bytes_max: Some(1 << 30), ..CacheStatus::default() };
        assert_eq!(shortage(&held), None);
        let beyond = CacheStatus {
            only_here_bytes: 3 << 30,
            shortage: Some(Shortage::NothingToEvict),
            free_bytes: Some(7 << 30),
            ..held.clone()
        };
        let told = shortage(&beyond).expect("it is short");
        assert!(
            told.starts_with("layer files take 5.0 GiB, more than the 1.0 GiB of cache_bytes_max"),
            "{told}"
        );
        assert!(told.contains("3.0 GiB of it as the only copy"), "{told}");
        let away =
            CacheStatus { bytes: 1, shortage: Some(Shortage::StoreAway), free_bytes_min: 8 << 30, ..beyond };
        let told = shortage(&away).expect("it is short");
        assert!(told.contains("7.0 GiB free, less than the 8.0 GiB of disk_free_bytes_min"), "{told}");
        assert!(told.contains("the store is away"), "{told}");
    }
}
