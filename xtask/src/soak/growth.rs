//! Finds growth in the descriptors, RAM and files that are left after everything was removed.

use super::samples::Sample;

const MIB: u64 = 1 << 20;

/// Descriptors that come and go: connections of the moment, threads that are ending.
const FDS_SPARE: u64 = 6;
/// RAM that an allocator keeps for later, and what its arenas scatter.
const RAM_SPARE_BYTES: u64 = 32 * MIB;
/// Names of requests stay for a day, and events until there are too many: so much for each request.
const CATALOG_BYTES_PER_REQUEST: u64 = 4 << 10;
/// A database file grows in steps.
const CATALOG_SPARE_BYTES: u64 = 16 * MIB;

/// Things that have grown without a reason between the first rest, which was after work too, and the last.
pub(crate) fn grown(at_rest: &[Sample], requests: u64) -> Vec<String> {
    let [first, .., last] = at_rest else {
        return vec!["nothing was compared: there was too little time".to_owned()];
    };
    let catalog_spare = CATALOG_SPARE_BYTES + requests * CATALOG_BYTES_PER_REQUEST;
    let compared = [
        ("descriptors of the daemon", first.daemon_fds, last.daemon_fds, FDS_SPARE),
        ("descriptors of the keeper", first.keeper_fds, last.keeper_fds, FDS_SPARE),
        (
            "bytes of the daemon's RAM",
            first.daemon_bytes,
            last.daemon_bytes,
            first.daemon_bytes / 4 + RAM_SPARE_BYTES,
        ),
        ("bytes of the keeper's RAM", first.keeper_bytes, last.keeper_bytes, RAM_SPARE_BYTES),
        ("bytes of captures", 0, last.captures_bytes, 0),
        ("bytes of layers", 0, last.layers_bytes, 0),
        ("bytes of the catalog", first.catalog_bytes, last.catalog_bytes, catalog_spare),
        ("snapshots in the store", 0, last.manifests, 0),
    ];
    let too_much = |(_, first, last, spare): &(&str, u64, u64, u64)| *last > first + spare;
    let words = |(what, first, last, _)| {
        format!("{what} grew from {first} to {last}, with nothing left to hold them")
    };
    compared.into_iter().filter(too_much).map(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_what_is_more_at_the_last_rest_than_at_the_first() {
        let rest = Sample { daemon_fds: 20, daemon_bytes: 40 * MIB, ..Sample::default() };
        assert!(grown(&[rest, rest], 10).is_empty());
        let more_fds = Sample { daemon_fds: 30, ..rest };
        assert_eq!(grown(&[rest, more_fds], 10).len(), 1);
        assert!(grown(&[more_fds, rest], 10).is_empty());
        let a_layer = Sample { layers_bytes: 4096, ..rest };
        assert_eq!(grown(&[a_layer, a_layer], 10).len(), 1);
        assert_eq!(grown(&[rest], 10).len(), 1, "one rest says nothing");
    }
}
