//! Machines on tap devices: a guest's packets arrive, also on another device after a resume.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;

use rekindle_api::types::{ResumeSandbox, Tap, TapName};
use rekindle_testkit::skip::skipped;

use crate::machine_console::{Console, have_qemu, linux};
use crate::support::Node;

const TIER: &str = "machines on tap devices";
/// The host's side of every device, so that a guest need not learn it anew.
const HOST_MAC: &str = "02:00:00:00:83:01";

/// A tap device of this host; gone with this.
struct HostTap {
    name: String,
}

impl HostTap {
    /// A device with this address in a network of 256; none where there can be none, which is said.
    fn new(name: &str, address: Ipv4Addr) -> Option<Self> {
        let tap = Self { name: format!("rk{}{name}", std::process::id()) };
        let device = tap.name.as_str();
        let network = format!("{address}/24");
        let made = ip(&["tuntap", "add", "dev", device, "mode", "tap"])
            && ip(&["link", "set", "dev", device, "address", HOST_MAC, "up"])
            && ip(&["address", "add", &network, "dev", device]);
        if !made {
            skipped(TIER, "ip tuntap makes no device");
        }
        made.then_some(tap)
    }

    fn named(&self) -> TapName {
        TapName(self.name.clone())
    }
}

impl Drop for HostTap {
    fn drop(&mut self) {
        ip(&["link", "delete", "dev", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).status().is_ok_and(|status| status.success())
}

/// Answers every datagram with its own bytes, until the test ends.
fn echo() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
    let port = socket.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok((count, from)) = socket.recv_from(&mut bytes) {
            // One that cannot be sent is sent again by the guest.
            socket.send_to(&bytes[..count], from).ok();
        }
    });
    port
}

#[test]
fn a_machine_talks_over_its_tap_and_after_a_resume_over_another_one() {
    if !Path::new("/dev/net/tun").exists() {
        // Not a skip: a kernel without tap devices has none to give a machine.
        return;
    }
    if !have_qemu(TIER) {
        return;
    }
    let node = Node::start();
    let Some(mut wanted) = linux(&node, "vm", TIER) else { return };
    let network = u8::try_from(std::process::id() % 200).expect("it is small");
    let (host, guest) = (Ipv4Addr::new(10, 83, network, 1), Ipv4Addr::new(10, 83, network, 2));
    let Some(first) = HostTap::new("a", host) else { return };
    let send = format!("send {host} {}", echo());
    let machine = wanted.machine.as_mut().expect("it is one");
    machine.taps.push(Tap { device: first.named(), mac: Some("02:00:00:00:83:02".to_owned()) });
    node.client.create_sandbox(None, &wanted).expect("a machine is made");
    let mut console = Console::of(&node.client, "vm");
    console.line("rekindle linux guest, ");
    console.ask(&format!("network {guest}"), "network ok");
    assert_eq!(console.ask(&format!("{send} over the first"), "heard "), "over the first");
    node.pause("vm", "paused");
    drop(first);
    let Some(second) = HostTap::new("b", host) else { return };
    let elsewhere = ResumeSandbox { taps: Some(vec![second.named()]), ..Default::default() };
    node.client.resume_sandbox("vm", &elsewhere).expect("it goes on");
    let mut console = Console::from_now(&node.client, "vm");
    assert_eq!(console.ask(&format!("{send} over the second"), "heard "), "over the second");
}
