//! A machine about to be started here: checked against this host, with a place for everything it needs.

use std::path::{Path, PathBuf};

use rekindle_kernel::PAGE_BYTES;

use super::misfit::Misfit;
use super::program::{QemuProgram, host_cpu};
use super::spec::{QemuOptions, QemuSpec};
use crate::namespace::Namespace;

/// Longest path of a unix socket (sun_path, unix(7)).
const SOCKET_BYTES_MAX: usize = 107;
/// Longest name of a network device (IFNAMSIZ, linux/if.h).
const TAP_BYTES_MAX: usize = 15;

/// Places that a start needs beside the machine, and that the next start elsewhere needs anew.
#[derive(Clone, Debug)]
pub struct Places {
    /// Directory of boot files, under their digests.
    pub boot_directory: PathBuf,
    /// The absolute path of a file that gets what QEMU prints, at the end.
    pub log: PathBuf,
    /// The absolute path of the socket at which each disk is served over NBD already, in the machine's order.
    pub disks: Vec<PathBuf>,
    /// The tap device of each network device, in the machine's order. It exists already.
    pub taps: Vec<String>,
    /// The network namespace that QEMU runs in; none: the keeper's.
    pub netns: Option<Namespace>,
}

/// A machine that can be started here.
#[derive(Clone, Debug)]
pub struct Launch {
    pub(super) program: QemuProgram,
    pub(super) spec: QemuSpec,
    pub(super) places: Places,
    pub(super) kernel: PathBuf,
    pub(super) initrd: Option<PathBuf>,
}

impl Launch {
    /// Checks that `program` can make the machine `spec` here, as it was made first; reads the boot files through.
    pub fn new(program: &QemuProgram, spec: &QemuSpec, places: Places) -> Result<Self, Misfit> {
        let options = &spec.options;
        options.check_values()?;
        spec.check(program)?;
        check_count("disks' sockets", options.disks.len(), places.disks.len())?;
        check_count("tap devices", options.nics.len(), places.taps.len())?;
        places.check_values()?;
        let (kernel, initrd) = options.find_boot_files(&places.boot_directory)?;
        Ok(Self { program: program.clone(), spec: spec.clone(), places, kernel, initrd })
    }

    /// The machine.
    pub fn spec(&self) -> &QemuSpec {
        &self.spec
    }
}

impl QemuOptions {
    /// The boot files that are at none of their places, by their roles. Nothing is read.
    pub fn absent_boot_files(&self, directory: &Path) -> Vec<&'static str> {
        let files = [("kernel", Some(&self.kernel)), ("initrd", self.initrd.as_ref())];
        let absent =
            files.into_iter().filter(|(_, file)| file.is_some_and(|file| !file.is_somewhere(directory)));
        absent.map(|(role, _)| role).collect()
    }

    /// The kernel and the initrd, read through.
    fn find_boot_files(&self, directory: &Path) -> Result<(PathBuf, Option<PathBuf>), Misfit> {
        let kernel = self.kernel.find(directory, "kernel")?;
        let initrd = self.initrd.as_ref().map(|initrd| initrd.find(directory, "initrd")).transpose()?;
        Ok((kernel, initrd))
    }
}

impl QemuSpec {
    /// Checks that `program` can take a snapshot of the machine up here, with the boot files of `directory` or where they
    /// were; reads them through.
    pub fn check_here(&self, program: &QemuProgram, directory: &Path) -> Result<(), Misfit> {
        self.check(program)?;
        self.options.find_boot_files(directory).map(drop)
    }

