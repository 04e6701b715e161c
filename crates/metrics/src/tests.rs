use rekindle_engine::compare::PageClasses;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::SealParts;

use super::*;

fn line<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start} is in\n{text}"))
}

fn sealed() -> SnapshotStatus {
    SnapshotStatus {
        state: SnapshotState::Sealed,
        classes: Some(PageClasses { dirty: 10, zero: 2, equal: 3, kept: 5, ..PageClasses::default() }),
        seal_time: Some(Duration::from_millis(1500)),
        seal_parts: Some(SealParts { pack: Duration::from_millis(700), ..SealParts::default() }),
        failure: None,
        is_undecided: false,
        remote: None,
    }
}

#[test]
fn every_series_is_there_before_anything_happened() {
    let text = Metrics::new().render(&Observed::default());
    for name in [
        "rekindle_pause_answer_seconds_count 0",
        "rekindle_pause_to_first_fault_seconds_count 0",
        "rekindle_requests_refused_total{code=\"no_ram\"} 0",
        "rekindle_captured_pages_total{class=\"kept\"} 0",
        "rekindle_publish_lag_seconds_count 0",
        "rekindle_sandboxes{state=\"stalled\"} 0",
        "rekindle_snapshots{state=\"lost\"} 0",
        "rekindle_served_pages_total{source=\"capture\",phase=\"captured\"} 0",
        "rekindle_fault_seconds_bucket{le=\"0.000001024\",answered=\"at_once\"} 0",
        "rekindle_fault_seconds_bucket{le=\"+Inf\",answered=\"after_fetch\"} 0",
        "rekindle_captures_held_bytes 0",
        "rekindle_store_sent_bytes_total 0",
        "rekindle_lost_snapshots_total 0",
        "rekindle_version_info{version=",
        "process_start_time_seconds ",
        "process_cpu_seconds_total ",
        "process_open_fds ",
    ] {
        line(&text, name);
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn what_is_recorded_is_rendered() {
    let metrics = Metrics::new();
    metrics.pause_answered(Duration::from_millis(3), Duration::from_millis(2));
    metrics.refused(Code::NoRam);
    metrics.snapshot_sealed(&sealed());
    metrics.snapshot_published(Duration::from_secs(9));
    metrics.publish_failed();
    metrics.snapshot_lost();
    metrics.recovered(&Recovery { sandboxes: 4, snapshots: 7, until_served: Duration::from_millis(250) });
    let text = metrics.render(&Observed::default());
    for expected in [
        "rekindle_pause_answer_seconds_bucket{le=\"0.004\"} 1",
        "rekindle_pause_answer_seconds_bucket{le=\"0.002\"} 0",
        "rekindle_pause_frozen_seconds_sum 0.002",
        "rekindle_requests_refused_total{code=\"no_ram\"} 1",
        "rekindle_seal_seconds_sum 1.5",
        "rekindle_seal_part_seconds_sum{part=\"pack\"} 0.7",
        "rekindle_seal_part_seconds_count{part=\"proof\"} 1",
        "rekindle_captured_pages_total{class=\"zero\"} 2",
        "rekindle_captured_pages_total{class=\"equal\"} 3",
        "rekindle_captured_pages_total{class=\"kept\"} 5",
        "rekindle_publish_lag_seconds_sum 9.0",
        "rekindle_publish_failures_total 1",
        "rekindle_lost_snapshots_total 1",
        "rekindle_recovered_sandboxes_total 4",
        "rekindle_recovered_snapshots_total 7",
        "rekindle_recovery_until_served_seconds 0.25",
    ] {
        line(&text, expected);
    }
}

#[test]
fn no_series_is_told_twice() {
    let text = Metrics::new().render(&Observed::default());
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn the_first_fault_of_a_snapshot_is_measured_once() {
    let metrics = Metrics::new();
    let (before, snapshot) = (Instant::now(), SnapshotId::new());
    metrics.snapshot_answered(snapshot);
    metrics.first_fault(snapshot, before);
    let count = "rekindle_pause_to_first_fault_seconds_count";
    assert_eq!(line(&metrics.render(&Observed::default()), count), format!("{count} 0"));
    let after = Instant::now();
    metrics.first_fault(snapshot, after);
    metrics.first_fault(snapshot, after);
    metrics.first_fault(SnapshotId::new(), after);
    assert_eq!(line(&metrics.render(&Observed::default()), count), format!("{count} 1"));
}
