//! Other machines than the usual one: with PCI, with more CPUs, with the host's CPU.

use std::fs::File;

use rekindle_vmm::qemu::{Accelerator, Machine, QemuOptions};

use super::support::Host;

/// Boots, pauses and resumes twice; the guest judges its memory each time.
fn lives_through_pauses(host: &Host, options: QemuOptions) {
    let mut running = host.boot(options);
    running.console.ask("fill 1");
    for seed in 2..4 {
        let ticks = running.tick();
        let snapshot = running.pause(host);
        running = host.resume(&snapshot);
        assert_eq!(running.tick(), ticks + 1);
        running.console.ask(&format!("dirty {seed} 10"));
        running.verify();
    }
}

#[test]
fn a_q35_is_paused_and_resumed() {
    let Some(host) = Host::start() else { return };
    let options = QemuOptions { machine: Machine::Q35, ..host.tiny(48) };
    lives_through_pauses(&host, options);
}

#[test]
fn a_machine_with_two_cpus_is_paused_and_resumed() {
    let Some(host) = Host::start() else { return };
    lives_through_pauses(&host, QemuOptions { cpus: 2, ..host.tiny(32) });
}

#[test]
fn machines_on_the_hosts_cpu_are_paused_and_resumed() {
    let Some(host) = Host::start() else { return };
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("this host has no KVM: {error}");
        return;
    }
    for machine in [Machine::Microvm, Machine::Q35] {
        // Some hosts that are virtual themselves say of this feature that they have it, and then refuse it.
        let cpu_model = "host,-arch-capabilities".to_owned();
        let options = QemuOptions { machine, accelerator: Accelerator::Kvm, cpu_model, ..host.tiny(8) };
        lives_through_pauses(&host, options);
    }
}

#[test]
fn every_resume_has_a_generation_id_of_its_own_where_the_machine_has_one() {
    let Some(host) = Host::start() else { return };
    let mut first = host.boot(QemuOptions { machine: Machine::Q35, ..host.tiny(16) });
    let mut seen = vec![first.guest.generation_id().expect("it answers").expect("q35 has one")];
    let snapshot = first.pause(&host);
    for _ in 0..2 {
        let mut fork = host.resume(&snapshot);
        seen.push(fork.guest.generation_id().expect("it answers").expect("q35 has one"));
    }
    let different: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(different.len(), 3, "{seen:?}");
    let mut other = host.boot(host.tiny(16));
    assert_eq!(other.guest.generation_id().expect("it answers"), None);
}
