//! Settings of other nodes: those that are served, and those that are read from.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rekindle_engine::limits;
use rekindle_peer::TlsFiles;
use serde_json::json;

use super::error::SettingsError;
use super::layers::{GivenValue, RawValue};
use super::values::Kind;
use super::{Reader, values};

const NODES: Kind<BTreeMap<String, String>> = Kind {
    parse: nodes,
    show: |nodes| {
        let shown: Vec<String> = nodes.iter().map(|(name, address)| format!("{name}={address}")).collect();
        (if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }, json!(shown))
    },
};

/// Other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// Address to serve them at, with certificates.
    pub listen: Option<SocketAddr>,
    /// The certificates; without them no other node is served or read from.
    pub files: Option<TlsFiles>,
    /// Addresses by name.
    pub named: BTreeMap<String, String>,
}

impl Reader {
    /// The certificates are given together, and with a listener.
    pub(super) fn peers(&mut self) -> Result<PeerSettings, SettingsError> {
        let listen = self.given("peers.listen", &values::ADDRESS)?;
        let certificate = self.given("peers.certificate", &values::PATH)?;
        let key = self.given("peers.key", &values::PATH)?;
        let authority = self.given("peers.authority", &values::PATH)?;
        let files = match (certificate, key, authority) {
            (Some(certificate), Some(key), Some(authority)) => Some(TlsFiles { certificate, key, authority }),
            _ => {
                let is_listen = |name: &str| name == "peers.listen" && listen.is_some();
                let files = ["peers.certificate", "peers.key", "peers.authority"];
                self.none_where(|name| is_listen(name) || files.contains(&name))?;
                None
            }
        };
        let named = self.value("peers.static", &NODES, BTreeMap::new())?;
        Ok(PeerSettings { listen, files, named })
    }
}

/// Names of nodes with their addresses, in a list or in a text with commas.
fn nodes(said: &GivenValue) -> Result<BTreeMap<String, String>, String> {
    let expected = || "a list of names with addresses, such as [\"a=10.0.0.7:7420\"]".to_owned();
    let one = |given: &str| {
        let (name, address) = given.trim().split_once('=').ok_or_else(expected)?;
        let has_port = address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        let is_node =
            !name.is_empty() && !name.contains(':') && has_port && given.len() <= limits::NODE_BYTES_MAX;
        is_node.then(|| (name.to_owned(), address.to_owned())).ok_or_else(expected)
    };
    match &said.value {
        RawValue::List(values) => values
            .iter()
            .map(|value| match value {
                RawValue::Text(given) => one(given),
                RawValue::Number(_) | RawValue::Truth(_) | RawValue::List(_) | RawValue::Other(_) => {
                    Err(expected())
                }
            })
            .collect(),
        RawValue::Text(given) if given.is_empty() => Ok(BTreeMap::new()),
        RawValue::Text(given) => given.split(',').map(one).collect(),
        RawValue::Number(_) | RawValue::Truth(_) | RawValue::Other(_) => Err(expected()),
    }
}
