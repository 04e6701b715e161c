//! `rekindle doctor`: finds out by trying if this machine and this user have all that rekindle needs, and gives advice
//! on missing things.

mod daemon;
mod firecracker;
mod kernel;
mod keys;
mod limits;
mod places;
mod rehearsal;
mod room;
mod store;
mod trial;

use clap::Args;
use rekindle_settings::{SettingFlags, Settings};
use serde::Serialize;

use super::output::{Output, Rows, Tone, Word};
use super::session::Session;
use super::status::Status;

/// For which settings to look.
#[derive(Args, Clone, Debug)]
pub struct DoctorArguments {
    #[command(flatten)]
    flags: SettingFlags,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The thing checked.
    pub name: &'static str,
    /// Outcome of the check.
    pub outcome: Outcome,
    /// The finding.
    pub found: String,
    /// Advice, if something can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// Outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As it should be, or not needed.
    Ok,
    /// Rekindle works, but not in everything or not as well as it could.
    Warn,
    /// Rekindle cannot serve like this.
    Fail,
}

/// All checks.
#[derive(Debug, Serialize)]
struct Report {
    /// True if rekindle can serve here.
    can_serve: bool,
    checks: Vec<Check>,
}

impl Check {
    /// Something that is as it should be.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, found: found.into(), advice: None }
    }

    /// Something that could be better, and how.
    pub fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Warn, found: found.into(), advice: Some(advice.into()) }
    }

    /// Something without which rekindle cannot serve, and how to get it.
    pub fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

/// Looks at everything. Status 1 means that rekindle cannot serve like this.
pub fn run(session: &Session, arguments: &DoctorArguments) -> anyhow::Result<Status> {
    let flags = session.setting_flags(arguments.flags.clone());
    let mut checks = Vec::new();
    let mut during = |text: &str, look: &dyn Fn() -> Vec<Check>| {
        let found = session.output.during(text, look);
        if !session.output.json {
            super::output::write(&to_text(session.output, &found))?;
        }
        checks.extend(found);
        anyhow::Ok(())
    };
    during("asking the kernel", &kernel::look)?;
    during("pausing and resuming a guest", &|| vec![rehearsal::look()])?;
    match Settings::load(&flags) {
        Ok(settings) => {
            during("looking at limits", &|| limits::look(&settings))?;
            during("trying the store", &|| places::look(&settings))?;
            during("asking the daemon", &|| daemon::look(session, &settings))?;
        }
        Err(error) => {
            let refused = Check::fail(
                "settings",
                error.to_string(),
                "correct it; the checks that need settings were left out",
            );
            during("reading settings", &|| vec![refused.clone()])?;
        }
    }
    let report = Report { can_serve: checks.iter().all(|check| check.outcome != Outcome::Fail), checks };
    if session.output.json {
        session.output.value(&report)?;
    } else {
        session.output.line(&report.summary())?;
    }
    Ok(if report.can_serve { Status::Done } else { Status::CheckFailed })
}

impl Report {
    fn summary(&self) -> String {
        let count = |outcome| self.checks.iter().filter(|check| check.outcome == outcome).count();
        let warnings = match count(Outcome::Warn) {
            0 => String::new(),
            1 => " There is 1 warning.".to_owned(),
            several => format!(" There are {several} warnings."),
        };
        match count(Outcome::Fail) {
            0 => format!("\nrekindle can serve here.{warnings}"),
            1 => format!("\nrekindle cannot serve like this: 1 check fails.{warnings}"),
            several => format!("\nrekindle cannot serve like this: {several} checks fail.{warnings}"),
        }
    }
}

/// Width of the column of checks' names.
const NAME_WIDTH: usize = 17;

fn to_text(output: Output, checks: &[Check]) -> String {
    let mut rows = Rows::bare();
    for check in checks {
        let outcome = match check.outcome {
            Outcome::Ok => Word::from("ok  ").tone(Tone::Good),
            Outcome::Warn => Word::from("warn").tone(Tone::Doubtful),
            Outcome::Fail => Word::from("fail").tone(Tone::Bad),
        };
        rows.add([outcome, format!("{:<NAME_WIDTH$}", check.name).into(), check.found.as_str().into()]);
        if let Some(advice) = &check.advice {
            rows.add(["".into(), "".into(), Word::from(format!("-> {advice}")).tone(Tone::Faint)]);
        }
    }
    rows.to_text(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_said_with_what_to_do_and_what_is_well_without() {
        let checks = [Check::ok("kernel", "6.18"), Check::fail("memory files", "none", "get some")];
        assert_eq!(
            to_text(Output::plain(), &checks),
            "ok    kernel             6.18\nfail  memory files       none\n                         -> get some\n"
        );
        let report = Report { can_serve: false, checks: checks.to_vec() };
        assert_eq!(report.summary(), "\nrekindle cannot serve like this: 1 check fails.");
    }
}
