//! `rekindle settings`: prints every setting, its value, and the source of that value.

use clap::Args;
use rekindle_settings::keys::KEYS;
use rekindle_settings::{Entry, SettingFlags, Settings, Source};

use super::output::{Rows, Tone, Word};
use super::serve;
use super::session::Session;
use super::status::Status;

/// Options of showing settings.
#[derive(Args, Clone, Debug)]
pub struct SettingsArguments {
    /// Print a settings file with every setting, explained and commented out
    #[arg(long)]
    example: bool,
    #[command(flatten)]
    flags: SettingFlags,
}

/// Shows them.
pub fn run(session: &Session, arguments: &SettingsArguments) -> anyhow::Result<Status> {
    if arguments.example {
        super::output::write(&example())?;
        return Ok(Status::Done);
    }
    let settings = Settings::load(&session.setting_flags(arguments.flags.clone()))?;
    // The files that they name must do as well: a daemon would not start with others.
    serve::tcp_options(&settings).map(|tcp| tcp.check()).transpose()?;
    settings.check_sockets()?;
    if session.output.json {
        session.output.value(&settings.entries())?;
        return Ok(Status::Done);
    }
    session.output.rows(rows(settings.entries()))?;
    let file = settings.file.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string());
    session
        .output
        .line(&format!("\nSettings file: {file}. Those with a * change in a running daemon on SIGHUP."))?;
    for name in &settings.ignored_variables {
        session.output.line(&format!("The variable {name} sets nothing."))?;
    }
    Ok(Status::Done)
}

fn rows(entries: &[Entry]) -> Rows {
    let mut rows = Rows::new(&["SETTING", "VALUE", "FROM"]);
    for entry in entries {
        let mark = if entry.key.reloads { "*" } else { "" };
        let from_default = entry.source == Source::Default;
        rows.add([
            format!("{}{mark}", entry.key.name).into(),
            entry.shown.as_deref().map_or_else(|| Word::from("none").tone(Tone::Faint), Word::from),
            Word::from(entry.source.to_string()).tone(if from_default { Tone::Faint } else { Tone::Plain }),
        ]);
    }
    rows
}

/// A settings file in which every setting stands, explained and commented out.
pub fn example() -> String {
    let mut text = "\
# Settings of rekindle. Each line that is commented out shows what could be said; `rekindle settings` shows what
# holds and where it was said. Environment variables (REKINDLE_API_TCP_LISTEN for api.tcp.listen) win over this
# file, flags (--api-tcp-listen) over both.
"
    .to_owned();
    for key in &KEYS {
        let when = if key.reloads { " Changes in a running daemon on SIGHUP." } else { "" };
        text += &format!(
            "\n# {}.{when}\n# Default: {}\n#{} = {}\n",
            key.help, key.default, key.name, key.example
        );
    }
    text
}
