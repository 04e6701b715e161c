//! Checks a request beyond the types of its fields; the daemon gets only requests that pass.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rekindle_engine::limits as engine_limits;
use serde::de::DeserializeOwned;

use super::limits;
use super::problem::{Code, Problem};
use super::quoted::quoted;
use super::types::{
    CaptureMemory, CaptureSource, CheckpointSandbox, Collect, ConnectSandbox, ConsoleInput, ConsoleQuery,
    CreateSandbox, DrainNode, EventsQuery, ForkSandbox, Labels, ListQuery, Machine, MemoryRegion,
    MoveSandbox, Netns, OpenFaultSocket, PauseSandbox, PeriodicCheckpoints, PlacementQuery, ResumeSandbox,
    ResumeSnapshot, SnapshotState, Tap, TapName, VmmKind, WaitQuery, is_name, name_rule,
};

/// Beginning of the names of labels that rekindle gives itself.
const OWN_LABELS: &str = "rekindle/";

/// Something a request says.
pub(crate) trait Checked: DeserializeOwned {
    /// Bytes of a body that says it.
    const BYTES_MAX: usize = limits::BODY_BYTES_MAX;

    /// Refuses values that cannot be.
    fn check(&self) -> Result<(), Problem>;
}

impl Checked for CreateSandbox {
    fn check(&self) -> Result<(), Problem> {
        check_labels(&self.labels)?;
        check_checkpoints(self.checkpoints)?;
        let unit = self.backing.page_bytes();
        let bytes = self.memory_bytes;
        must(bytes > 0 && bytes.is_multiple_of(unit) && bytes <= limits::MEMORY_BYTES_MAX, || {
            let most = limits::MEMORY_BYTES_MAX;
            format!(
                "`memory_bytes` is {bytes}: it must be a multiple of {unit}, at least {unit} and at most {most}"
            )
        })?;
        match (&self.machine, self.vmm) {
            (None, VmmKind::Process) => Ok(()),
            (Some(machine), VmmKind::Qemu | VmmKind::Firecracker) => check_machine(machine),
            (Some(_), VmmKind::Process) => refuse("`machine` is for virtual machines: say `vmm` too"),
            (None, VmmKind::Qemu | VmmKind::Firecracker) => {
                refuse("`machine` is missing: a virtual machine needs a kernel")
            }
        }
    }
}

impl Checked for ConnectSandbox {
    fn check(&self) -> Result<(), Problem> {
        Ok(())
    }
}

impl Checked for PauseSandbox {
    fn check(&self) -> Result<(), Problem> {
        check_labels(&self.labels)
    }
}

impl Checked for CheckpointSandbox {
    fn check(&self) -> Result<(), Problem> {
        check_checkpoints(self.checkpoints)?;
        check_labels(&self.labels)
    }
}

impl Checked for Collect {
    fn check(&self) -> Result<(), Problem> {
        let probation = Duration::from_millis(self.probation_ms.unwrap_or_default());
        must(probation <= engine_limits::PROBATION_MAX, || "`probation_ms` is more than 12 hours".to_owned())
    }
}

impl Checked for DrainNode {
    fn check(&self) -> Result<(), Problem> {
        must(self.to.len() <= limits::DRAIN_NODES_MAX, || {
            format!("`to` has {} nodes: at most {} are taken", self.to.len(), limits::DRAIN_NODES_MAX)
        })?;
        self.to.iter().try_for_each(|node| check_node("to", node))
    }
}

impl Checked for PlacementQuery {
    fn check(&self) -> Result<(), Problem> {
        must(self.snapshots.len() <= limits::PLACEMENT_SNAPSHOTS_MAX, || {
            let most = limits::PLACEMENT_SNAPSHOTS_MAX;
            format!("`snapshot` is given {} times: at most {most} are taken", self.snapshots.len())
        })
    }
}

impl Checked for ResumeSandbox {
    fn check(&self) -> Result<(), Problem> {
        check_checkpoints(self.checkpoints)?;
        check_network(self.taps.as_deref(), self.netns.as_ref())
    }
}

impl Checked for ResumeSnapshot {
    fn check(&self) -> Result<(), Problem> {
        check_labels(&self.labels)?;
        check_checkpoints(self.checkpoints)?;
        self.from.as_deref().map_or(Ok(()), |from| check_node("from", from))?;
        check_network(self.taps.as_deref(), self.netns.as_ref())
    }
}

impl Checked for MoveSandbox {
    fn check(&self) -> Result<(), Problem> {
        check_node("to", &self.to)
    }
}

