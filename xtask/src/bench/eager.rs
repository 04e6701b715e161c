//! QEMU by itself, without rekindle: a machine saved whole into a file, and restored whole from it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rekindle_guest::machine::ConsoleLines;
use rekindle_testkit::black_box::ask_until;
use serde_json::{Value, json};

/// Longest time for anything that happens at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// File of a saved machine, and its command line.
pub(crate) struct Saved {
    directory: tempfile::TempDir,
    kernel: PathBuf,
    memory_bytes: u64,
}

/// A running QEMU; killed on drop.
struct Plain {
    process: Child,
    control: UnixStream,
    serial: UnixStream,
    lines: ConsoleLines,
}

impl Saved {
    /// Starts a machine, has its guest fill its memory, and saves all of it.
    pub(crate) fn new(kernel: &Path, memory_bytes: u64) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let saved = Self { directory, kernel: kernel.to_owned(), memory_bytes };
        let mut machine = saved.start(&[])?;
        machine.execute("cont", &Value::Null)?;
        machine.line("rekindle tiny guest, ")?;
        machine.ask("fill 1", "filled ")?;
        machine.execute("stop", &Value::Null)?;
        let uri = format!("exec:cat > {}", saved.state().display());
        machine.execute("migrate", &json!({ "uri": uri }))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = machine.execute("query-migrate", &Value::Null)?;
            match status["status"].as_str() {
                Some("completed") => return Ok(saved),
                Some("failed") => bail!("QEMU could not save the machine: {status}"),
                Some(_) | None if Instant::now() > deadline => {
                    bail!("QEMU did not save the machine: {status}")
                }
                Some(_) | None => std::thread::park_timeout(Duration::from_millis(2)),
            }
        }
    }

    /// Seconds from the start of a QEMU that restores the machine to its guest's next tick.
    pub(crate) fn first_tick(&self) -> anyhow::Result<f64> {
        let asked = Instant::now();
        let incoming = format!("exec:cat {}", self.state().display());
        let mut machine = self.start(&["-incoming", &incoming])?;
        let deadline = asked + PATIENCE;
        while machine.execute("query-status", &Value::Null)?["status"] == "inmigrate" {
            anyhow::ensure!(Instant::now() < deadline, "QEMU did not restore the machine");
            std::thread::yield_now();
        }
        machine.execute("cont", &Value::Null)?;
        machine.ask("tick", "tick ")?;
        Ok(asked.elapsed().as_secs_f64())
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn start(&self, more: &[&str]) -> anyhow::Result<Plain> {
        let socket = |name: &str| self.directory.path().join(name);
        let (control, serial) = (socket("control"), socket("serial"));
        let listening = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        let (control_words, serial_words) = (listening(&control), listening(&serial));
        let memory = format!("{}B", self.memory_bytes);
        let kernel = self.kernel.display().to_string();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-cpu", "max"]);
        command.args(["-machine", "microvm,rtc=on,isa-serial=on", "-m", &memory, "-kernel", &kernel]);
        // Stopped at first: a guest's output before a connection is lost.
        command.args(["-S", "-qmp", &control_words, "-serial", &serial_words]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(socket("log"))?);
        let process = command.spawn().context("starting qemu-system-x86_64")?;
        let connect = |path: &Path| {
            let connected = ask_until(PATIENCE, || UnixStream::connect(path).ok());
            let stream = connected.with_context(|| format!("QEMU does not listen at {}", path.display()))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            anyhow::Ok(stream)
        };
        let mut machine = Plain {
            process,
            control: connect(&control)?,
            serial: connect(&serial)?,
            lines: ConsoleLines::default(),
        };
        machine.answer("QMP")?;
        machine.execute("qmp_capabilities", &Value::Null)?;
        Ok(machine)
    }
}

impl Plain {
    fn execute(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments.clone();
        }
        writeln!(self.control, "{request}")?;
        self.answer("return")
    }

    /// The next line that has `field`; events are passed over.
    fn answer(&mut self, field: &str) -> anyhow::Result<Value> {
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\n") {
                let mut byte = [0];
                anyhow::ensure!(self.control.read(&mut byte)? == 1, "QEMU ended");
                line.extend(byte);
            }
            let value: Value = serde_json::from_slice(&line)?;
            if let Some(error) = value.get("error") {
                bail!("QEMU refuses: {error}");
            }
            if let Some(answer) = value.get(field) {
                return Ok(answer.clone());
            }
        }
    }

    fn ask(&mut self, line: &str, start: &str) -> anyhow::Result<String> {
        writeln!(self.serial, "{line}")?;
        self.line(start)
    }

    fn line(&mut self, start: &str) -> anyhow::Result<String> {
        loop {
            if let Some(rest) = self.lines.answer(start)? {
                return Ok(rest);
            }
            let mut bytes = [0; 4096];
            let count = self.serial.read(&mut bytes)?;
            anyhow::ensure!(count > 0, "QEMU ended");
            self.lines.add(&bytes[..count]);
        }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
