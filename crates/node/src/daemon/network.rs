//! Networks of machines: the network namespace that a VMM runs in, and the tap devices of its network devices there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{Netns, NoNetwork, TapName, Which};
use rekindle_keeper::KeeperClient;
use rekindle_vmm::namespace::{Namespace, NamespaceError};
use rekindle_vmm::taps;
use uuid::Uuid;

use super::keys::guest_key;
use super::problems::guest_failed;

/// The network of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Network {
    /// The file of the network namespace; none: the daemon's.
    pub(super) netns: Option<PathBuf>,
    /// The tap devices, in the order of the machine's network devices.
    pub(super) taps: Vec<String>,
}

/// The networks that a request asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WantedNetwork<'a> {
    /// The tap devices, where it says them.
    pub(super) taps: Option<&'a [TapName]>,
    /// The network namespace, where it says one.
    pub(super) netns: Option<&'a Netns>,
}

impl WantedNetwork<'_> {
    /// The network of a machine that `had` another one.
    pub(super) fn of(self, had: &Network, which: Which<'_>) -> Answer<Network> {
        let of_word = |why: NoNetwork| Problem::new(Code::WrongState, why.to_string());
        let taps = match self.taps {
            Some(taps) => taps.iter().map(|tap| tap.of(which)).collect::<Result<_, _>>().map_err(of_word)?,
            None => had.taps.clone(),
        };
        let netns = match self.netns {
            Some(netns) => Some(netns.of(which).map_err(of_word)?),
            None => had.netns.clone(),
        };
        Ok(Network { netns, taps })
    }
}

impl Network {
    /// The file of the namespace, for the API.
    pub(super) fn shown_netns(&self) -> Option<String> {
        Some(self.netns.as_ref()?.display().to_string())
    }

    /// A tap device that both have.
    pub(super) fn shared_tap(&self, other: &Self) -> Option<&str> {
        let is_shared = |tap: &&String| self.netns == other.netns && other.taps.contains(tap);
        self.taps.iter().find(is_shared).map(String::as_str)
    }

    /// Checks that the namespace and the tap devices are there; `starter` is the program that enters namespaces.
    pub(super) fn check_is_there(&self, keeper: &KeeperClient, starter: &Path) -> Answer<()> {
        let taps = self.taps.iter().map(String::as_str);
        let misfit = |why: String| Problem::new(Code::Misfit, why);
        let Some(file) = self.netns.clone() else {
            return taps::check(None, taps).map_err(|error| misfit(error.to_string()));
        };
        let namespace = Namespace { file, starter: starter.to_owned() };
        let checked = namespace.check(keeper, &guest_key(Uuid::now_v7()), taps);
        checked.map_err(|error| match error {
            NamespaceError::Keeper(error) => guest_failed(error.into()),
            error @ (NamespaceError::Closed { .. }
            | NamespaceError::Barred { .. }
            | NamespaceError::Tap(_)
            | NamespaceError::Program { .. }
            | NamespaceError::Silent(_)
            | NamespaceError::Found(_)) => misfit(error.to_string()),
        })
    }
}

/// Checks that no two of these networks share a tap.
pub(super) fn check_distinct(networks: &[Network]) -> Answer<()> {
    let mut taken = BTreeSet::new();
    for network in networks {
        if let Some(tap) = network.taps.iter().find(|tap| !taken.insert((network.netns.clone(), *tap))) {
            let why = format!(
                "two machines cannot be at the same tap {tap}: give each a tap or a network namespace of its own, as by \
                 --tap 'tap{{index}}' or --netns 'clone-{{index}}'"
            );
            return Err(Problem::new(Code::WrongState, why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(netns: &str, tap: &str) -> Network {
        let netns = (!netns.is_empty()).then(|| netns.into());
        Network { netns, taps: vec![tap.to_owned()] }
    }

    #[test]
    fn equal_names_of_taps_are_one_tap_only_in_one_network_namespace() {
        let here = network("", "tap0");
        assert_eq!(here.shared_tap(&network("", "tap0")), Some("tap0"));
        assert_eq!(here.shared_tap(&network("/run/netns/blue", "tap0")), None);
        let error = check_distinct(&[here.clone(), here]).expect_err("one tap for two");
        assert!(error.detail.contains("the same tap tap0"), "{error}");
    }

    #[test]
    fn each_of_several_machines_has_the_network_that_its_number_stands_for() {
        let (taps, netns) = ([TapName("tap{index}".to_owned())], Netns("clone-{index}".to_owned()));
        let wanted = WantedNetwork { taps: Some(&taps), netns: Some(&netns) };
        let second = Which { index: 2, name: None };
        let other = wanted.of(&network("", "eth0"), second).expect("it needs no name");
        assert_eq!(other, network("/run/netns/clone-2", "tap2"));
        let as_before = WantedNetwork::default().of(&network("/x", "tap0"), second);
        assert_eq!(as_before.expect("nothing is said"), network("/x", "tap0"));
    }
}
