//! QEMU's command line, its environment, and the descriptors it finds under fixed numbers.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::Path;

use rekindle_keeper::Spawn;
use rekindle_kernel::Memfd;
use serde_json::json;

use super::launch::Launch;
use super::machine::{Accelerator, Machine};

/// The descriptor of the control connection in QEMU. Low numbers may be the keeper's own.
pub(super) const CONTROL_FD: i32 = 20;
/// The descriptor of the serial console in QEMU.
pub(super) const SERIAL_FD: i32 = 21;
/// The descriptor of the memory file in QEMU.
pub(super) const MEMORY_FD: i32 = 22;

/// The descriptor of the connection for events in QEMU.
pub(super) const EVENTS_FD: i32 = 23;

/// The descriptor of the preloaded library in QEMU.
pub(super) const SHIM_FD: i32 = 24;

/// The descriptor of the channel to the guest's agent in QEMU.
pub(super) const CHANNEL_FD: i32 = 25;

/// The name of the channel's port in the guest: `/dev/virtio-ports/` has it by this name.
const CHANNEL_PORT: &str = "rekindle.agent";

/// Time, in seconds, that a disk's requests wait for a server that was started anew, before they fail.
const RECONNECT_SECONDS: u32 = 24 * 60 * 60;

/// The variable with the socket at which the preloaded library hands memory over.
const HANDOVER: &str = "REKINDLE_HANDOVER";
/// The variable with the device, inode and length of the memory file.
const MEMORY: &str = "REKINDLE_MEMORY";
/// The variable that says that the memory file is mapped privately.
const PRIVATE: &str = "REKINDLE_PRIVATE";
/// The variable that says that the kernel itself never touches guest memory.
const USER_FAULTS: &str = "REKINDLE_USER_FAULTS";

/// A QEMU's first task once it is up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Beginning<'a> {
    /// Boots.
    Boot,
    /// Waits for device state; its memory is handed over at this socket.
    Resume(&'a Path, Mapped),
}

/// The way in which the preloaded library maps the memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapped {
    /// As QEMU asks for it: its writes are in the file.
    Shared,
    /// Privately: its writes are nowhere else.
    Privately,
}

/// The command that runs the machine.
pub(super) fn spawn(launch: &Launch, memory: &Memfd, beginning: Beginning<'_>) -> Spawn {
    let mut spawn = Spawn::new(&launch.program.path, arguments(launch, beginning));
    spawn.log = Some(launch.places.log.clone());
    if let Beginning::Resume(handover, mapped) = beginning {
        spawn.environment = vec![
            ("LD_PRELOAD".into(), format!("/proc/self/fd/{SHIM_FD}").into()),
            (HANDOVER.into(), handover.into()),
            (MEMORY.into(), numbers_of(memory)),
        ];
        if mapped == Mapped::Privately {
            spawn.environment.push((PRIVATE.into(), "1".into()));
        }
        let options = &launch.spec.options;
        let has_io = options.channel || !options.disks.is_empty() || !options.nics.is_empty();
        if options.accelerator == Accelerator::Tcg && !has_io {
            spawn.environment.push((USER_FAULTS.into(), "1".into()));
        }
    }
    match &launch.places.netns {
        Some(namespace) => namespace.enter(spawn),
        None => spawn,
    }
}

fn numbers_of(memory: &Memfd) -> OsString {
    let status = rustix::fs::fstat(memory.as_fd()).expect("an open file has a device and an inode");
    format!("{}:{}:{}", status.st_dev, status.st_ino, memory.bytes()).into()
}

fn arguments(launch: &Launch, beginning: Beginning<'_>) -> Vec<OsString> {
    let options = &launch.spec.options;
    let memory = options.memory_bytes;
    let mut words = Words(Vec::new());
    words.flag("-nodefaults").flag("-no-user-config").option("-display", "none");
    words.option("-machine", machine(launch)).option("-accel", options.accelerator.word());
    words.option("-cpu", &options.cpu_model).option("-smp", options.cpus.to_string());
    words.option("-m", format!("{memory}B"));
    let file = format!("mem-path=/proc/self/fd/{MEMORY_FD},share=on,dump=off,merge=off");
    words.option("-object", format!("memory-backend-file,id=memory,size={memory},{file}"));
    words.option("-kernel", &launch.kernel).option("-append", &options.command_line);
    if let Some(initrd) = &launch.initrd {
        words.option("-initrd", initrd);
    }
    words.option("-chardev", format!("socket,id=control,fd={CONTROL_FD}"));
    words.option("-mon", "chardev=control,mode=control");
    words.option("-chardev", format!("socket,id=events,fd={EVENTS_FD}"));
    words.option("-mon", "chardev=events,mode=control");
    words.option("-chardev", format!("socket,id=serial,fd={SERIAL_FD}")).option("-serial", "chardev:serial");
    // The clock goes on while the machine does not run: a resumed guest reads the time that it is.
    words.option("-rtc", "base=utc,clock=host");
    if options.machine.has_generation_id() {
        words.option("-device", "vmgenid,guid=auto");
    }
    disks(launch, &mut words);
    nics(launch, &mut words);
    if options.channel {
        channel(launch, &mut words);
    }
    if let Beginning::Resume(..) = beginning {
        words.option("-incoming", "defer");
    }
    words.0
}

/// Features that are not named are off. A microvm says by ACPI where its devices are: distributions' kernels do not
/// take it from their command line.
fn machine(launch: &Launch) -> String {
    let more = match launch.spec.options.machine {
        Machine::Microvm => "acpi=on,rtc=on,isa-serial=on",
        Machine::Q35 => "vmport=off",
    };
    // Device state needs no description of itself: that is as long again, and only debuggers read it.
    format!("{},{more},memory-backend=memory,suppress-vmdesc=on", launch.spec.machine_type)
}

