//! Names, references and labels. They are checked when they are read, from a request or a record, and never again.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::SandboxCount;
use crate::limits;
use crate::quoted::quoted;

/// Characters kept free in the name of several, for the number behind each.
const NUMBER_LENGTH_MAX: usize = 8;

/// Text that is no name, reference or label, with the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAName(String);

/// The name of a sandbox or a snapshot: never an id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The name of one or several new things; each of several gets a number behind it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NameOfSeveral(String);

/// A reference of people to a sandbox or a snapshot: an id, its beginning or end, or a name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference(String);

/// Words a user puts on a resource, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

/// A label to look for, `name=value`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelFilter {
    name: String,
    value: String,
}

impl NameOfSeveral {
    /// The names of `count` new things: with a number behind each where they are several.
    pub fn numbered(&self, count: SandboxCount) -> Vec<Name> {
        let number =
            |number| if count == SandboxCount::ONE { self.0.clone() } else { format!("{}-{number}", self.0) };
        (1..=count.get()).map(number).map(Name).collect()
    }
}

impl Labels {
    /// The label of a snapshot that is nothing but the images a machine's disks began as.
    pub const IMAGES: &str = "rekindle/images-of";

    /// The label of a checkpoint that a sandbox has taken in its period.
    pub const PERIODIC: &str = "rekindle/periodic";

    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// The labels of a snapshot of the images of a sandbox's disks.
    pub fn images_of(sandbox: Uuid) -> Self {
        Self(BTreeMap::from([(Self::IMAGES.to_owned(), sandbox.to_string())]))
    }

    /// The labels of a checkpoint that `sandbox`, a name or an id, has taken in its period.
    pub fn periodic(sandbox: &Reference) -> Self {
        Self(BTreeMap::from([(Self::PERIODIC.to_owned(), sandbox.to_string())]))
    }
}

impl LabelFilter {
    /// True if the label is among these.
    pub fn is_in(&self, labels: &Labels) -> bool {
        labels.get(&self.name) == Some(&self.value)
    }
}

impl TryFrom<String> for Name {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        check_name(&text, limits::NAME_LENGTH_MAX).map(|()| Self(text))
    }
}

impl TryFrom<String> for NameOfSeveral {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        check_name(&text, limits::NAME_LENGTH_MAX - NUMBER_LENGTH_MAX).map(|()| Self(text))
    }
}

impl TryFrom<String> for Reference {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        if is_name(&text, limits::NAME_LENGTH_MAX) {
            return Ok(Self(text));
        }
        let (said, rule) = (quoted(&text), name_rule(limits::NAME_LENGTH_MAX));
        Err(NotAName(format!("{said} is neither an id nor a name: {rule}")))
    }
}

impl From<Uuid> for Reference {
    fn from(id: Uuid) -> Self {
        Self(id.to_string())
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = NotAName;

    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, NotAName> {
        let most = limits::LABELS_MAX;
        if labels.len() > most {
            let count = labels.len();
            return Err(NotAName(format!("`labels` are {count}: a resource has at most {most}")));
        }
        labels.iter().try_for_each(|(name, value)| check_label(name, value))?;
        Ok(Self(labels))
    }
}

impl TryFrom<String> for LabelFilter {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        match text.split_once('=') {
            Some((name, value)) if is_label_name(name) => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            Some(_) | None => {
                let said = quoted(&text);
                Err(NotAName(format!("`label` is {said}: it must be a label's name, `=` and its value")))
            }
        }
    }
}

impl fmt::Display for LabelFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

