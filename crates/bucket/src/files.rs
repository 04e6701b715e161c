//! Files of credentials in the form of AWS: profiles in brackets, each with lines `name = value`.

use std::collections::BTreeMap;

/// Values of a profile by name.
pub(super) type Profile = BTreeMap<String, String>;

/// The profile of this name in the text of a file; lines before the first profile belong to `default`.
pub(super) fn profile_in(text: &str, wanted: &str) -> Option<Profile> {
    let mut found: Option<Profile> = None;
    let mut name = "default".to_owned();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(inner) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            let inner = inner.0.trim();
            // A file of configuration calls all but the default `profile NAME`.
            name = inner.strip_prefix("profile ").unwrap_or(inner).trim().to_owned();
            if name == wanted {
                found.get_or_insert_default();
            }
        } else if name == wanted
            && let Some((key, value)) = line.split_once('=')
        {
            let key = key.trim().to_ascii_lowercase();
            found.get_or_insert_default().insert(key, value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_has_the_lines_below_its_name_and_no_others() {
        let text = "# keys\n[default]\naws_access_key_id = A\n\n[profile other]\nregion=eu-west-1\nA_KEY = b=c\n[empty]\n";
        let values = |name| profile_in(text, name).map(|found| found.into_iter().collect::<Vec<_>>());
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(values("default"), Some(vec![pair("aws_access_key_id", "A")]));
        assert_eq!(values("other"), Some(vec![pair("a_key", "b=c"), pair("region", "eu-west-1")]));
        assert_eq!(values("empty"), Some(vec![]));
        assert_eq!(values("missing"), None);
        assert_eq!(profile_in("account_key = x", "default").unwrap()["account_key"], "x");
    }
}
