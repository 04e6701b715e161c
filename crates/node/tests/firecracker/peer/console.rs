//! The guest's serial console, which is read and written as Firecracker does it.

use std::io::{BufRead as _, IsTerminal as _};
use std::sync::Arc;
use std::thread;

use rustix::fs::FileType;

use super::vm::Peer;

/// Plays the guest at its console until the process ends. Standard input is read only if it is a pipe or a terminal.
pub(super) fn begin(peer: &Arc<Peer>) {
    rustix::io::ioctl_fionbio(std::io::stdout(), true).expect("standard output can be told");
    let mode = rustix::fs::fstat(std::io::stdin()).expect("there is a standard input").st_mode;
    if FileType::from_raw_mode(mode) != FileType::Fifo && !std::io::stdin().is_terminal() {
        return;
    }
    let peer = Arc::clone(peer);
    // It ends with the process, as everything of a VMM does.
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            print(&format!("guest: {}\n", peer.guest_runs(&line)));
        }
    });
}

/// Prints byte by byte, as a serial port does; what does not fit is gone.
pub(super) fn print(text: &str) {
    for byte in text.as_bytes() {
        rustix::io::write(std::io::stdout(), &[*byte]).ok();
    }
}
