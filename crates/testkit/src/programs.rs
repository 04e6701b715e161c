//! Files that are run as programs as soon as they are written.
//!
//! They are written by a child process. A descriptor for writing in this process would be inherited by a child that
//! another thread starts at that moment, and until that child's `exec` the file is busy: it cannot be run.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// Writes an executable file.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    let write = r#"cat > "$1" && chmod 755 "$1""#;
    let mut child =
        Command::new("/bin/sh").args(["-c", write, "sh"]).arg(path).stdin(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(content.as_ref())?;
    drop(input);
    succeeded(child.wait()?)
}

/// Copies an executable file.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    succeeded(Command::new("cp").arg("--").arg(from).arg(to).status()?)
}

fn succeeded(status: ExitStatus) -> io::Result<()> {
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("writing a program: {status}"))) }
}
