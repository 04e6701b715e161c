//! Channels to the agents of virtual machines: pauses, forks, checkpoints, and a daemon that is killed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rekindle_api::client::Channel;
use rekindle_api::types::{Accelerator, Board, ConnectSandbox, CreateSandbox, ForkSandbox, SnapshotState};

use crate::machine_console::{Console, have_qemu, linux, tiny};
use crate::peers::Peers;
use crate::support::Node;

const TIER: &str = "channels of machines in QEMU";

/// Checkpoints of a guest to which bytes come all the time.
const CHECKPOINTS: u32 = 4;

/// Long enough for anything that happens at all.
const LIMIT: Duration = Duration::from_secs(120);

/// A node with a Linux guest whose channel is open; none where that cannot be had, which is said.
fn node_with_channel() -> Option<Node> {
    if !have_qemu(TIER) {
        return None;
    }
    let node = Node::start();
    let wanted = with_channel(linux(&node, "vm", TIER)?);
    let made = node.client.create_sandbox(None, &wanted).expect("a machine is made");
    assert!(made.machine.is_some_and(|machine| machine.channel));
    let mut console = Console::of(&node.client, "vm");
    console.line("rekindle linux guest, ");
    console.ask("fill 1 20", "filled ");
    console.ask("channel", "channel open");
    Some(node)
}

fn with_channel(mut wanted: CreateSandbox) -> CreateSandbox {
    wanted.machine.as_mut().expect("it is a machine").channel = true;
    wanted
}

fn connect(node: &Node, sandbox: &str) -> Channel {
    let channel = node.client.connect_sandbox(sandbox, &ConnectSandbox::default()).expect("it is free");
    channel.stream().set_read_timeout(Some(LIMIT)).expect("a limit can be set");
    channel
}

/// The guest gives back a line.
fn assert_echoes(channel: &Channel, line: &str) {
    writeln!(channel.stream(), "{line}").expect("it takes it");
    let mut back = String::new();
    BufReader::new(channel.stream()).read_line(&mut back).expect("it comes back");
    assert_eq!(back.trim_end(), line);
}

/// Nothing more comes, and the connection has ended.
fn assert_ended(channel: &Channel) {
    let mut rest = Vec::new();
    (&mut channel.stream()).read_to_end(&mut rest).expect("it ends");
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn an_agent_echoes_before_a_pause_after_a_resume_and_in_each_fork() {
    let Some(node) = node_with_channel() else { return };
    let before = connect(&node, "vm");
    assert_echoes(&before, "before the pause");
    node.pause("vm", "paused");
    assert_ended(&before);
    let refused = node.client.connect_sandbox("vm", &ConnectSandbox::default()).expect_err("it is paused");
    assert!(refused.to_string().contains("only a running one can be connected to"), "{refused}");

    node.resume("vm");
    assert_echoes(&connect(&node, "vm"), "after the resume");
    let two = ForkSandbox {
        name: Some("fork".parse().expect("a name")),
        count: 2_u32.try_into().expect("two"),
        ..Default::default()
    };
    node.client.fork_sandbox("vm", None, &two).expect("it is forked");
    let channels = ["vm", "fork-1", "fork-2"].map(|sandbox| (sandbox, connect(&node, sandbox)));
    for (sandbox, channel) in &channels {
        assert_echoes(channel, &format!("only in {sandbox}"));
    }
    for (sandbox, _) in &channels {
        Console::from_now(&node.client, sandbox).assert_verified();
    }
    node.wait("paused", SnapshotState::Published);
}

/// Sends lines at this pace and reads them back. The count of lines.
fn carry(channel: &Channel, pace: Duration, is_over: &AtomicBool) -> u64 {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in (0_u64..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                writeln!(channel.stream(), "{number}").expect("it takes it");
                std::thread::park_timeout(pace);
            }
            channel.stream().write_all(b"end\n").expect("it takes it");
        });
        let mut lines = BufReader::new(channel.stream()).lines().map(|line| line.expect("it comes back"));
        let mut count = 0;
        loop {
            match lines.next().expect("it goes on").as_str() {
                "end" => return count,
                line => assert_eq!(line, count.to_string()),
            }
            count += 1;
        }
    })
}