impl Checked for ForkSandbox {
    fn check(&self) -> Result<(), Problem> {
        check_labels(&self.labels)?;
        check_checkpoints(self.checkpoints)?;
        check_network(self.taps.as_deref(), self.netns.as_ref())
    }
}

impl Checked for OpenFaultSocket {
    fn check(&self) -> Result<(), Problem> {
        Ok(())
    }
}

impl Checked for CaptureMemory {
    const BYTES_MAX: usize = limits::CAPTURE_BODY_BYTES_MAX;

    fn check(&self) -> Result<(), Problem> {
        check_labels(&self.labels)?;
        check_source(&self.source)?;
        must(self.domain.is_none() || !matches!(self.source, CaptureSource::FaultSocket { .. }), || {
            "`domain` is that of the fault socket's snapshot: leave it out".to_owned()
        })?;
        let most = engine_limits::MANIFEST_BLOBS_MAX;
        must(self.blobs.len() <= most, || {
            format!("`blobs` are {}: at most {most} are kept", self.blobs.len())
        })?;
        self.blobs.iter().try_for_each(|(name, text)| check_blob(name, text))
    }
}

/// A process guest's command: the guest itself refuses words it does not know.
impl Checked for serde_json::Map<String, serde_json::Value> {
    fn check(&self) -> Result<(), Problem> {
        must(self.get("command").is_some_and(serde_json::Value::is_string), || {
            "a guest needs a `command`, such as {\"command\":\"verify\"}".to_owned()
        })
    }
}

impl Checked for ListQuery {
    fn check(&self) -> Result<(), Problem> {
        let most = limits::LABELS_MAX;
        must(self.labels.len() <= most, || {
            format!("`label` comes {} times: a resource has at most {most}", self.labels.len())
        })
    }
}

impl Checked for WaitQuery {
    fn check(&self) -> Result<(), Problem> {
        must(
            !matches!(self.state, SnapshotState::Discarded | SnapshotState::Lost | SnapshotState::Undecided),
            || "`state`: captured, sealed and published can be waited for".to_owned(),
        )?;
        let seconds = self.timeout_seconds.unwrap_or_default();
        must(seconds <= limits::WAIT_SECONDS_MAX, || {
            format!("`timeout_seconds` is {seconds}: one wait takes at most {}", limits::WAIT_SECONDS_MAX)
        })
    }
}

impl Checked for ConsoleQuery {
    fn check(&self) -> Result<(), Problem> {
        let seconds = self.wait_seconds.unwrap_or_default();
        let most = limits::CONSOLE_WAIT_SECONDS_MAX;
        must(seconds <= most, || format!("`wait_seconds` is {seconds}: one read waits at most {most}"))
    }
}

impl Checked for ConsoleInput {
    const BYTES_MAX: usize = 2 * limits::CONSOLE_TEXT_MAX;

    fn check(&self) -> Result<(), Problem> {
        let most = limits::CONSOLE_TEXT_MAX;
        must(self.bytes.len() <= most, || format!("`bytes` are more than {most} letters: type less at once"))
    }
}

impl Checked for EventsQuery {
    fn check(&self) -> Result<(), Problem> {
        Ok(())
    }
}

fn refuse(why: &str) -> Result<(), Problem> {
    must(false, || why.to_owned())
}

fn check_machine(machine: &Machine) -> Result<(), Problem> {
    let images = machine.disks.iter().map(|disk| ("image", &disk.image));
    let initrd = machine.initrd.iter().map(|path| ("initrd", path));
    for (field, path) in [("kernel", &machine.kernel)].into_iter().chain(initrd).chain(images) {
        must(path.starts_with('/') && path.len() <= limits::PATH_BYTES_MAX && !path.contains('\0'), || {
            format!("`{field}` is {path:?}: it must be the absolute path of a file on the daemon's machine")
        })?;
    }
    let line = machine.command_line.as_deref().unwrap_or_default();
    must(line.len() <= limits::COMMAND_LINE_BYTES_MAX && !line.contains(['\0', '\n']), || {
        format!("`command_line` must be one line of at most {} bytes", limits::COMMAND_LINE_BYTES_MAX)
    })?;
    must((1..=limits::CPUS_MAX).contains(&machine.cpus), || {
        format!("`cpus` is {}: a machine has 1 to {}", machine.cpus, limits::CPUS_MAX)
    })?;
    let cpu = machine.cpu.as_deref().unwrap_or("max");
    must(is_plain_word(cpu, 256), || format!("`cpu` is {cpu:?}: it must be a model's name"))?;
    let most = limits::DEVICES_MAX;
    must(machine.disks.len() <= most && machine.taps.len() <= most, || {
        format!("a machine has at most {most} disks and {most} taps")
    })?;
    for (at, disk) in machine.disks.iter().enumerate() {
        let name = &disk.name;
        let is_name = is_plain_word(name, 32) && name != "memory";
        must(is_name && machine.disks[..at].iter().all(|other| other.name != *name), || {
            format!(
                "the disk's name {name:?} must be a word of small letters, digits and -, each once, and not memory"
            )
        })?;
    }
    machine.taps.iter().try_for_each(check_tap)?;
    check_network(None, machine.netns.as_ref())
}