    /// Checks that `program` makes the machine as it was made first. Files, sockets and network devices are looked at
    /// by [`Launch::new`].
    pub fn check(&self, program: &QemuProgram) -> Result<(), Misfit> {
        let (made_by, found, machine) = (self.qemu_version, program.version, self.options.machine);
        if found < made_by {
            return Err(Misfit::OlderQemu { made_by, found });
        }
        if !machine.is_versioned() && (found.major, found.minor) != (made_by.major, made_by.minor) {
            return Err(Misfit::OtherQemu { machine, made_by, found });
        }
        let of_machine = match machine.is_versioned() {
            true => self.machine_type.starts_with(&format!("pc-{}-", machine.word())),
            false => self.machine_type == machine.word(),
        };
        if !of_machine || !program.has_machine_type(&self.machine_type) {
            return Err(Misfit::NoSuchMachine { machine_type: self.machine_type.clone(), found });
        }
        program.check_accelerator(self.options.accelerator)?;
        match (&self.host_cpu, host_cpu()) {
            (Some(made_on), found) if *made_on != found => {
                Err(Misfit::OtherCpu { made_on: made_on.clone(), found })
            }
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// Checks that the volumes of a snapshot, each with its name and the bytes of its whole pages, are those of the
    /// machine.
    pub fn check_volumes(&self, memory_bytes: u64, disks: &[(&str, u64)]) -> Result<(), Misfit> {
        let expected = self.options.memory_bytes;
        if memory_bytes != expected {
            return Err(Misfit::VolumeSize {
                volume: "the memory".to_owned(),
                expected,
                found: memory_bytes,
            });
        }
        check_count("disk volumes", self.options.disks.len(), disks.len())?;
        for disk in &self.options.disks {
            let found = disks.iter().find(|(name, _)| *name == disk.name).map_or(0, |(_, bytes)| *bytes);
            let expected = disk.bytes.next_multiple_of(u64::try_from(PAGE_BYTES).expect("4096"));
            if found != expected {
                let volume = format!("disk {}", disk.name);
                return Err(Misfit::VolumeSize { volume, expected, found });
            }
        }
        Ok(())
    }
}

impl Places {
    fn check_values(&self) -> Result<(), Misfit> {
        let wrong = |what, value: String, must| Err(Misfit::Value { what, value, must });
        let is_socket = |path: &Path| path.is_absolute() && path.as_os_str().len() <= SOCKET_BYTES_MAX;
        if let Some(socket) = self.disks.iter().find(|socket| !is_socket(socket)) {
            let must = "it must be an absolute path of 107 bytes at most";
            return wrong("a disk's socket", socket.display().to_string(), must);
        }
        let is_tap = |name: &str| {
            let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
            (1..=TAP_BYTES_MAX).contains(&name.len()) && name.chars().all(allowed)
        };
        if let Some(tap) = self.taps.iter().find(|tap| !is_tap(tap)) {
            let must = "it must be the name of a network device: 15 letters, digits, -, _ and . at most";
            return wrong("a tap device", tap.clone(), must);
        }
        Ok(())
    }
}

fn check_count(what: &'static str, expected: usize, given: usize) -> Result<(), Misfit> {
    if expected == given { Ok(()) } else { Err(Misfit::Count { what, expected, given }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::{BootFile, DiskSpec, Machine, NicSpec, QemuOptions, Version};

    struct Bench {
        directory: tempfile::TempDir,
        program: QemuProgram,
    }

    impl Bench {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().expect("a directory"), program: QemuProgram::of_tests() }
        }

        fn options(&self) -> QemuOptions {
            let kernel = BootFile::keep_bytes(b"a kernel", self.directory.path()).expect("there is room");
            QemuOptions::new(64 << 20, kernel)
        }

        fn spec(&self, change: impl FnOnce(&mut QemuOptions)) -> QemuSpec {
            let mut options = self.options();
            change(&mut options);
            options.settle(&self.program).expect("it can be made")
        }

        fn places(&self) -> Places {
            let boot_directory = self.directory.path().to_owned();
            Places { boot_directory, log: "/log".into(), disks: Vec::new(), taps: Vec::new(), netns: None }
        }

        fn misfit(&self, spec: &QemuSpec) -> String {
            Launch::new(&self.program, spec, self.places()).expect_err("it does not fit").to_string()
        }
    }

    #[test]
    fn a_spec_survives_its_blob() {
        let bench = Bench::new();
        let spec = bench.spec(|options| {
            options.machine = Machine::Q35;
            options.disks = vec![DiskSpec { name: "root".to_owned(), bytes: 4096 }];
        });
        let blob = serde_json::to_vec(&spec).expect("plain data");
        assert_eq!(serde_json::from_slice::<QemuSpec>(&blob).expect("what was written"), spec);
        assert_eq!(spec.machine_type, "pc-q35-7.2");
    }

    #[test]
    fn a_machine_goes_on_under_a_qemu_that_makes_the_same_one() {
        let mut bench = Bench::new();
        let micro = bench.spec(|_| {});
        let q35 = bench.spec(|options| options.machine = Machine::Q35);
        for (version, micro_fits, q35_fits) in [
            ((7, 2, 23), true, true),
            ((7, 2, 21), false, false),
            ((10, 0, 0), false, true),
            ((6, 9, 9), false, false),
        ] {
            let (major, minor, micro_number) = version;
            bench.program.version = Version { major, minor, micro: micro_number };
            let fits = |spec: &QemuSpec| Launch::new(&bench.program, spec, bench.places()).is_ok();
            assert_eq!((fits(&micro), fits(&q35)), (micro_fits, q35_fits), "{version:?}");
        }
        assert!(bench.misfit(&q35).contains("QEMU here is 6.9.9"), "{}", bench.misfit(&q35));
        bench.program.version = Version { major: 10, minor: 0, micro: 0 };
        assert!(bench.misfit(&micro).contains("only go on under QEMU 7.2.x"), "{}", bench.misfit(&micro));
        let other = QemuSpec { machine_type: "pc-q35-9.1".to_owned(), ..q35.clone() };
        assert!(bench.misfit(&other).contains("no machine pc-q35-9.1"));
        let hostile = QemuSpec { machine_type: "pc-q35-7.2,x=y".to_owned(), ..q35.clone() };
        assert!(bench.misfit(&hostile).contains("no machine"));
        let elsewhere = QemuSpec { host_cpu: Some("Another 1/2/3".to_owned()), ..q35 };
        assert!(bench.misfit(&elsewhere).contains("its host's, Another 1/2/3"));
    }

    #[test]
    fn values_that_no_machine_has_are_told_whoever_says_them() {
        let bench = Bench::new();
        let disk = |name: &str, bytes| DiskSpec { name: name.to_owned(), bytes };
        type Change = fn(&mut QemuOptions);
        let wrong: [(&str, Change); 6] = [
            ("memory is 4097 bytes", |options| options.memory_bytes = 4097),
            ("CPUs is 0", |options| options.cpus = 0),
            ("the CPU model is a b", |options| options.cpu_model = "a b".to_owned()),
            ("command line is 5000 bytes long", |options| options.command_line = "x".repeat(5000)),
            ("address is tap,x", |options| options.nics = vec![NicSpec { mac: "tap,x".to_owned() }]),
            ("CPUs is 1000", |options| options.cpus = 1000),
        ];
        for (why, change) in wrong {
            let mut spec = bench.spec(|_| {});
            change(&mut spec.options);
            assert!(bench.misfit(&spec).contains(why), "{}", bench.misfit(&spec));
            assert!(spec.options.settle(&bench.program).is_err());
        }
        for disks in [
            vec![disk("memory", 4096)],
            vec![disk("a,b", 4096)],
            vec![disk("a", 0)],
            vec![disk("a", 4096), disk("a", 4096)],
        ] {
            let mut spec = bench.spec(|_| {});
            spec.options.disks = disks;
            assert!(bench.misfit(&spec).contains("disk"), "{}", bench.misfit(&spec));
        }
    }

    #[test]
    fn every_disk_and_network_device_has_its_place() {
        let bench = Bench::new();
        let spec = bench.spec(|options| {
            options.disks = vec![DiskSpec { name: "root".to_owned(), bytes: 4096 }];
            options.nics = vec![NicSpec { mac: "52:54:00:12:34:56".to_owned() }];
        });
        assert!(bench.misfit(&spec).contains("1 disks' sockets, 0 were named"), "{}", bench.misfit(&spec));
        let with = |disk: &str, tap: &str| {
            let (disks, taps) = (vec![disk.into()], vec![tap.to_owned()]);
            Launch::new(&bench.program, &spec, Places { disks, taps, ..bench.places() })
        };
        assert!(with("/run/disk", "tap0").is_ok());
        assert!(with("disk", "tap0").is_err());
        assert!(with(&format!("/{}", "x".repeat(107)), "tap0").is_err());
        assert!(with("/run/disk", "tap0,script=/x").is_err());
        assert!(with("/run/disk", "a-name-of-16-let").is_err());
    }

    #[test]
    fn volumes_of_other_sizes_are_of_another_machine() {
        let bench = Bench::new();
        let spec =
            bench.spec(|options| options.disks = vec![DiskSpec { name: "root".to_owned(), bytes: 8191 }]);
        assert!(spec.check_volumes(64 << 20, &[("root", 8192)]).is_ok());
        let error = spec.check_volumes(32 << 20, &[("root", 8192)]).expect_err("half of the memory");
        assert!(error.to_string().contains("the memory has 33554432 bytes"), "{error}");
        assert!(spec.check_volumes(64 << 20, &[("root", 4096)]).is_err());
        assert!(spec.check_volumes(64 << 20, &[("other", 8192)]).is_err());
        assert!(spec.check_volumes(64 << 20, &[]).is_err());
    }

    #[test]
    fn boot_files_that_changed_are_told_before_anything_starts() {
        let bench = Bench::new();
        let spec = bench.spec(|_| {});
        std::fs::write(&spec.options.kernel.path, b"another").expect("there is room");
        assert!(bench.misfit(&spec).contains("has other bytes"), "{}", bench.misfit(&spec));
        std::fs::remove_file(&spec.options.kernel.path).expect("it is there");
        assert!(bench.misfit(&spec).contains("its kernel is not here"), "{}", bench.misfit(&spec));
    }
}
