//! Names that the keeper is given: of keys, and of descriptors under them.

use serde::{Deserialize, Serialize};

use super::error::Refusal;

/// Longest key.
pub const KEY_BYTES_MAX: usize = 128;
/// Longest name of a descriptor: a volume's name and a word behind it.
pub const NAME_BYTES_MAX: usize = 96;

/// The name of a set of descriptors, a note and a process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Key(String);

/// The name of a descriptor under its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct FdName(String);

impl Key {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FdName {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Key {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        checked(text, KEY_BYTES_MAX).map(Self)
    }
}

impl TryFrom<String> for FdName {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        checked(text, NAME_BYTES_MAX).map(Self)
    }
}

/// Text of letters, digits and `/ . - _`, so that it is as long in JSON as here.
fn checked(text: String, bytes_max: usize) -> Result<String, Refusal> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_".contains(&byte);
    if !text.is_empty() && text.len() <= bytes_max && text.bytes().all(allowed) {
        return Ok(text);
    }
    let why = format!("a name has 1 to {bytes_max} letters, digits or any of '/.-_'");
    Err(Refusal::Malformed { why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "sandbox/0198-a", "root.memory", &"k".repeat(KEY_BYTES_MAX)] {
            assert!(Key::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a\"", "\n", "é", &"k".repeat(KEY_BYTES_MAX + 1)] {
            assert!(Key::try_from(bad.to_owned()).is_err(), "{bad}");
            assert!(FdName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
