//! The state of a processor in protected mode, to be copied from one machine to another.

use std::io;

use kvm_bindings::{
    kvm_debugregs, kvm_fpu, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use rekindle_kernel::VirtualMachine;
use serde::{Deserialize, Serialize};

/// The bit of CR0 that enables protected mode.
const PROTECTED: u64 = 1;

/// All state of a processor that a guest without drivers can change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Registers {
    general: kvm_regs,
    segments: kvm_sregs,
    floating_point: FloatingPoint,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    running: kvm_mp_state,
}

/// The one structure that the bindings cannot serialize.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct FloatingPoint {
    registers: [[u8; 16]; 8],
    vectors: [[u8; 16]; 16],
    control: u16,
    status: u16,
    tags: u8,
    last: (u16, u64, u64),
    vector_control: u32,
}

impl Registers {
    /// The state of `machine`'s processor, which is between two instructions.
    pub(super) fn of(machine: &VirtualMachine) -> io::Result<Self> {
        let processor = machine.processor();
        let fpu = processor.get_fpu()?;
        Ok(Self {
            general: processor.get_regs()?,
            segments: processor.get_sregs()?,
            floating_point: FloatingPoint {
                registers: fpu.fpr,
                vectors: fpu.xmm,
                control: fpu.fcw,
                status: fpu.fsw,
                tags: fpu.ftwx,
                last: (fpu.last_opcode, fpu.last_ip, fpu.last_dp),
                vector_control: fpu.mxcsr,
            },
            extended_control: processor.get_xcrs()?,
            debug: processor.get_debug_regs()?,
            events: processor.get_vcpu_events()?,
            running: processor.get_mp_state()?,
        })
    }

    /// Sets the state of `machine`'s processor.
    pub(super) fn give_to(&self, machine: &VirtualMachine) -> io::Result<()> {
        let processor = machine.processor();
        let FloatingPoint { registers, vectors, control, status, tags, last, vector_control } =
            self.floating_point;
        let fpu = kvm_fpu {
            fpr: registers,
            fcw: control,
            fsw: status,
            ftwx: tags,
            last_opcode: last.0,
            last_ip: last.1,
            last_dp: last.2,
            xmm: vectors,
            mxcsr: vector_control,
            ..kvm_fpu::default()
        };
        processor.set_mp_state(self.running)?;
        processor.set_sregs(&self.segments)?;
        processor.set_fpu(&fpu)?;
        processor.set_xcrs(&self.extended_control)?;
        processor.set_debug_regs(&self.debug)?;
        processor.set_vcpu_events(&self.events)?;
        processor.set_regs(&self.general)?;
        Ok(())
    }
}

/// Makes `machine`'s processor begin at `entry`, by the rules of PVH's direct entry: 32 bits, flat segments, no paging,
/// and the address of the loader's tables in EBX.
pub(super) fn begin_at(machine: &VirtualMachine, entry: u64, knowledge: u64) -> io::Result<()> {
    let processor = machine.processor();
    let mut segments = processor.get_sregs()?;
    let data = segment(2, 3);
    segments.cs = segment(1, 0xb);
    segments.ds = data;
    segments.es = data;
    segments.fs = data;
    segments.gs = data;
    segments.ss = data;
    segments.cr0 |= PROTECTED;
    processor.set_sregs(&segments)?;
    let registers = kvm_regs { rip: entry, rbx: knowledge, rflags: 2, ..kvm_regs::default() };
    Ok(processor.set_regs(&registers)?)
}

/// A segment of all 4 GiB, for 32-bit code or data of the highest privilege.
fn segment(index: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: index * 8,
        type_: kind,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}
