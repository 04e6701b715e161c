//! The value and source of each setting: a file, over it the environment, over it flags.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rekindle_input::regular_file::read_text;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::closest::closest;
use super::error::{SettingsError, Source};
use super::flags::SettingFlags;
use super::keys::KEYS;

/// Surroundings that settings are read from, besides flags.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The environment.
    pub variables: BTreeMap<String, OsString>,
    /// The settings file of the whole system.
    pub system_file: PathBuf,
    /// True if this user is root.
    pub is_root: bool,
}

/// The values given for one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GivenValue {
    pub(super) value: RawValue,
    pub(super) source: Source,
}

/// A value as it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RawValue {
    /// Text; from a variable or a flag everything is.
    Text(String),
    Number(i64),
    Truth(bool),
    List(Vec<Self>),
    /// Something no setting can be, in words.
    Other(String),
}

/// All that was said.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) said: BTreeMap<&'static str, GivenValue>,
    /// The settings file that was read.
    pub(super) file: Option<PathBuf>,
    /// Variables that begin as ours do and are none of ours.
    pub(super) ignored: Vec<String>,
}

/// Variables that begin as settings do and are read elsewhere.
const OTHER_VARIABLES: [&str; 4] =
    ["REKINDLE_CONFIG", "REKINDLE_URL", "REKINDLE_TOKEN_FILE", "REKINDLE_CA_FILE"];

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self {
            variables: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
                .collect(),
            system_file: PathBuf::from("/etc/rekindle/rekindle.toml"),
            is_root: rustix::process::geteuid().is_root(),
        }
    }

    /// A directory that a variable names; an empty or relative one counts as not set, as XDG has it.
    pub(super) fn directory(&self, variable: &str) -> Option<PathBuf> {
        self.variables.get(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// The settings file of this user alone.
    fn user_file(&self) -> Option<PathBuf> {
        let base =
            self.directory("XDG_CONFIG_HOME").or_else(|| Some(self.directory("HOME")?.join(".config")))?;
        Some(base.join("rekindle/rekindle.toml"))
    }
}

impl Layers {
    pub(super) fn gather(flags: &SettingFlags, around: &Surroundings) -> Result<Self, SettingsError> {
        let mut layers = Self::default();
        if let Some((path, text)) = read_file(flags, around)? {
            layers.add_file(&path, &text)?;
            layers.file = Some(path);
        }
        layers.add_variables(around)?;
        for (key, flag, value) in flags.given() {
            let value = RawValue::Text(value.to_owned());
            layers.said.insert(key, GivenValue { value, source: Source::Flag(flag.to_owned()) });
        }
        Ok(layers)
    }

    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), SettingsError> {
        let line_at = |position: usize| 1 + text.bytes().take(position).filter(|byte| *byte == b'\n').count();
        let table = DeTable::parse(text).map_err(|error| SettingsError::Syntax {
            path: path.to_owned(),
            line: line_at(error.span().map_or(0, |span| span.start)),
            message: error.message().trim().replace('\n', ", "),
        })?;
        let mut found = Vec::new();
        flatten("", table.get_ref(), &mut found);
        for (name, position, value) in found {
            let place = Source::File { path: path.to_owned(), line: line_at(position) };
            let Some(key) = KEYS.iter().find(|key| key.name == name) else {
                let suggestion = closest(&name, KEYS.iter().map(|key| key.name));
                return Err(SettingsError::UnknownKey { place, name, suggestion });
            };
            self.said.insert(key.name, GivenValue { value, source: place });
        }
        Ok(())
    }

    fn add_variables(&mut self, around: &Surroundings) -> Result<(), SettingsError> {
        let ours = around.variables.iter().filter(|(name, _)| name.starts_with("REKINDLE_"));
        for (name, value) in ours.filter(|(name, _)| !OTHER_VARIABLES.contains(&name.as_str())) {
            let Some(key) = KEYS.iter().find(|key| key.variable() == *name) else {
                let known: Vec<String> = KEYS.iter().map(super::Key::variable).collect();
                let bare = |name: &str| name.trim_start_matches("REKINDLE_").to_owned();
                let bare_known: Vec<String> = known.iter().map(|name| bare(name)).collect();
                match closest(&bare(name), bare_known.iter().map(String::as_str)) {
                    Some(meant) => {
                        let suggestion = format!("REKINDLE_{meant}");
                        return Err(SettingsError::UnknownVariable { name: name.clone(), suggestion });
                    }
                    None => self.ignored.push(name.clone()),
                }
                continue;
            };
            let value = RawValue::Text(value.to_string_lossy().into_owned());
            self.said.insert(key.name, GivenValue { value, source: Source::Variable(name.clone()) });
        }
        Ok(())
    }
}

/// The file to read: the one that is named, else this user's, else the system's; of the latter two the first there is.
fn read_file(
    flags: &SettingFlags,
    around: &Surroundings,
) -> Result<Option<(PathBuf, String)>, SettingsError> {
    let named = around.variables.get("REKINDLE_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = flags.config.clone().or(named) {
        let text =
            read_text(&path).map_err(|source| SettingsError::Unreadable { path: path.clone(), source })?;
        return Ok(Some((path, text)));
    }
    for path in around.user_file().into_iter().chain([around.system_file.clone()]) {
        match read_text(&path) {
            Ok(text) => return Ok(Some((path, text))),
            Err(error) if is_absent(&error) => {}
            Err(source) => return Err(SettingsError::Unreadable { path, source }),
        }
    }
    Ok(None)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Every value with its dotted name and where it stands.
fn flatten(before: &str, table: &DeTable<'_>, found: &mut Vec<(String, usize, RawValue)>) {
    for (name, value) in table {
        let dotted = if before.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{before}.{}", name.get_ref())
        };
        if let DeValue::Table(inner) = value.get_ref() {
            flatten(&dotted, inner, found);
        } else {
            found.push((dotted, name.span().start, said(value.get_ref())));
        }
    }
}

fn said(value: &DeValue<'_>) -> RawValue {
    match value {
        DeValue::String(text) => RawValue::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => RawValue::Number(number),
            Err(_) => RawValue::Other(number.as_str().to_owned()),
        },
        DeValue::Boolean(truth) => RawValue::Truth(*truth),
        DeValue::Array(values) => RawValue::List(values.iter().map(Spanned::get_ref).map(said).collect()),
        DeValue::Float(number) => RawValue::Other(number.as_str().to_owned()),
        DeValue::Datetime(_) | DeValue::Table(_) => RawValue::Other(format!("a {}", value.type_str())),
    }
}

impl RawValue {
    /// The text, where it is one.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(_) | Self::Truth(_) | Self::List(_) | Self::Other(_) => None,
        }
    }
}

impl std::fmt::Display for RawValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Truth(truth) => write!(f, "{truth}"),
            Self::List(values) => {
                let shown: Vec<String> = values.iter().map(Self::to_string).collect();
                write!(f, "[{}]", shown.join(", "))
            }
            Self::Other(what) => f.write_str(what),
        }
    }
}