/// Refuses names that no tap device and no network namespace can have.
fn check_network(taps: Option<&[TapName]>, netns: Option<&Netns>) -> Result<(), Problem> {
    taps.into_iter().flatten().try_for_each(check_tap_name)?;
    must(netns.is_none_or(Netns::is_valid), || {
        "`netns` must be the name of a network namespace or an absolute path".to_owned()
    })
}

fn check_tap_name(tap: &TapName) -> Result<(), Problem> {
    must(tap.is_valid(), || format!("the tap {:?} is no network device's name", tap.0))
}

fn check_tap(tap: &Tap) -> Result<(), Problem> {
    check_tap_name(&tap.device)?;
    let Some(mac) = &tap.mac else { return Ok(()) };
    let octets: Vec<&str> = mac.split(':').collect();
    let is_octet = |octet: &&str| octet.len() == 2 && u8::from_str_radix(octet, 16).is_ok();
    must(octets.len() == 6 && octets.iter().all(is_octet), || {
        format!("`mac` is {mac:?}: it must be six pairs of hexadecimal digits with colons between")
    })
}

/// True if `word` can stand in a VMM's arguments without being taken for more than one word.
fn is_plain_word(word: &str, length_max: usize) -> bool {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.+=,".contains(letter);
    (1..=length_max).contains(&word.len()) && word.chars().all(is_plain)
}

/// Refuses a period that is too long, and numbers of checkpoints that no sandbox keeps.
fn check_checkpoints(checkpoints: Option<PeriodicCheckpoints>) -> Result<(), Problem> {
    let Some(PeriodicCheckpoints { every_seconds, keep }) = checkpoints else { return Ok(()) };
    let longest = limits::CHECKPOINT_SECONDS_MAX;
    must(every_seconds <= longest, || {
        format!("`every_seconds` is {every_seconds}: the longest period of checkpoints is {longest}, 30 days")
    })?;
    let most = limits::CHECKPOINTS_KEPT_MAX;
    must((1..=most).contains(&keep), || format!("`keep` is {keep}: 1 to {most} checkpoints can be kept"))
}

/// Refuses labels that only rekindle gives.
fn check_labels(labels: &Labels) -> Result<(), Problem> {
    let own = labels.keys().find(|name| name.starts_with(OWN_LABELS));
    own.map_or(Ok(()), |name| {
        refuse(&format!(
            "the label {} cannot be given: rekindle gives those that begin with `{OWN_LABELS}`",
            quoted(name)
        ))
    })
}

fn check_source(source: &CaptureSource) -> Result<(), Problem> {
    match source {
        CaptureSource::FaultSocket { .. } => Ok(()),
        CaptureSource::Memfd { pid, fd } => {
            check_pid(*pid)?;
            must(*fd >= 0, || format!("`fd` is {fd}: it must be the number of a descriptor in process {pid}"))
        }
        CaptureSource::Process { pid, regions } => {
            check_pid(*pid)?;
            let most = engine_limits::REGIONS_MAX;
            must((1..=most).contains(&regions.len()), || {
                format!("`regions` are {}: memory has 1 to {most}", regions.len())
            })?;
            regions.iter().try_for_each(check_region)
        }
    }
}

fn check_pid(pid: u32) -> Result<(), Problem> {
    must(i32::try_from(pid).is_ok_and(|pid| pid > 0), || {
        format!("`pid` is {pid}: no process has that number")
    })
}

fn check_region(region: &MemoryRegion) -> Result<(), Problem> {
    let MemoryRegion { start, bytes, offset } = *region;
    let whole_pages = [start, bytes, offset].iter().all(|number| number.is_multiple_of(4096));
    let within = start <= limits::ADDRESS_MAX
        && offset.checked_add(bytes).is_some_and(|end| end <= limits::MEMORY_BYTES_MAX);
    must(bytes > 0 && whole_pages && within, || {
        format!(
            "the region of {bytes} bytes at {start:#x} for offset {offset} must be whole pages of 4096 bytes"
        )
    })
}

