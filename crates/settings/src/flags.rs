//! The flags of the command line that set settings: one for each, made from the list of keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::key::Key;
use super::keys::{KEYS, named};

/// Under which words help lists these flags.
const HELP_GROUP: &str = "Settings";

/// The command line's values of settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingFlags {
    /// The settings file to read instead of the usual ones.
    pub config: Option<PathBuf>,
    given: BTreeMap<&'static str, Given>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    flag: String,
    value: String,
}

impl SettingFlags {
    /// The same with `value` for the setting `name`, given by `flag`; an earlier value stays.
    #[must_use]
    pub fn with(mut self, name: &str, flag: &str, value: Option<String>) -> Self {
        if let (Some(key), Some(value)) = (named(name), value) {
            self.given.entry(key.name).or_insert_with(|| Given { flag: flag.to_owned(), value });
        }
        self
    }

    /// The same with this settings file.
    #[must_use]
    pub fn with_config(mut self, config: Option<PathBuf>) -> Self {
        self.config = self.config.or(config);
        self
    }

    /// Values given: setting, flag, value.
    pub(super) fn given(&self) -> impl Iterator<Item = (&'static str, &str, &str)> {
        self.given.iter().map(|(key, given)| (*key, given.flag.as_str(), given.value.as_str()))
    }
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        KEYS.iter().fold(command, |command, key| command.arg(argument(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn argument(key: &'static Key) -> Arg {
    Arg::new(key.name)
        .long(key.flag)
        .value_name(key.value)
        .help(format!("{} [default: {}]", key.help, key.default))
        .help_heading(HELP_GROUP)
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for key in &KEYS {
            if let Some(value) = matches.get_one::<String>(key.name) {
                let flag = format!("--{}", key.flag);
                self.given.insert(key.name, Given { flag, value: value.clone() });
            }
        }
        Ok(())
    }
}