/// The word of a virtio device on the machine's bus.
fn bus(launch: &Launch) -> &'static str {
    match launch.spec.options.machine {
        Machine::Microvm => "device",
        Machine::Q35 => "pci",
    }
}

fn disks(launch: &Launch, words: &mut Words) {
    let bus = bus(launch);
    for (number, (disk, socket)) in launch.spec.options.disks.iter().zip(&launch.places.disks).enumerate() {
        let block = json!({
            "driver": "nbd",
            "node-name": format!("disk{number}"),
            "server": { "type": "unix", "path": socket },
            "reconnect-delay": RECONNECT_SECONDS,
            "discard": "unmap",
        });
        words.option("-blockdev", block.to_string());
        let serial: String = disk.name.chars().take(20).collect();
        words.option("-device", format!("virtio-blk-{bus},drive=disk{number},serial={serial}"));
    }
}

fn nics(launch: &Launch, words: &mut Words) {
    let bus = bus(launch);
    for (number, (nic, tap)) in launch.spec.options.nics.iter().zip(&launch.places.taps).enumerate() {
        let scripts = "script=no,downscript=no,vhost=off";
        words.option("-netdev", format!("tap,id=net{number},ifname={tap},{scripts}"));
        words.option("-device", format!("virtio-net-{bus},netdev=net{number},mac={}", nic.mac));
    }
}

/// A port without vhost: what the guest is sent is written into its memory by QEMU itself.
fn channel(launch: &Launch, words: &mut Words) {
    words.option("-chardev", format!("socket,id=channel,fd={CHANNEL_FD}"));
    words.option("-device", format!("virtio-serial-{},id=ports,max_ports=2", bus(launch)));
    let port = format!("virtserialport,bus=ports.0,nr=1,chardev=channel,name={CHANNEL_PORT}");
    words.option("-device", port);
}

struct Words(Vec<OsString>);

impl Words {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::{BootFile, DiskSpec, NicSpec, Places, QemuOptions, QemuProgram};

    fn words(machine: Machine, beginning: Beginning<'_>) -> String {
        words_of(machine, beginning, false)
    }

    fn words_of(machine: Machine, beginning: Beginning<'_>, channel: bool) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let program = QemuProgram::of_tests();
        let kernel = BootFile::keep_bytes(b"a kernel", directory.path()).expect("there is room");
        let disk = |name: &str| DiskSpec { name: name.to_owned(), bytes: 1 << 20 };
        let options = QemuOptions {
            machine,
            disks: vec![disk("root"), disk("a-disk-with-a-very-long-name")],
            nics: vec![NicSpec { mac: "52:54:00:12:34:56".to_owned() }],
            channel,
            ..QemuOptions::new(64 << 20, kernel)
        };
        let places = Places {
            boot_directory: directory.path().to_owned(),
            log: "/run/log".into(),
            disks: vec!["/run/a,b.sock".into(), "/run/c.sock".into()],
            taps: vec!["tap0".to_owned()],
            netns: None,
        };
        let spec = options.settle(&program).expect("it can be made");
        let launch = Launch::new(&program, &spec, places).expect("it fits");
        let words = arguments(&launch, beginning);
        words
            .into_iter()
            .map(|word| word.into_string().expect("words are text"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn disks_are_reached_over_nbd_and_wait_for_a_server_that_is_started_anew() {
        let words = words(Machine::Microvm, Beginning::Boot);
        let block = words.lines().find(|word| word.contains("\"disk0\"")).expect("the first disk");
        let block: serde_json::Value = serde_json::from_str(block).expect("it is JSON");
        assert_eq!(block["driver"], "nbd");
        assert_eq!(block["server"], json!({ "type": "unix", "path": "/run/a,b.sock" }));
        assert_eq!(block["reconnect-delay"], 86400);
        assert!(words.contains("-device\nvirtio-blk-device,drive=disk0,serial=root\n"), "{words}");
        assert!(words.contains("drive=disk1,serial=a-disk-with-a-very-l"), "{words}");
        assert!(!words.contains("-incoming") && !words.contains("vmgenid"), "{words}");
        assert!(!words.contains("virtio-serial"), "a machine without a channel is as it was: {words}");
    }

    #[test]
    fn a_channel_is_a_port_at_a_socket_and_comes_after_all_other_devices() {
        let words = words_of(Machine::Microvm, Beginning::Boot, true);
        let port = "virtserialport,bus=ports.0,nr=1,chardev=channel,name=rekindle.agent";
        let expected = format!("-device\nvirtio-serial-device,id=ports,max_ports=2\n-device\n{port}");
        assert!(words.ends_with(&expected), "{words}");
        assert!(words.contains("-chardev\nsocket,id=channel,fd=25\n"), "{words}");
    }

    #[test]
    fn network_devices_are_taps_that_exist_already() {
        let words = words(Machine::Q35, Beginning::Resume(Path::new("/run/handover"), Mapped::Shared));
        let tap = "-netdev\ntap,id=net0,ifname=tap0,script=no,downscript=no,vhost=off\n";
        assert!(words.contains(tap), "{words}");
        assert!(words.contains("-device\nvirtio-net-pci,netdev=net0,mac=52:54:00:12:34:56"), "{words}");
        assert!(words.contains("-device\nvmgenid,guid=auto\n"), "{words}");
        assert!(words.ends_with("-incoming\ndefer"), "{words}");
        assert!(
            words.contains("-machine\npc-q35-7.2,vmport=off,memory-backend=memory,suppress-vmdesc=on\n"),
            "{words}"
        );
    }
}
