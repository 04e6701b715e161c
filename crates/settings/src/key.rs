//! A setting's names, and its text for help and documents.

/// A setting as it is named and told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name in a settings file, with dots between tables: `api.tcp.listen`.
    pub name: &'static str,
    /// The flag that sets it, without the dashes before it: `api-tcp-listen`.
    pub flag: &'static str,
    /// Placeholder for its value in help.
    pub value: &'static str,
    /// Its meaning.
    pub help: &'static str,
    /// Its value where nothing is said, in words.
    pub default: &'static str,
    /// A value it could have, as a settings file has it.
    pub example: &'static str,
    /// True if it changes in a running daemon on SIGHUP.
    pub reloads: bool,
}

impl Key {
    /// The environment variable that sets it: `REKINDLE_API_TCP_LISTEN`.
    pub fn variable(&self) -> String {
        format!("REKINDLE_{}", self.name.replace('.', "_").to_uppercase())
    }
}
