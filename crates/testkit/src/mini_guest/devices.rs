//! Devices of the mini-guest's machine: a serial line, and the mask of an interrupt controller without interrupts.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

const COM1: u16 = 0x3f8;
const COM1_LAST: u16 = COM1 + 7;
const INTERRUPT_MASK: u16 = 0x21;

/// The registers of a 16550, by their offset from its first port.
const DATA: u16 = 0;
const INTERRUPTS_WANTED: u16 = 1;
const INTERRUPT_CAUSE: u16 = 2;
const LINE_CONTROL: u16 = 3;
const LINE_STATUS: u16 = 5;

/// In the line control: selects the clock's divisor in the first two registers.
const DIVISOR: u8 = 0x80;
/// In the line status: there is input.
const INPUT_READY: u8 = 1;
const OUTPUT_EMPTY: u8 = 0x60;
/// In the cause of an interrupt: none.
const NO_INTERRUPT: u8 = 1;

/// The timer's bit in the controller's mask.
const TIMER: u8 = 1;

/// The state of the devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Devices {
    /// The serial line's registers, as written.
    registers: [u8; 8],
    /// The divisor, behind the first two registers.
    divisor: [u8; 2],
    /// Typed bytes that the guest has not read.
    typed: VecDeque<u8>,
    /// Output since the end of the last line.
    said: Vec<u8>,
    interrupt_mask: u8,
}

impl Devices {
    /// The devices after a reset.
    pub(super) fn new() -> Self {
        Self {
            registers: [0; 8],
            divisor: [0; 2],
            typed: VecDeque::new(),
            said: Vec::new(),
            interrupt_mask: 0xff,
        }
    }

    /// Value of a read of `port`.
    pub(super) fn read(&mut self, port: u16) -> u8 {
        match port {
            COM1..=COM1_LAST => self.read_line(port - COM1),
            INTERRUPT_MASK => self.interrupt_mask,
            _ => 0xff,
        }
    }

    /// A write to `port`; the line of text that it ended, if any.
    pub(super) fn write(&mut self, port: u16, value: u8) -> Option<String> {
        match port {
            COM1..=COM1_LAST => return self.write_line(port - COM1, value),
            INTERRUPT_MASK => self.interrupt_mask = value,
            _ => {}
        }
        None
    }

    /// Gives the guest text to read.
    pub(super) fn type_in(&mut self, text: &str) {
        self.typed.extend(text.bytes());
    }

    /// True if there are typed bytes that the guest has not read.
    pub(super) fn has_input(&self) -> bool {
        !self.typed.is_empty()
    }

    /// True if the guest has its timer enabled.
    pub(super) fn wants_timer(&self) -> bool {
        self.interrupt_mask & TIMER == 0
    }

    fn read_line(&mut self, register: u16) -> u8 {
        let at = usize::from(register);
        match register {
            DATA | INTERRUPTS_WANTED if self.divisor_is_shown() => self.divisor[at],
            DATA => self.typed.pop_front().unwrap_or_default(),
            INTERRUPT_CAUSE => NO_INTERRUPT,
            LINE_STATUS if self.typed.is_empty() => OUTPUT_EMPTY,
            LINE_STATUS => OUTPUT_EMPTY | INPUT_READY,
            _ => self.registers[at],
        }
    }

    fn write_line(&mut self, register: u16, value: u8) -> Option<String> {
        let at = usize::from(register);
        match register {
            DATA | INTERRUPTS_WANTED if self.divisor_is_shown() => self.divisor[at] = value,
            DATA if value == b'\n' => {
                let line = std::mem::take(&mut self.said);
                return Some(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            DATA => self.said.push(value),
            _ => self.registers[at] = value,
        }
        None
    }

    fn divisor_is_shown(&self) -> bool {
        self.registers[usize::from(LINE_CONTROL)] & DIVISOR != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divisor_is_no_text_and_text_comes_line_by_line() {
        let mut devices = Devices::new();
        assert_eq!(devices.write(COM1 + LINE_CONTROL, DIVISOR), None);
        assert_eq!(devices.write(COM1, b'x'), None);
        assert_eq!(devices.read(COM1), b'x');
        assert_eq!(devices.write(COM1 + LINE_CONTROL, 3), None);
        let said: Vec<_> = b"one\r\ntwo".iter().filter_map(|&byte| devices.write(COM1, byte)).collect();
        assert_eq!(said, ["one"]);
        assert_eq!(devices.write(COM1, b'\n'), Some("two".to_owned()));
    }

    #[test]
    fn typed_text_is_read_once_and_the_status_says_when_there_is_any() {
        let mut devices = Devices::new();
        assert_eq!(devices.read(COM1 + LINE_STATUS), OUTPUT_EMPTY);
        devices.type_in("a");
        assert_eq!(devices.read(COM1 + LINE_STATUS), OUTPUT_EMPTY | INPUT_READY);
        assert_eq!(devices.read(COM1), b'a');
        assert_eq!(devices.read(COM1 + LINE_STATUS), OUTPUT_EMPTY);
    }
}