fn check_blob(name: &str, text: &str) -> Result<(), Problem> {
    must(is_name(name, engine_limits::NAME_BYTES_MAX), || {
        format!("{} cannot be a blob's name: {}", quoted(name), name_rule(engine_limits::NAME_BYTES_MAX))
    })?;
    let bytes = BASE64_STANDARD.decode(text);
    must(bytes.is_ok_and(|bytes| bytes.len() <= engine_limits::BLOB_BYTES_MAX), || {
        let most = engine_limits::BLOB_BYTES_MAX;
        format!("blob {name} must be base64, with `=` at its end, of at most {most} bytes")
    })
}

fn check_node(field: &str, node: &str) -> Result<(), Problem> {
    must((1..=engine_limits::NODE_BYTES_MAX).contains(&node.len()), || {
        format!("`{field}` is {}: it must be the name or the address of a node", quoted(node))
    })
}

fn must(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Problem> {
    match holds {
        true => Ok(()),
        false => Err(Problem::new(Code::InvalidRequest, otherwise())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: Checked>(json: &str) -> String {
        let said: T = serde_json::from_str(json).unwrap();
        let problem = said.check().expect_err(json);
        assert_eq!(problem.code, Code::InvalidRequest);
        problem.detail
    }

    fn taken<T: Checked>(json: &str) {
        let said: T = serde_json::from_str(json).unwrap();
        assert_eq!(said.check(), Ok(()), "{json}");
    }

    #[test]
    fn memory_is_whole_pages_of_its_kind() {
        taken::<CreateSandbox>(r#"{"memory_bytes":4096}"#);
        taken::<CreateSandbox>(r#"{"memory_bytes":2097152,"backing":"huge"}"#);
        for bytes in ["0", "4095", "1099511631872", "18446744073709551615"] {
            assert!(refused::<CreateSandbox>(&format!(r#"{{"memory_bytes":{bytes}}}"#)).contains(bytes));
        }
        refused::<CreateSandbox>(r#"{"memory_bytes":4096,"backing":"huge"}"#);
    }

    #[test]
    fn a_period_of_checkpoints_is_a_month_at_most_and_at_least_one_is_kept() {
        taken::<CheckpointSandbox>(r#"{"checkpoints":{"every_seconds":0}}"#);
        taken::<CreateSandbox>(
            r#"{"memory_bytes":4096,"checkpoints":{"every_seconds":2592000,"keep":1000}}"#,
        );
        for checkpoints in [
            r#"{"every_seconds":2592001}"#,
            r#"{"every_seconds":1,"keep":0}"#,
            r#"{"every_seconds":1,"keep":1001}"#,
        ] {
            let body = format!(r#"{{"checkpoints":{checkpoints}}}"#);
            refused::<CheckpointSandbox>(&body);
            refused::<ResumeSandbox>(&body);
            refused::<ResumeSnapshot>(&body);
            refused::<ForkSandbox>(&body);
        }
    }

    #[test]
    fn labels_of_rekindle_itself_cannot_be_given() {
        taken::<PauseSandbox>(r#"{"labels":{"team/app":"","a":"b = c"}}"#);
        assert!(refused::<PauseSandbox>(r#"{"labels":{"rekindle/a":"b"}}"#).contains("rekindle/a"));
    }

    #[test]
    fn a_capture_names_memory_that_can_be() {
        taken::<CaptureMemory>(
            r#"{"source":{"kind":"process","pid":7,"regions":[{"start":8192,"bytes":4096,"offset":0}]},
                "blobs":{"state":"AAEC"}}"#,
        );
        for source in [
            r#"{"kind":"process","pid":0,"regions":[{"start":8192,"bytes":4096,"offset":0}]}"#,
            r#"{"kind":"process","pid":7,"regions":[]}"#,
            r#"{"kind":"process","pid":7,"regions":[{"start":1,"bytes":4096,"offset":0}]}"#,
            r#"{"kind":"process","pid":7,"regions":[{"start":18446744073709547520,"bytes":4096,"offset":0}]}"#,
            r#"{"kind":"memfd","pid":4294967295,"fd":3}"#,
            r#"{"kind":"memfd","pid":7,"fd":-1}"#,
        ] {
            refused::<CaptureMemory>(&format!(r#"{{"source":{source}}}"#));
        }
        refused::<CaptureMemory>(
            r#"{"source":{"kind":"memfd","pid":7,"fd":3},"blobs":{"state":"not base64"}}"#,
        );
    }
}