#[test]
fn a_connection_goes_on_over_a_checkpoint_with_every_byte_and_each_snapshot_can_be_resumed() {
    let Some(node) = node_with_channel() else { return };
    let channel = connect(&node, "vm");
    let mut taken = 0;
    // So slowly that the guest has room for the next line at every instant, and so fast that it has none at most.
    for pace in [Duration::from_millis(5), Duration::ZERO] {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let carrying = scope.spawn(|| carry(&channel, pace, &is_over));
            for _ in 0..CHECKPOINTS {
                node.checkpoint("vm", &format!("at-{taken}"));
                taken += 1;
            }
            is_over.store(true, Ordering::Relaxed);
            assert!(carrying.join().expect("every line is right") > 0);
        });
    }
    drop(channel);
    for number in 0..taken {
        let (snapshot, clone) = (format!("at-{number}"), format!("of-{number}"));
        node.resumed(&snapshot, &clone);
        Console::from_now(&node.client, &clone).assert_verified();
        node.client.remove_sandbox(&clone).expect("it is removed");
    }
    node.pause("vm", "last");
    node.resume("vm");
    Console::from_now(&node.client, "vm").assert_verified();
    assert_echoes(&connect(&node, "vm"), "at the end");
}

#[test]
fn a_killed_daemon_takes_no_channel_from_its_guest_and_a_second_connection_is_refused_or_takes_over() {
    let Some(mut node) = node_with_channel() else { return };
    let first = connect(&node, "vm");
    assert_echoes(&first, "to the first daemon");
    node.crash();
    let second = connect(&node, "vm");
    assert_echoes(&second, "to the second daemon");

    let refused = node.client.connect_sandbox("vm", &ConnectSandbox::default()).expect_err("it is taken");
    assert!(refused.to_string().contains("--take-over"), "{refused}");
    let taking = ConnectSandbox { take_over: Some(true), ..Default::default() };
    let third = node.client.connect_sandbox("vm", &taking).expect("it takes over");
    third.stream().set_read_timeout(Some(LIMIT)).expect("a limit can be set");
    assert_ended(&second);
    assert_echoes(&third, "to the third client");
    third.stream().shutdown(Shutdown::Both).expect("it is ours");
    node.eventually("the channel is free", || {
        node.client.connect_sandbox("vm", &ConnectSandbox::default()).is_ok()
    });

    let mut connecting = node.place.command(["connect", "vm", "--take-over", "--until", "by the command"]);
    let mut connecting = connecting.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut input = connecting.stdin.take().expect("it is piped");
    writeln!(input, "sent by the command").expect("it reads");
    drop(input);
    let said = connecting.wait_with_output().expect("it ends");
    assert!(said.status.success() && said.stdout == b"sent by the command\n", "{said:?}");
    node.client.stop_sandbox("vm").expect("it ends");
}

