//! Clones of a machine on a tap device: each in a network namespace of its own, at the same address.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use rekindle_api::types::{ForkSandbox, Netns, ResumeSandbox, ResumeSnapshot, SandboxState, Tap, TapName};
use rekindle_testkit::skip::skipped;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::machine_console::{Console, have_qemu, linux};
use crate::peers::Peers;
use crate::support::Node;

const TIER: &str = "clones with a network";
/// The address of the host's side in every namespace.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 1);
/// The tap device of every machine, in its namespace.
const TAP: &str = "tap0";

/// A network namespace with a tap device, and a service that answers there; gone with this.
struct Namespace {
    name: String,
    port: u16,
}

impl Namespace {
    /// The one of this number; none where there can be none, which is said.
    fn new(number: usize) -> Option<Self> {
        let name = format!("{}{number}", prefix());
        let inside = |words: &str| ip(&format!("-n {name} {words}"));
        let made = ip(&format!("netns add {name}"))
            && inside(&format!("tuntap add dev {TAP} mode tap"))
            && inside(&format!("address add {HOST}/24 dev {TAP}"))
            && inside(&format!("link set {TAP} address 02:00:00:00:83:01 up"));
        let mut namespace = Self { name, port: 0 };
        if !made {
            skipped(TIER, "ip makes no network namespace with a tap");
            return None;
        }
        namespace.port = answer_in(&namespace.name, number);
        Some(namespace)
    }

    /// True if a process is in it.
    fn has(&self, pid: Option<u32>) -> bool {
        let of = |file: String| std::fs::metadata(file).expect("it is there").ino();
        let pid = pid.expect("it runs");
        of(format!("/proc/{pid}/ns/net")) == of(format!("/run/netns/{}", self.name))
    }

    fn send(&self, text: &str) -> String {
        format!("send {HOST} {} {text}", self.port)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns delete {}", self.name));
    }
}

/// The beginning of the names of this test's namespaces.
fn prefix() -> String {
    format!("rk{}-", std::process::id())
}

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).status().is_ok_and(|status| status.success())
}

/// Answers every datagram there with its own bytes and the number, until the test ends; the port.
fn answer_in(namespace: &str, number: usize) -> u16 {
    let file = Path::new("/run/netns").join(namespace);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let file =
            rustix::fs::open(&file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("it was made");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root enters it");
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a free port");
        tell.send(socket.local_addr().expect("it is bound").port()).expect("the test waits");
        let mut bytes = [0; 256];
        while let Ok((count, from)) = socket.recv_from(&mut bytes) {
            let answer = format!("{} in {number}", String::from_utf8_lossy(&bytes[..count]));
            // One that cannot be sent is sent again by the guest.
            socket.send_to(answer.as_bytes(), from).ok();
        }
    });
    told.recv().expect("it is bound")
}

