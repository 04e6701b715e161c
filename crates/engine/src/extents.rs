//! Decides the requests for scattered parts of objects: joined over short gaps, then cut so that all streams work.

use std::ops::Range;

use crate::limits;

/// Cost of a request at a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestCost {
    /// Bytes that come in the time that one more request takes until its first byte.
    pub bytes: u64,
    /// Requests that are answered at once.
    pub streams: u64,
}

/// Gaps shorter than this part of a request's cost are never worth a cut.
const GAP_PART_MIN: u64 = 8;

/// The requests for the wanted ranges of each object. The ranges of an object ascend, each is fetched whole, and a
/// request ends where one of them does.
///
/// A gap is fetched too if it costs less than a request. No request takes much longer than an equal share of all streams'
/// time, since the last one decides when everything is there.
#[must_use]
pub fn extents(objects: &[Vec<Range<u64>>], cost: RequestCost) -> Vec<Vec<Range<u64>>> {
    let joined: Vec<Vec<&[Range<u64>]>> =
        objects.iter().map(|ranges| divided(ranges, cost.bytes.saturating_add(1))).collect();
    let total: u64 = joined.iter().flatten().map(|group| cost.bytes + length(group)).sum();
    // An eighth more: the requests never fill the streams evenly.
    let share = (total / cost.streams / 8 * 9).max(2 * cost.bytes);
    let length_max = (share - cost.bytes).min(limits::EXTENT_BYTES_MAX);
    let cut = |groups: &Vec<&[Range<u64>]>| {
        groups.iter().flat_map(|group| cut(group, length_max, cost.bytes)).collect()
    };
    joined.iter().map(cut).collect()
}

/// The ranges, divided at each gap of at least `gap_min`.
fn divided(ranges: &[Range<u64>], gap_min: u64) -> Vec<&[Range<u64>]> {
    ranges.chunk_by(|before, after| after.start - before.end < gap_min).collect()
}

/// Bytes from the first of the ranges to the last.
fn length(group: &[Range<u64>]) -> u64 {
    let (first, last) = (group.first(), group.last());
    first.zip(last).map_or(0, |(first, last)| last.end - first.start)
}

/// The cheapest requests for a group of ranges that are not longer than `length_max`, but for single pieces.
fn cut(group: &[Range<u64>], length_max: u64, request: u64) -> Vec<Range<u64>> {
    if length(group) <= length_max {
        return group
            .first()
            .zip(group.last())
            .map(|(first, last)| first.start..last.end)
            .into_iter()
            .collect();
    }
    let gap_min = (request / GAP_PART_MIN).max(1);
    let pieces: Vec<Range<u64>> =
        divided(group, gap_min).into_iter().flat_map(|solid| equal_pieces(solid, length_max)).collect();
    cheapest(&pieces, length_max, request)
}

/// A group that no gap is worth a cut in, in as few pieces of about equal length as `length_max` allows.
fn equal_pieces(solid: &[Range<u64>], length_max: u64) -> Vec<Range<u64>> {
    let count = length(solid).div_ceil(length_max.max(1));
    let target = length(solid) / count.max(1);
    let mut pieces: Vec<Range<u64>> = Vec::new();
    for range in solid {
        match pieces.last_mut() {
            Some(piece) if range.end - piece.start <= target => piece.end = range.end,
            Some(_) | None => pieces.push(range.clone()),
        }
    }
    pieces
}

/// The requests for `pieces` that cost least together, by the best requests for each number of first pieces.
fn cheapest(pieces: &[Range<u64>], length_max: u64, request: u64) -> Vec<Range<u64>> {
    // The least cost of the first pieces, and the first piece of the last of their requests.
    let mut best: Vec<(u64, usize)> = vec![(0, 0)];
    for (last, piece) in pieces.iter().enumerate() {
        let alone = (best[last].0 + request + piece.end - piece.start, last);
        let longer = (0..last).rev().map(|first| (first, piece.end - pieces[first].start));
        let longer = longer.take_while(|(_, length)| *length <= length_max);
        let costs = longer.map(|(first, length)| (best[first].0 + request + length, first));
        best.push(costs.fold(alone, |least, cost| if cost.0 < least.0 { cost } else { least }));
    }
    let (mut requests, mut end) = (Vec::new(), pieces.len());
    while end > 0 {
        let first = best[end].1;
        requests.push(pieces[first].start..pieces[end - 1].end);
        end = first;
    }
    requests.reverse();
    requests
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const COST: RequestCost = RequestCost { bytes: 4 * MIB, streams: 16 };

    /// A stretch of an object from `start` on, as frames of 256 KiB.
    fn frames(start: u64, length: u64) -> Vec<Range<u64>> {
        (start..start + length).step_by(256 << 10).map(|start| start..start + (256 << 10)).collect()
    }

    #[test]
    fn a_gap_is_fetched_where_it_costs_less_than_a_request_and_left_out_where_it_costs_more() {
        let near = [frames(0, MIB), frames(2 * MIB, MIB)].concat();
        let far = [frames(0, MIB), frames(6 * MIB, MIB)].concat();
        let found = extents(&[near, far], COST);
        let one = |range: Range<u64>| Vec::from([range]);
        assert_eq!(found, [one(0..3 * MIB), vec![0..MIB, 6 * MIB..7 * MIB]]);
        assert_eq!(extents(&[frames(0, MIB)], COST), [one(0..MIB)]);
    }

    #[test]
    fn one_long_stretch_is_cut_for_all_streams_into_pieces_of_about_equal_length() {
        let found = extents(&[frames(0, 320 * MIB)], COST);
        assert!((14..=18).contains(&found[0].len()), "{found:?}");
        assert!(found[0].iter().all(|extent| extent.end - extent.start <= 24 * MIB), "{found:?}");
    }

    #[test]
    fn a_stretch_that_is_too_long_is_cut_in_its_gaps() {
        let parts = [frames(0, 10 * MIB), frames(12 * MIB, 10 * MIB), frames(24 * MIB, 10 * MIB)];
        let found = extents(&[parts.concat()], RequestCost { bytes: 4 * MIB, streams: 3 });
        assert_eq!(found, [vec![0..10 * MIB, 12 * MIB..22 * MIB, 24 * MIB..34 * MIB]]);
    }

    proptest! {
        #[test]
        fn every_wanted_range_is_in_one_request_and_no_request_goes_beyond_them(
            steps in proptest::collection::vec((0..9_u64, 1..9_u64), 1..60),
            bytes in 1..40_u64,
            streams in 1..20_u64,
        ) {
            let mut end = 0;
            let wanted: Vec<Range<u64>> = steps
                .iter()
                .map(|(gap, length)| {
                    let start = end + gap * 7;
                    end = start + length;
                    start..end
                })
                .collect();
            let found = extents(std::slice::from_ref(&wanted), RequestCost { bytes, streams });
            for range in &wanted {
                let holders = found[0].iter().filter(|extent| extent.start <= range.start && range.end <= extent.end);
                prop_assert_eq!(holders.count(), 1);
            }
            for extent in &found[0] {
                prop_assert!(wanted.iter().any(|range| range.start == extent.start));
                prop_assert!(wanted.iter().any(|range| range.end == extent.end));
            }
            prop_assert!(found[0].windows(2).all(|pair| pair[0].end <= pair[1].start));
        }
    }
}