#[test]
fn a_guest_that_stands_in_a_write_nobody_reads_is_paused_there_and_goes_on_with_it_after_a_resume() {
    let Some(node) = node_with_channel() else { return };
    let counted = Console::from_now(&node.client, "vm").tick();
    let channel = connect(&node, "vm");
    channel.stream().set_nonblocking(true).expect("it can be");
    // Nothing of the echo is read, so the guest comes to stand in a write, once all that is between is full.
    let mut tries_in_vain = 0;
    while tries_in_vain < 200 {
        tries_in_vain += 1;
        if channel.stream().write(&[b'x'; 4096]).is_ok_and(|count| count > 0) {
            tries_in_vain = 0;
        } else {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
    drop(channel);
    node.pause("vm", "paused");
    node.resume("vm");
    let channel = connect(&node, "vm");
    std::thread::scope(|scope| {
        let read = scope.spawn(|| {
            let mut read = Vec::new();
            (&mut channel.stream()).read_to_end(&mut read).expect("it ends");
            read
        });
        let mut console = Console::from_now(&node.client, "vm");
        assert_eq!(console.tick(), counted + 1, "it goes on once it is read");
        console.assert_verified();
        channel.stream().shutdown(Shutdown::Both).expect("it is ours");
        let read = read.join().expect("it is read");
        assert!(!read.is_empty() && read.iter().all(|byte| *byte == b'x'));
    });
}

#[test]
fn a_machine_without_a_channel_and_a_process_guest_say_so() {
    let node = Node::start();
    node.filled("process", 1);
    let refused =
        node.client.connect_sandbox("process", &ConnectSandbox::default()).expect_err("it has none");
    assert!(refused.to_string().contains("has no channel"), "{refused}");
    if !have_qemu(TIER) {
        return;
    }
    let wanted = tiny(&node, "vm", Board::Q35, Accelerator::Tcg);
    node.client.create_sandbox(None, &wanted).expect("a machine is made");
    let refused = node.client.connect_sandbox("vm", &ConnectSandbox::default()).expect_err("it has none");
    assert!(refused.to_string().contains("run --channel"), "{refused}");
}

#[test]
fn a_guest_without_an_agent_is_paused_with_bytes_that_wait_for_it() {
    if !have_qemu(TIER) {
        return;
    }
    let node = Node::start();
    let wanted = with_channel(tiny(&node, "vm", Board::Q35, Accelerator::Tcg));
    node.client.create_sandbox(None, &wanted).expect("a machine is made");
    let mut console = Console::of(&node.client, "vm");
    console.line("rekindle tiny guest, ");
    console.ask("fill 1", "filled ");
    for number in 0..2 {
        let channel = connect(&node, "vm");
        writeln!(channel.stream(), "nobody reads this").expect("it fits");
        let counted = console.tick();
        node.pause("vm", &format!("paused-{number}"));
        node.resume("vm");
        console = Console::from_now(&node.client, "vm");
        assert_eq!(console.tick(), counted + 1);
        console.assert_verified();
    }
}

#[test]
fn an_agent_in_firecracker_is_reached_by_its_port_after_a_resume_in_each_clone_and_by_the_next_daemon() {
    const PORT: Option<u32> = Some(52);
    let mut peers = Peers::start();
    let wanted = with_channel(peers.machine("vm"));
    let made = peers.node.client.create_sandbox(None, &wanted).expect("a machine is made");
    assert!(made.machine.is_some_and(|machine| machine.channel));
    let connect = |peers: &Peers, sandbox: &str, port| {
        peers.node.client.connect_sandbox(sandbox, &ConnectSandbox { port, ..Default::default() })
    };
    let refused = connect(&peers, "vm", None).expect_err("a port is needed");
    assert!(refused.to_string().contains("rekindle connect NAME PORT"), "{refused}");
    let refused = connect(&peers, "vm", Some(53)).expect_err("nobody listens there");
    assert!(refused.to_string().contains("listens at port 53"), "{refused}");

    let both = [(); 2].map(|()| connect(&peers, "vm", PORT).expect("it listens"));
    both.iter().for_each(|channel| assert_echoes(channel, "at once"));
    peers.node.checkpoint("vm", "checkpoint");
    both.iter().for_each(assert_ended);
    assert_echoes(&connect(&peers, "vm", PORT).expect("it listens"), "after the checkpoint");
    peers.node.crash();
    assert_echoes(&connect(&peers, "vm", PORT).expect("it listens"), "to the next daemon");

    let before = connect(&peers, "vm", PORT).expect("it listens");
    peers.node.pause("vm", "paused");
    assert_ended(&before);
    peers.node.resume("vm");
    peers.node.resumed("paused", "clone");
    for sandbox in ["vm", "clone"] {
        assert_echoes(&connect(&peers, sandbox, PORT).expect("it listens"), sandbox);
    }
}