#[test]
fn forks_of_a_machine_with_a_network_talk_each_in_a_namespace_of_its_own_at_once() {
    // Not a skip: a kernel without tap devices has none to give a machine.
    if !Path::new("/dev/net/tun").exists() || !have_qemu(TIER) {
        return;
    }
    let node = Node::start();
    let Some(mut wanted) = linux(&node, "vm", TIER) else { return };
    let Some(namespaces) = (0..3).map(Namespace::new).collect::<Option<Vec<_>>>() else { return };
    let machine = wanted.machine.as_mut().expect("it is one");
    machine.taps.push(Tap { device: TapName(TAP.to_owned()), mac: None });
    machine.netns = Some(Netns(namespaces[0].name.clone()));
    node.client.create_sandbox(None, &wanted).expect("a machine is made");
    let mut console = Console::of(&node.client, "vm");
    console.line("rekindle linux guest, ");
    console.ask("network 10.83.0.2", "network ok");
    assert_eq!(console.ask(&namespaces[0].send("before"), "heard "), "before in 0");

    let snapshots = || node.client.all_snapshots(&[]).expect("a list").len();
    let before = snapshots();
    let here = ForkSandbox { count: 2_u32.try_into().expect("two"), ..Default::default() };
    let refused = node.client.fork_sandbox("vm", None, &here).expect_err("one tap for three");
    assert!(refused.to_string().contains("--netns"), "{refused}");
    let absent = ForkSandbox { netns: Some(Netns(format!("{}{{index}}0", prefix()))), ..here.clone() };
    let refused = node.client.fork_sandbox("vm", None, &absent).expect_err("there are none");
    assert_eq!(refused.problem().map(|problem| problem.code.as_str()), Some("misfit"), "{refused}");
    assert!(refused.to_string().contains(&format!("{}10 cannot be opened", prefix())), "{refused}");
    assert_eq!(snapshots(), before, "nothing was paused for that");

    let apart = ForkSandbox {
        name: Some("clone".parse().expect("a name")),
        netns: Some(Netns(format!("{}{{index}}", prefix()))),
        ..here
    };
    node.client.fork_sandbox("vm", None, &apart).expect("each has a namespace");
    for (sandbox, namespace) in ["vm", "clone-1", "clone-2"].into_iter().zip(&namespaces) {
        let mut console = Console::from_now(&node.client, sandbox);
        let number = &namespace.name[prefix().len()..];
        assert_eq!(console.ask(&namespace.send(sandbox), "heard "), format!("{sandbox} in {number}"));
    }

    // A clone that is paused goes on in its namespace, and another one of its snapshot in another.
    node.pause("clone-2", "paused");
    node.client.remove_sandbox("clone-1").expect("it ends");
    let named = ResumeSnapshot {
        name: Some(format!("{}1", prefix()).parse().expect("a name")),
        netns: Some(Netns("{name}".to_owned())),
        ..Default::default()
    };
    let moved = node.client.resume_snapshot("paused", None, &named).expect("its namespace is free");
    let shown = moved[0].machine.as_ref().and_then(|machine| machine.netns.clone());
    assert_eq!(shown, Some(format!("/run/netns/{}1", prefix())));
    let back = node.client.resume_sandbox("clone-2", &ResumeSandbox::default()).expect("its own is free");
    assert_eq!(back.state, SandboxState::Running);
    for (sandbox, namespace) in
        [(moved[0].id.to_string(), &namespaces[1]), (back.id.to_string(), &namespaces[2])]
    {
        let mut console = Console::from_now(&node.client, &sandbox);
        let number = &namespace.name[prefix().len()..];
        assert_eq!(console.ask(&namespace.send("again"), "heard "), format!("again in {number}"));
    }
}

#[test]
fn machines_in_firecracker_run_each_in_the_namespace_that_their_name_stands_for() {
    // Not a skip: a kernel without tap devices has none to give a machine.
    if !Path::new("/dev/net/tun").exists() {
        return;
    }
    let Some(namespaces) = (5..7).map(Namespace::new).collect::<Option<Vec<_>>>() else { return };
    let peers = Peers::start();
    let mut wanted = peers.machine(&namespaces[0].name);
    let machine = wanted.machine.as_mut().expect("it is one");
    machine.taps.push(Tap { device: TapName(TAP.to_owned()), mac: None });
    machine.netns = Some(Netns("{name}".to_owned()));
    let made = peers.node.client.create_sandbox(None, &wanted).expect("a machine is made");
    assert!(namespaces[0].has(made.pid), "it was started there");
    let apart = ForkSandbox {
        name: Some(namespaces[1].name.parse().expect("a name")),
        netns: Some(Netns("/run/netns/{name}".to_owned())),
        ..Default::default()
    };
    let forks = peers.node.client.fork_sandbox(&namespaces[0].name, None, &apart).expect("it is forked");
    assert!(namespaces[1].has(forks[0].pid), "the fork is in its own");
    let original = peers.node.client.sandbox(&namespaces[0].name).expect("it is there");
    assert!(namespaces[0].has(original.pid), "the original is where it was");
}
