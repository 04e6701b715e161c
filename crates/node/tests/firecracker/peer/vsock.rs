//! A peer's vsock device: its socket in the process's directory, and a guest that listens at one port and gives back all
//! bytes.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use super::configured::VsockDevice;

/// The port at which its guest listens.
const PORT: &str = "52";

/// Listens where the device is told to, like a device that is started and one that is loaded.
pub(super) fn listen(device: &VsockDevice) -> Result<(), String> {
    if device.guest_cid < 3 {
        return Err(format!("Invalid guest CID {}", device.guest_cid));
    }
    let listener = UnixListener::bind(&device.uds_path)
        .map_err(|error| format!("Cannot create backend for vsock device: {error}"))?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("somebody connects");
            // An error says that the other side is gone.
            thread::spawn(move || serve(&stream).ok());
        }
    });
    Ok(())
}

fn serve(mut stream: &UnixStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    // At a port where nobody listens the connection just ends.
    if line.strip_prefix("CONNECT ").map(str::trim_end) == Some(PORT) {
        stream.write_all(b"OK 1073741824\n")?;
        io::copy(&mut reader, &mut stream)?;
    }
    Ok(())
}
