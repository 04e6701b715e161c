//! Machines of KVM's, as far as their memory and their exits go.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails; clippy knows tests, but not what they call"
)]

mod support;

use rekindle_kernel::{Backing, Exit, GuestMemory, PAGE_BYTES, PageKind, VirtualMachine};
use support::skipped;

/// A machine whose processor begins with `program`, in the mode of a processor after its reset; or none, with a line.
fn machine(test: &str, program: &[u8]) -> Option<VirtualMachine> {
    let memory = GuestMemory::map(Backing::Private(PageKind::Small), 16 * PAGE_BYTES, 0).unwrap();
    memory.write(0x1000, program);
    let machine = match VirtualMachine::new(memory) {
        Ok(machine) => machine,
        Err(error) => {
            skipped(test, error);
            return None;
        }
    };
    let mut segments = machine.processor().get_sregs().unwrap();
    segments.cs.base = 0;
    segments.cs.selector = 0;
    machine.processor().set_sregs(&segments).unwrap();
    let mut registers = machine.processor().get_regs().unwrap();
    registers.rip = 0x1000;
    registers.rflags = 2;
    machine.processor().set_regs(&registers).unwrap();
    Some(machine)
}

#[test]
fn a_machine_reads_and_writes_its_memory_and_says_what_it_needs() {
    // in al, 0x10; mov [0x2000], al; out 0x11, al; hlt
    let program = [0xe4, 0x10, 0xa2, 0x00, 0x20, 0xe6, 0x11, 0xf4];
    let Some(mut machine) = machine("machines", &program) else { return };
    let exit = machine.run().unwrap();
    let Exit::ReadPort(0x10, into) = exit else { unreachable!("{exit:?}") };
    into.fill(42);
    let exit = machine.run().unwrap();
    assert!(matches!(exit, Exit::WritePort(0x11, [42])), "{exit:?}");
    let exit = machine.run().unwrap();
    assert!(matches!(exit, Exit::Halt), "{exit:?}");
    assert_eq!(machine.memory().touch(0x2000), 42);
}

#[test]
fn an_instruction_that_waits_for_a_port_is_finished_without_running_the_next() {
    let program = [0xe4, 0x10, 0xa2, 0x00, 0x20, 0xf4];
    let Some(mut machine) = machine("unfinished instructions", &program) else { return };
    let exit = machine.run().unwrap();
    let Exit::ReadPort(0x10, into) = exit else { unreachable!("{exit:?}") };
    into.fill(7);
    machine.finish_instruction().unwrap();
    let registers = machine.processor().get_regs().unwrap();
    assert_eq!((registers.rip, registers.rax & 0xff), (0x1002, 7));
    assert_eq!(machine.memory().touch(0x2000), 0);
    machine.finish_instruction().unwrap();
    assert_eq!(machine.processor().get_regs().unwrap().rip, 0x1002, "twice is once");
}

#[test]
fn a_program_that_leaves_its_memory_gets_nothing_of_ours() {
    // An address past the memory, read and written: mov ax, 0xf000; mov ds, ax; mov al, [0xfff0]; mov [0xfff1], al; hlt
    let program = [0xb8, 0x00, 0xf0, 0x8e, 0xd8, 0xa0, 0xf0, 0xff, 0xa2, 0xf1, 0xff, 0xf4];
    let Some(mut machine) = machine("addresses without memory", &program) else { return };
    let exit = machine.run().unwrap();
    let Exit::ReadAddress(0xffff0, into) = exit else { unreachable!("{exit:?}") };
    into.fill(9);
    let exit = machine.run().unwrap();
    assert!(matches!(exit, Exit::WriteAddress(0xffff1, [9])), "{exit:?}");
    assert!(matches!(machine.run().unwrap(), Exit::Halt));
}
