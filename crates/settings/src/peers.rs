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

const HOSTS: Kind<Vec<String>> = Kind {
    parse: hosts,
    show: |hosts| (if hosts.is_empty() { "none".to_owned() } else { hosts.join(", ") }, json!(hosts)),
};

const HOST: Kind<String> = Kind { parse: host, show: |host| (host.clone(), json!(host)) };

/// Other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// Address to serve them at, with certificates.
    pub listen: Option<SocketAddr>,
    /// The certificates; without them no other node is served or read from.
    pub files: Option<TlsFiles>,
    /// Host and port at which other nodes reach this one, if it is not that of the listener.
    pub address: Option<String>,
    /// Addresses by name.
    pub named: BTreeMap<String, String>,
    /// Hosts with ports, each address of which is a node's.
    pub found: Vec<String>,
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
        let address = self.given("peers.address", &HOST)?;
        let named = self.value("peers.static", &NODES, BTreeMap::new())?;
        let found = self.value("peers.dns", &HOSTS, Vec::new())?;
        Ok(PeerSettings { listen, files, address, named, found })
    }
}

/// Names of nodes with their addresses, in a list or in a text with commas.
fn nodes(said: &GivenValue) -> Result<BTreeMap<String, String>, String> {
    let one = |given: &str| {
        let (name, address) = given.split_once('=')?;
        let is_node = !name.is_empty() && !name.contains(':') && is_address(address);
        (is_node && given.len() <= limits::NODE_BYTES_MAX).then(|| (name.to_owned(), address.to_owned()))
    };
    let expected = || "a list of names with addresses, such as [\"a=10.0.0.7:7420\"]".to_owned();
    let nodes = texts(said).ok_or_else(expected)?;
    nodes.iter().map(|given| one(given).ok_or_else(expected)).collect()
}

/// Hosts with ports, in a list or in a text with commas.
fn hosts(said: &GivenValue) -> Result<Vec<String>, String> {
    let expected = || "a list of hosts with ports, such as [\"nodes.example.org:7420\"]".to_owned();
    let hosts = texts(said).filter(|hosts| hosts.iter().all(|host| is_address(host)));
    hosts.ok_or_else(expected)
}

/// A host with a port.
fn host(said: &GivenValue) -> Result<String, String> {
    match &said.value {
        RawValue::Text(given) if is_address(given) => Ok(given.clone()),
        RawValue::Text(_)
        | RawValue::Number(_)
        | RawValue::Truth(_)
        | RawValue::List(_)
        | RawValue::Other(_) => Err("a host with a port, such as \"10.0.0.7:7420\"".to_owned()),
    }
}

fn is_address(given: &str) -> bool {
    let parts = given.rsplit_once(':');
    let has_port = parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    has_port && given.len() <= limits::NODE_BYTES_MAX && !given.chars().any(char::is_whitespace)
}

/// The texts of a list, or those between commas.
fn texts(said: &GivenValue) -> Option<Vec<String>> {
    match &said.value {
        RawValue::List(values) => values
            .iter()
            .map(|value| match value {
                RawValue::Text(given) => Some(given.trim().to_owned()),
                RawValue::Number(_) | RawValue::Truth(_) | RawValue::List(_) | RawValue::Other(_) => None,
            })
            .collect(),
        RawValue::Text(given) if given.is_empty() => Some(Vec::new()),
        RawValue::Text(given) => Some(given.split(',').map(|given| given.trim().to_owned()).collect()),
        RawValue::Number(_) | RawValue::Truth(_) | RawValue::Other(_) => None,
    }
}
