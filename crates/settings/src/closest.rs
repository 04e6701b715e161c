//! The name that a mistyped one was probably meant to be.

/// Likeness of two names from which on one is offered for the other.
const ALIKE: f64 = 0.84;

/// The name among `known` that `given` was probably meant to be.
pub(super) fn closest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |name: &str| {
        let last = name.rsplit('.').next().unwrap_or(name);
        strsim::jaro_winkler(given, name).max(if given == last { 1.0 } else { 0.0 })
    };
    let ranked = known.into_iter().map(|name| (likeness(name), name));
    let best = ranked.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (best.0 >= ALIKE).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KEYS;

    #[test]
    fn a_slip_finds_the_name_that_was_meant_and_nonsense_finds_none() {
        let names = || KEYS.iter().map(|key| key.name);
        assert_eq!(closest("capture_byte_max", names()), Some("capture_bytes_max"));
        assert_eq!(closest("state_dir", names()), Some("state_directory"));
        assert_eq!(closest("socket", names()), Some("api.socket"));
        assert_eq!(closest("loglevel", names()), Some("log_level"));
        assert_eq!(closest("colour_of_the_sky", names()), None);
    }
}
