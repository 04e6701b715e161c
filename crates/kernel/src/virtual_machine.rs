//! A KVM machine with one processor; its memory stays mapped as long as the machine can touch it.

use std::io;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::guest_memory::GuestMemory;
use crate::number::word;

/// Address of three pages that KVM needs for itself on some processors: far above the memory, below the firmware.
const KVM_PAGES: usize = 0xfffb_d000;

/// The machine: its memory is at address 0, and it has no devices.
pub struct VirtualMachine {
    // Fields are dropped in this order. While either descriptor of KVM's is open, KVM may read and write the addresses
    // of the memory, so both go before it; neither can be taken out, nor another processor be made.
    processor: VcpuFd,
    _machine: VmFd,
    memory: GuestMemory,
}

/// Reason that the processor stopped running, with the value it waits for.
#[derive(Debug)]
pub enum Exit<'a> {
    /// It reads from a port; put the value into the bytes before it runs again.
    ReadPort(u16, &'a mut [u8]),
    /// It wrote to a port.
    WritePort(u16, &'a [u8]),
    /// It reads from an address without memory; put the value into the bytes before it runs again.
    ReadAddress(u64, &'a mut [u8]),
    /// It wrote to an address without memory.
    WriteAddress(u64, &'a [u8]),
    /// It halted; running it again ends the halt.
    Halt,
    /// Anything else, in KVM's words; it cannot go on.
    Stuck(String),
}

impl VirtualMachine {
    /// A machine with `memory`, its processor as after a reset.
    pub fn new(memory: GuestMemory) -> io::Result<Self> {
        let machine = Kvm::new()?.create_vm()?;
        machine.set_tss_address(KVM_PAGES)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: word(memory.bytes()),
            userspace_addr: memory.range().start,
        };
        // SAFETY: the addresses are this memory's, of which no references are given out, and they stay mapped until the
        // machine and its processor are closed: the struct owns all three and drops the memory last.
        unsafe { machine.set_user_memory_region(region) }?;
        let processor = machine.create_vcpu(0)?;
        Ok(Self { processor, _machine: machine, memory })
    }

    /// Its memory, to be read and written as a device would.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Its processor's registers and the like.
    pub fn processor(&self) -> &VcpuFd {
        &self.processor
    }

    /// Runs the processor until it needs something. A signal to the calling thread is an error of kind `Interrupted`;
    /// the processor can run again after it.
    pub fn run(&mut self) -> io::Result<Exit<'_>> {
        let exit = self.processor.run()?;
        if let VcpuExit::IoIn(port, into) = exit {
            Ok(Exit::ReadPort(port, into))
        } else if let VcpuExit::IoOut(port, from) = exit {
            Ok(Exit::WritePort(port, from))
        } else if let VcpuExit::MmioRead(address, into) = exit {
            Ok(Exit::ReadAddress(address, into))
        } else if let VcpuExit::MmioWrite(address, from) = exit {
            Ok(Exit::WriteAddress(address, from))
        } else if let VcpuExit::Hlt = exit {
            Ok(Exit::Halt)
        } else {
            Ok(Exit::Stuck(format!("{exit:?}")))
        }
    }

    /// Finishes the instruction of the last exit without running another: the registers are then the whole state of the
    /// processor.
    pub fn finish_instruction(&mut self) -> io::Result<()> {
        self.processor.set_kvm_immediate_exit(1);
        let outcome = self.run().map(drop);
        self.processor.set_kvm_immediate_exit(0);
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other,
        }
    }
}
