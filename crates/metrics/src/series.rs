//! The forms a measurement is rendered in.

use std::fmt;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use rekindle_engine::serve::Latencies;

/// Seconds from half a millisecond to two minutes: answers a person or a platform waits for.
const ANSWER_SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 4.0, 15.0, 60.0, 120.0];

/// Seconds from a millisecond to half a day: work in the background.
const WORK_SECONDS: [f64; 15] =
    [0.001, 0.004, 0.016, 0.064, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 30.0, 120.0, 600.0, 3600.0, 43200.0];

/// A histogram of waits for an answer.
pub(super) fn answer_seconds() -> Histogram {
    Histogram::new(ANSWER_SECONDS)
}

/// A histogram of work in the background.
pub(super) fn work_seconds() -> Histogram {
    Histogram::new(WORK_SECONDS)
}

/// A label's name and its value.
pub(super) type Label = (&'static str, &'static str);

/// Numbers of one name under several sets of labels, in their order.
#[derive(Debug)]
pub(super) struct Rows<const LABELS: usize> {
    kind: RowKind,
    rows: Vec<([Label; LABELS], u64)>,
}

#[derive(Clone, Copy, Debug)]
enum RowKind {
    Counter,
    Gauge,
}

impl<const LABELS: usize> Rows<LABELS> {
    /// Numbers that only grow.
    pub(super) fn counters(rows: impl IntoIterator<Item = ([Label; LABELS], u64)>) -> Self {
        Self { kind: RowKind::Counter, rows: rows.into_iter().collect() }
    }

    /// Numbers that come and go.
    pub(super) fn gauges(rows: impl IntoIterator<Item = ([Label; LABELS], u64)>) -> Self {
        Self { kind: RowKind::Gauge, rows: rows.into_iter().collect() }
    }
}

impl<const LABELS: usize> EncodeMetric for Rows<LABELS> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.rows.iter().try_for_each(|(labels, value)| {
            let row = encoder.encode_family(labels)?;
            match self.kind {
                RowKind::Counter => ConstCounter::new(*value).encode(row),
                RowKind::Gauge => ConstGauge::new(*value).encode(row),
            }
        })
    }

    fn metric_type(&self) -> MetricType {
        match self.kind {
            RowKind::Counter => MetricType::Counter,
            RowKind::Gauge => MetricType::Gauge,
        }
    }
}

/// Latencies of faults by how they were answered, as one histogram each.
#[derive(Debug)]
pub(super) struct FaultSeconds(pub(super) [(&'static str, Latencies); 2]);

impl EncodeMetric for FaultSeconds {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.iter().try_for_each(|(answered, latencies)| {
            let buckets: Vec<(f64, u64)> = latencies
                .classes
                .iter()
                .enumerate()
                .map(|(class, faults)| {
                    (Latencies::class_end(class).map_or(f64::INFINITY, |end| end.as_secs_f64()), *faults)
                })
                .collect();
            let labels: [Label; 1] = [("answered", answered)];
            let (total, faults) = (latencies.total.as_secs_f64(), latencies.classes.iter().sum());
            encoder.encode_family(&labels)?.encode_histogram::<NoLabelSet>(total, faults, &buckets, None)
        })
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
