//! The mini-guest's machine: processor, memory and devices, run one exit at a time.

use std::io;

use rekindle_kernel::{Exit, GuestMemory, VirtualMachine};
use serde::{Deserialize, Serialize};

use super::boot;
use super::devices::Devices;
use super::registers::{Registers, begin_at};

/// A machine that is not running.
pub(super) struct Machine {
    machine: VirtualMachine,
    pub(super) devices: Devices,
}

/// Result of one run of the processor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It used a device and can go on.
    Asked,
    /// It finished a line of text.
    Said(String),
    /// It waits for input or time.
    Halted,
}

/// State of a machine besides its memory.
#[derive(Serialize, Deserialize)]
struct DeviceState {
    registers: Registers,
    devices: Devices,
}

impl Machine {
    /// A machine that is about to start `kernel`.
    pub(super) fn fresh(memory: GuestMemory, kernel: &[u8]) -> io::Result<Self> {
        let machine = VirtualMachine::new(memory)?;
        let entry = boot::load(machine.memory(), kernel);
        begin_at(&machine, entry.address, entry.knowledge)?;
        Ok(Self { machine, devices: Devices::new() })
    }

    /// A machine in the state that another one had.
    pub(super) fn restored(memory: GuestMemory, state: &[u8]) -> io::Result<Self> {
        let DeviceState { registers, devices } = serde_json::from_slice(state)?;
        let machine = VirtualMachine::new(memory)?;
        registers.give_to(&machine)?;
        Ok(Self { machine, devices })
    }

    /// Its state, between two instructions.
    pub(super) fn state(&mut self) -> io::Result<Vec<u8>> {
        self.machine.finish_instruction()?;
        let state = DeviceState { registers: Registers::of(&self.machine)?, devices: self.devices.clone() };
        Ok(serde_json::to_vec(&state)?)
    }

    /// Runs the processor until it needs something, and provides that.
    ///
    /// # Panics
    /// If it cannot go on, which this guest never causes.
    pub(super) fn turn(&mut self) -> Turn {
        let devices = &mut self.devices;
        match self.machine.run().expect("a machine of ours runs") {
            Exit::ReadPort(port, into) => into.fill_with(|| devices.read(port)),
            Exit::WritePort(port, from) => {
                for value in from {
                    if let Some(line) = devices.write(port, *value) {
                        return Turn::Said(line);
                    }
                }
            }
            // The local interrupt controller, which this machine lacks.
            Exit::ReadAddress(_, into) => into.fill(0),
            Exit::WriteAddress(..) => {}
            Exit::Halt => return Turn::Halted,
            Exit::Stuck(how) => unreachable!("the guest does nothing that a machine cannot: {how}"),
        }
        Turn::Asked
    }
}
