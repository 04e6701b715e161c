//! Keys at the keeper, and the things that they are of.

use uuid::Uuid;

/// The key of one guest's process and descriptors: a sandbox has another guest after each resume.
pub(super) fn guest_key(id: Uuid) -> String {
    format!("{GUEST}{id}")
}

/// The key of a fault socket's descriptors.
pub(super) fn socket_key(id: Uuid) -> String {
    format!("{SOCKET}{id}")
}

const GUEST: &str = "guest/";
const SOCKET: &str = "socket/";
const SNAPSHOT: &str = "snapshot/";
/// The key of what the keeper knows of the catalog.
pub(super) const CATALOG: &str = "catalog";
/// The key of what was set aside, behind this, has a note on it.
const ASIDE: &str = "aside/";

/// The thing that a key is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum KeyOf {
    Guest(Uuid),
    Socket(Uuid),
    Snapshot(Uuid),
}

impl KeyOf {
    pub(super) fn parse(key: &str) -> Option<Self> {
        let of = |prefix: &str| Uuid::try_parse(key.strip_prefix(prefix)?).ok();
        of(GUEST)
            .map(Self::Guest)
            .or_else(|| of(SOCKET).map(Self::Socket))
            .or_else(|| of(SNAPSHOT).map(Self::Snapshot))
    }

    /// The thing that the key marks as set aside, if it marks one.
    pub(super) fn parse_aside(key: &str) -> Option<Self> {
        Self::parse(key.strip_prefix(ASIDE)?)
    }

    /// The key.
    pub(super) fn key(self) -> String {
        match self {
            Self::Guest(id) => guest_key(id),
            Self::Socket(id) => socket_key(id),
            Self::Snapshot(id) => format!("{SNAPSHOT}{id}"),
        }
    }

    /// The key that says that it was set aside.
    pub(super) fn aside_key(self) -> String {
        format!("{ASIDE}{}", self.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_what_they_are_of() {
        let id = Uuid::from_u128(7);
        assert_eq!(KeyOf::parse(&guest_key(id)), Some(KeyOf::Guest(id)));
        assert_eq!(KeyOf::parse(&socket_key(id)), Some(KeyOf::Socket(id)));
        assert_eq!(KeyOf::parse(&format!("snapshot/{id}")), Some(KeyOf::Snapshot(id)));
        assert_eq!(KeyOf::parse("guest/7"), None);
        assert_eq!(KeyOf::parse("elsewhere"), None);
        for key in [KeyOf::Guest(id), KeyOf::Socket(id), KeyOf::Snapshot(id)] {
            assert_eq!((KeyOf::parse(&key.key()), KeyOf::parse(&key.aside_key())), (Some(key), None));
            assert_eq!(
                (KeyOf::parse_aside(&key.key()), KeyOf::parse_aside(&key.aside_key())),
                (None, Some(key))
            );
        }
    }
}
