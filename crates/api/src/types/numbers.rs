//! Numbers in requests that have a least and a largest value. They are checked when they are read, and never again.

use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{KnownFormat, Object, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type};

use crate::limits;

/// A number that is too small or too large, with the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OutOfRange(String);

/// Number of sandboxes that one request makes: 1 to 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SandboxCount(u32);

/// Largest number of entries on a page of a list: 1 to 1000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PageLimit(u32);

impl SandboxCount {
    /// One sandbox.
    pub const ONE: Self = Self(1);

    /// Its schema in the document.
    pub(super) fn schema() -> Schema {
        let description = "Number of sandboxes.";
        Schema::Object(
            number(limits::COUNT_MAX).description(Some(description)).default(Some(1.into())).build(),
        )
    }
}

impl Default for SandboxCount {
    fn default() -> Self {
        Self::ONE
    }
}

impl PageLimit {
    /// As many as a page can have.
    pub const MAX: Self = Self(limits::LIST_MAX);

    /// Its schema in the document.
    pub(super) fn schema() -> Object {
        number(limits::LIST_MAX).description(Some("Largest number of entries on a page.")).build()
    }
}

/// A whole number from 1 to `most`.
fn number(most: u32) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::Integer))
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int32)))
        .minimum(Some(1))
        .maximum(Some(most))
}

/// A number of its own kind, from 1 to a most.
macro_rules! number {
    ($($kind:ty: $field:literal, $most:expr, $rule:literal;)*) => {$(
        impl $kind {
            /// The number.
            pub const fn get(self) -> u32 {
                self.0
            }
        }

        impl TryFrom<u32> for $kind {
            type Error = OutOfRange;

            fn try_from(number: u32) -> Result<Self, OutOfRange> {
                let most = $most;
                let wrong = || OutOfRange(format!("`{}` is {number}: {} 1 to {most}", $field, $rule));
                (1..=most).contains(&number).then_some(Self(number)).ok_or_else(wrong)
            }
        }

        impl TryFrom<u64> for $kind {
            type Error = OutOfRange;

            fn try_from(number: u64) -> Result<Self, OutOfRange> {
                // One that is too large for 32 bits is too large for each of these.
                Self::try_from(u32::try_from(number).unwrap_or(u32::MAX))
            }
        }

        impl From<$kind> for u32 {
            fn from(number: $kind) -> Self {
                number.0
            }
        }
    )*};
}

number! {
    SandboxCount: "count", limits::COUNT_MAX, "one request makes";
    PageLimit: "limit", limits::LIST_MAX, "a page of a list has";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_makes_a_few_hundred_sandboxes_at_most() {
        for taken in [1, 256] {
            assert_eq!(serde_json::from_value::<SandboxCount>(taken.into()).unwrap().get(), taken);
        }
        for refused in [0, 257] {
            let told = serde_json::from_value::<SandboxCount>(refused.into()).unwrap_err().to_string();
            assert_eq!(told, format!("`count` is {refused}: one request makes 1 to 256"));
        }
        assert!(SandboxCount::try_from(1_u64 << 32).is_err());
    }

    #[test]
    fn a_page_of_a_list_has_a_thousand_entries_at_most() {
        assert_eq!(PageLimit::try_from(1000_u32), Ok(PageLimit::MAX));
        for refused in [0_u32, 1001] {
            let told = PageLimit::try_from(refused).unwrap_err().to_string();
            assert_eq!(told, format!("`limit` is {refused}: a page of a list has 1 to 1000"));
        }
    }
}
