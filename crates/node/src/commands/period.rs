//! The period in which a sandbox takes checkpoints, as the command line has it.

use std::time::Duration;

use clap::Args;
use rekindle_api::limits;
use rekindle_api::types::PeriodicCheckpoints;
use rekindle_settings::parse_time;

use super::numbers::number;

/// The checkpoints that a sandbox takes in a period.
#[derive(Args, Clone, Debug)]
pub(super) struct PeriodArguments {
    /// Take a checkpoint of it in every period of this length, such as 5m, in which its guest wrote; `never` ends that
    #[arg(long, value_name = "TIME", value_parser = period)]
    every: Option<u32>,
    /// Keep this many of them, and delete older ones
    #[arg(long, value_name = "NUMBER", default_value = "3", requires = "every", value_parser = number::<u32>(1..=limits::CHECKPOINTS_KEPT_MAX.into()))]
    keep: u32,
}

impl PeriodArguments {
    /// The checkpoints to be taken; none if nothing is said of them.
    pub(super) fn checkpoints(&self) -> Option<PeriodicCheckpoints> {
        let keep = self.keep;
        self.every.map(|every_seconds| PeriodicCheckpoints { every_seconds, keep })
    }
}

/// Whole seconds of a period; 0 for `never`.
fn period(word: &str) -> Result<u32, String> {
    if word == "never" {
        return Ok(0);
    }
    let expected =
        || "the period is at least 1s and at most 30d: write a time such as 5m, or never".to_owned();
    let whole = parse_time(word).ok().filter(|time| *time == Duration::from_secs(time.as_secs()));
    let seconds = whole.and_then(|time| u32::try_from(time.as_secs()).ok());
    seconds.filter(|seconds| (1..=limits::CHECKPOINT_SECONDS_MAX).contains(seconds)).ok_or_else(expected)
}

/// Checkpoints of a period, for people: `every 5m, the last 3 are kept`.
pub(super) fn shown(checkpoints: PeriodicCheckpoints) -> String {
    let PeriodicCheckpoints { every_seconds, keep } = checkpoints;
    let every = match every_seconds {
        days if days > 0 && days.is_multiple_of(86_400) => format!("{}d", days / 86_400),
        hours if hours > 0 && hours.is_multiple_of(3600) => format!("{}h", hours / 3600),
        minutes if minutes > 0 && minutes.is_multiple_of(60) => format!("{}m", minutes / 60),
        seconds => format!("{seconds}s"),
    };
    format!("every {every}, the last {keep} are kept")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_whole_seconds_up_to_a_month_and_a_refusal_says_so() {
        let read = ["1s", "5m", "90", "30d", "never"].map(period);
        assert_eq!(read, [Ok(1), Ok(300), Ok(90), Ok(2_592_000), Ok(0)]);
        for wrong in ["0", "500ms", "1500ms", "31d", "often", ""] {
            let refused = period(wrong).expect_err(wrong);
            assert!(refused.contains("at least 1s and at most 30d"), "{refused}");
        }
    }

    #[test]
    fn a_period_is_shown_in_its_largest_unit() {
        let of = |every_seconds| shown(PeriodicCheckpoints { every_seconds, keep: 3 });
        assert_eq!(of(300), "every 5m, the last 3 are kept");
        assert_eq!(
            [of(90), of(7200), of(86_400)].map(|text| text[..9].to_owned()),
            ["every 90s", "every 2h,", "every 1d,"]
        );
    }
}
