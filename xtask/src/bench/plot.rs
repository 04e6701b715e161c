//! One row as an SVG picture: every judged sample, the median's interval, and the target.

use super::format;
use super::report::{PartReport, RowReport};
use super::row::Target;
use super::statistics::as_float;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 240.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 44.0;
const LANE: f64 = 46.0;
const BOTTOM: f64 = 34.0;

/// Values further apart than this factor are drawn on a logarithmic axis.
const LINEAR_SPAN_MAX: f64 = 12.0;

/// The picture of `row`; its parts share one axis.
pub(crate) fn svg(row: &RowReport) -> String {
    let axis = Axis::over(row);
    let lanes: String =
        row.parts.iter().enumerate().map(|(lane, part)| draw_lane(&axis, lane, part)).collect();
    let height = TOP + LANE * as_float(row.parts.len()) + BOTTOM;
    let ticks = draw_ticks(&axis, row, height);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"14\" font-weight=\"bold\" fill=\"#222222\">{}</text>\n\
         <text x=\"{}\" y=\"22\" text-anchor=\"end\" fill=\"#666666\">dots: pairs; bar: median and its 95 % interval; \
         dashes: target</text>\n{ticks}{lanes}</svg>\n",
        row.name,
        WIDTH - RIGHT,
    )
}

/// Turns judged values into horizontal places.
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    /// An axis that holds every judged sample and target of `row`.
    fn over(row: &RowReport) -> Self {
        let samples = row.parts.iter().flat_map(|part| part.part.judged());
        let targets = row.parts.iter().map(|part| limit(part.part.target));
        let (low, high) = samples
            .chain(targets)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > 0.0 && high / low > LINEAR_SPAN_MAX {
            return Self { low: low / 1.2, high: high * 1.2, logarithmic: true };
        }
        let margin = ((high - low) * 0.06).max(high.abs() * 0.02).max(f64::MIN_POSITIVE);
        Self { low: (low - margin).min(low), high: high + margin, logarithmic: false }
    }

    fn place(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    /// The value at `share` of the axis.
    fn value_at(&self, share: f64) -> f64 {
        if self.logarithmic {
            self.low * (self.high / self.low).powf(share)
        } else {
            self.low + share * (self.high - self.low)
        }
    }
}

fn limit(target: Target) -> f64 {
    match target {
        Target::RatioAtMost(limit)
        | Target::RatioAtLeast(limit)
        | Target::OursAtMost(limit)
        | Target::BeyondReferenceAtMost(limit) => limit,
    }
}

fn draw_lane(axis: &Axis, lane: usize, part: &PartReport) -> String {
    let middle = TOP + LANE * (as_float(lane) + 0.5);
    let label = part.part.label.replace('&', "&amp;").replace('<', "&lt;");
    let samples = part.part.judged().into_iter().enumerate().map(|(index, sample)| {
        let spread = 8.0 * (as_float(index % 5) / 2.0 - 1.0);
        let (x, y) = (axis.place(sample), middle + spread);
        format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.2\" fill=\"#3b6ea5\" fill-opacity=\"0.45\"/>\n")
    });
    let [low, median, high, target] =
        [part.judged.low, part.judged.median, part.judged.high, limit(part.part.target)]
            .map(|value| axis.place(value));
    let (above, below, far_above, far_below) = (middle - 11.0, middle + 11.0, middle - 19.0, middle + 19.0);
    format!(
        "<text x=\"12\" y=\"{:.1}\" fill=\"#222222\">{label}</text>\n{}\
         <path d=\"M{low:.1} {middle:.1}H{high:.1}\" stroke=\"#12355b\" stroke-width=\"4\"/>\n\
         <path d=\"M{median:.1} {above:.1}V{below:.1}\" stroke=\"#12355b\" stroke-width=\"3\"/>\n\
         <path d=\"M{target:.1} {far_above:.1}V{far_below:.1}\" stroke=\"#b5472f\" stroke-width=\"2\" \
         stroke-dasharray=\"5 3\"/>\n",
        middle + 4.0,
        samples.collect::<String>(),
    )
}

fn draw_ticks(axis: &Axis, row: &RowReport, height: f64) -> String {
    let Some(first) = row.parts.first() else { return String::new() };
    let tick = |share| {
        let value = axis.value_at(share);
        let (x, bottom, text_at) = (axis.place(value), height - BOTTOM, height - 12.0);
        let text = format::judged(first.part.target, first.part.unit, value);
        format!(
            "<path d=\"M{x:.1} {TOP}V{bottom:.1}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{x:.1}\" y=\"{text_at:.1}\" text-anchor=\"middle\" fill=\"#666666\">{text}</text>\n"
        )
    };
    [0.0, 0.25, 0.5, 0.75, 1.0].into_iter().map(tick).collect()
}