impl From<LabelFilter> for String {
    fn from(label: LabelFilter) -> Self {
        label.to_string()
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(Labels(labels): Labels) -> Self {
        labels
    }
}

impl Deref for Labels {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

/// A text of its own kind, which can be read from text and be used as such.
macro_rules! text {
    ($($kind:ty),*) => {$(
        impl FromStr for $kind {
            type Err = NotAName;

            fn from_str(text: &str) -> Result<Self, NotAName> {
                Self::try_from(text.to_owned())
            }
        }

        impl Deref for $kind {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $kind {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, formatter)
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl From<$kind> for String {
            fn from(text: $kind) -> Self {
                text.0
            }
        }
    )*};
}

text!(Name, NameOfSeveral, Reference);

fn check_name(text: &str, length_max: usize) -> Result<(), NotAName> {
    if !is_name(text, length_max) {
        return Err(NotAName(format!("{} cannot be a name: {}", quoted(text), name_rule(length_max))));
    }
    match Uuid::try_parse(text) {
        Ok(_) => Err(NotAName(format!("{text} cannot be a name: it is an id"))),
        Err(_) => Ok(()),
    }
}

fn check_label(name: &str, value: &str) -> Result<(), NotAName> {
    if !is_label_name(name) {
        let (said, rule) = (quoted(name), name_rule(limits::NAME_LENGTH_MAX));
        return Err(NotAName(format!("{said} cannot be a label's name: {rule}, or `/` inside")));
    }
    let most = limits::LABEL_VALUE_LENGTH_MAX;
    if value.chars().count() > most || value.chars().any(char::is_control) {
        return Err(NotAName(format!(
            "the value of label {name} must have at most {most} characters, no control characters among them"
        )));
    }
    Ok(())
}

/// True if `text` can be the name of a thing, a blob or a device.
pub(crate) fn is_name(text: &str, length_max: usize) -> bool {
    is_made_of(text, length_max, "._-")
}

fn is_label_name(text: &str) -> bool {
    is_made_of(text, limits::NAME_LENGTH_MAX, "._-/")
}

/// True if `text` is letters and digits and, from the second on, also `marks`.
fn is_made_of(text: &str, length_max: usize, marks: &str) -> bool {
    let first_is_plain = text.starts_with(|first: char| first.is_ascii_alphanumeric());
    let rest_fits = text.chars().all(|letter| letter.is_ascii_alphanumeric() || marks.contains(letter));
    first_is_plain && rest_fits && text.len() <= length_max
}

/// The rule of [`is_name`], for people.
pub(crate) fn name_rule(length_max: usize) -> String {
    format!("it must be 1 to {length_max} of A-Z, a-z, 0-9 and, after the first, `.`, `_` and `-`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_plain_and_no_ids() {
        for name in ["a", "7", "cafe", "web-1.blue_green", &"x".repeat(64)] {
            assert_eq!(&*name.parse::<Name>().unwrap(), name);
        }
        let id = "0192f3c8-7d1e-7abc-8def-0123456789ab";
        for name in ["", "-a", "a b", "a/b", "ä", "a\0", id, &"x".repeat(65)] {
            assert!(name.parse::<Name>().is_err(), "{name}");
            assert!(serde_json::from_value::<Name>(name.into()).is_err(), "{name}");
        }
        assert!(id.parse::<Reference>().is_ok() && "a b".parse::<Reference>().is_err());
    }

    #[test]
    fn the_name_of_several_has_room_for_a_number_and_each_of_them_is_a_name() {
        let longest: NameOfSeveral = "x".repeat(56).parse().unwrap();
        for name in longest.numbered(limits::COUNT_MAX.try_into().unwrap()) {
            assert_eq!(name.parse(), Ok(name));
        }
        assert!("x".repeat(57).parse::<NameOfSeveral>().is_err());
        let names = |count: u32| "a".parse::<NameOfSeveral>().unwrap().numbered(count.try_into().unwrap());
        assert_eq!(names(1), ["a".parse().unwrap()]);
        assert_eq!(names(2), ["a-1".parse().unwrap(), "a-2".parse().unwrap()]);
    }

    #[test]
    fn labels_are_few_and_short() {
        let labels = |labels: serde_json::Value| serde_json::from_value::<Labels>(labels);
        for taken in
            [serde_json::json!({"team/app": "", "a": "b = c"}), serde_json::json!({"a": "ä".repeat(256)})]
        {
            labels(taken).unwrap();
        }
        let many: BTreeMap<_, _> = (0..65).map(|number| (format!("n{number}"), "")).collect();
        for refused in [
            serde_json::json!({"a=b": "c"}),
            serde_json::json!({"a": "\n"}),
            serde_json::json!({"a": "x".repeat(257)}),
            serde_json::json!(many),
        ] {
            assert!(labels(refused.clone()).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_label_that_is_looked_for_has_a_name_and_a_value() {
        let labels: Labels = serde_json::from_value(serde_json::json!({"a": "b=c"})).unwrap();
        let filter = |text: &str| LabelFilter::try_from(text.to_owned());
        assert!(filter("a=b=c").unwrap().is_in(&labels) && !filter("a=").unwrap().is_in(&labels));
        assert!(filter("a").is_err() && filter("=b").is_err());
    }
}
