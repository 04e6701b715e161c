//! This node as others reach it.

use rekindle_engine::origin::Origin;
use rekindle_settings::{PeerSettings, Settings};

/// This node, as origin records name it; none if others are not served at a port that is known before.
pub(super) fn origin_of(settings: &Settings) -> Option<Origin> {
    let PeerSettings { listen, files, address, .. } = &settings.peers;
    let listen = listen.filter(|_| files.is_some())?;
    let of_listener = || {
        let is_everywhere = listen.ip().is_unspecified();
        (listen.port() != 0).then(|| match is_everywhere {
            true => format!("{}:{}", node_name(), listen.port()),
            false => listen.to_string(),
        })
    };
    Some(Origin { node: node_name(), address: address.clone().or_else(of_listener)? })
}

/// The name of this machine.
pub(super) fn node_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
