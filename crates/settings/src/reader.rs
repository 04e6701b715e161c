//! Takes the values of settings out of all that was said.

use rekindle_bucket::{BucketAccess, shown_without_secrets};
use rekindle_vmm::firecracker::Jailer;

use super::keys::named;
use super::layers::Layers;
use super::values::{self, Kind};
use super::{Entry, Key, SettingsError, Source, TcpSettings};

/// Takes values out of what was said, in the order of the keys, and notes each.
pub(super) struct Reader {
    pub(super) layers: Layers,
    pub(super) entries: Vec<Entry>,
}

impl Reader {
    /// The value of a setting that has a default.
    pub(super) fn value<T>(&mut self, name: &str, kind: &Kind<T>, default: T) -> Result<T, SettingsError> {
        let key = named(name).expect("every setting is listed");
        let (value, source) = match self.parsed(key, kind)? {
            Some(found) => found,
            None => (default, Source::Default),
        };
        self.note(key, Some((kind.show)(&value)), source);
        Ok(value)
    }

    /// The value of a setting that may have none.
    pub(super) fn given<T>(&mut self, name: &str, kind: &Kind<T>) -> Result<Option<T>, SettingsError> {
        let key = named(name).expect("every setting is listed");
        let found = self.parsed(key, kind)?;
        let source = found.as_ref().map_or(Source::Default, |(_, source)| source.clone());
        self.note(key, found.as_ref().map(|(value, _)| (kind.show)(value)), source);
        Ok(found.map(|(value, _)| value))
    }

    fn parsed<T>(&self, key: &'static Key, kind: &Kind<T>) -> Result<Option<(T, Source)>, SettingsError> {
        let Some(said) = self.layers.said.get(key.name) else { return Ok(None) };
        let value = (kind.parse)(said).map_err(|expected| SettingsError::Value {
            place: said.source.clone(),
            key: key.name,
            given: shown_without_secrets(&said.value.to_string()),
            expected,
        })?;
        Ok(Some((value, said.source.clone())))
    }

    fn note(&mut self, key: &'static Key, shown: Option<(String, serde_json::Value)>, source: Source) {
        let (shown, value) =
            shown.map_or((None, serde_json::Value::Null), |(shown, value)| (Some(shown), value));
        self.entries.push(Entry { key, shown, value, source });
    }

    /// The TCP listener: all four of its settings, or none.
    pub(super) fn tcp(&mut self) -> Result<Option<TcpSettings>, SettingsError> {
        let listen = self.given("api.tcp.listen", &values::ADDRESS)?;
        let certificate = self.given("api.tcp.certificate", &values::PATH)?;
        let key = self.given("api.tcp.key", &values::PATH)?;
        let token_file = self.given("api.tcp.token_file", &values::PATH)?;
        match (listen, certificate, key, token_file) {
            (Some(listen), Some(certificate), Some(key), Some(token_file)) => {
                Ok(Some(TcpSettings { listen, certificate, key, token_file }))
            }
            _ => self.none_of("api.tcp.").map(|()| None),
        }
    }

    pub(super) fn bucket(&mut self) -> Result<BucketAccess, SettingsError> {
        let access = BucketAccess {
            endpoint: self.given("bucket.endpoint", &values::ENDPOINT)?,
            region: self.given("bucket.region", &values::NAME)?,
            path_style: self.given("bucket.path_style", &values::SWITCH)?,
            account: self.given("bucket.account", &values::NAME)?,
            profile: self.given("bucket.profile", &values::NAME)?,
            credentials_file: self.given("bucket.credentials_file", &values::PATH)?,
            authorities_file: self.given("bucket.authorities_file", &values::PATH)?,
            allow_http: self.value("bucket.allow_http", &values::SWITCH, false)?,
        };
        let key = "bucket.endpoint";
        match (&access.endpoint, self.layers.said.get(key)) {
            (Some(endpoint), Some(said)) if endpoint.starts_with("http://") && !access.allow_http => {
                Err(SettingsError::Value {
                    place: said.source.clone(),
                    key,
                    given: endpoint.clone(),
                    expected: "a URL that begins with https://, as guests' memory would go over the line for all to \
                               read; set bucket.allow_http to true to allow that"
                        .to_owned(),
                })
            }
            _ => Ok(access),
        }
    }

    pub(super) fn jailer(&mut self) -> Result<Option<Jailer>, SettingsError> {
        let program = self.given("firecracker.jailer.program", &values::PATH)?;
        let base = self.given("firecracker.jailer.base", &values::PATH)?;
        let user_id = self.given("firecracker.jailer.uid", &values::USER)?;
        let group_id = self.given("firecracker.jailer.gid", &values::USER)?;
        match (program, base, user_id, group_id) {
            (Some(program), Some(base), Some(user_id), Some(group_id)) => {
                Ok(Some(Jailer { program, base, user_id, group_id, arguments: Vec::new() }))
            }
            _ => self.none_of("firecracker.jailer.").map(|()| None),
        }
    }

    /// An error where some of the settings that begin so were given: they are given together or not at all.
    pub(super) fn none_of(&self, group: &str) -> Result<(), SettingsError> {
        self.none_where(|name| name.starts_with(group))
    }

    pub(super) fn none_where(&self, is_one: impl Fn(&str) -> bool) -> Result<(), SettingsError> {
        let all = self.entries.iter().filter(|entry| is_one(entry.key.name));
        let (said, missing): (Vec<&Entry>, Vec<&Entry>) = all.partition(|entry| entry.shown.is_some());
        match said.first() {
            None => Ok(()),
            Some(first) => Err(SettingsError::Incomplete {
                place: first.source.clone(),
                key: first.key.name,
                missing: missing.iter().map(|entry| entry.key.name).collect::<Vec<_>>().join(", "),
            }),
        }
    }
}
