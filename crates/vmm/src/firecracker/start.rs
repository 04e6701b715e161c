//! Starts a Firecracker: fresh, or on a snapshot whose memory is served to it.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rekindle_input::regular_file::RegularFile;
use rekindle_keeper::{KeeperClient, Role, Spawn};

use super::calls::Calls;
use super::capture::{CaptureFiles, MEMORY_FD, STATE_FD};
use super::directory::VmDirectory;
use super::drives::DriveSource;
use super::files;
use super::found::Found;
use super::jailer::Jailer;
use super::kept::{CAPTURE, FirecrackerFacts, Origin, PRINTED, STATE, TYPED};
use super::spec::{Drive, DriveContent, FirecrackerSpec};
use super::{CallError, FirecrackerError, FirecrackerGuest, Places, Seccomp};
use crate::namespace::Namespace;
use crate::qemu::BootFile;
use crate::serial_line::{SerialLine, VmmEnds};
use crate::vmm_process::{ProcessError, Unfinished, VmmProcess};

/// Longest time from the start of Firecracker, or its jailer, until its API answers.
const SOCKET_LIMIT: Duration = Duration::from_secs(30);
/// The pause between two looks for its socket, cut short when it ends.
const SOCKET_PAUSE: Duration = Duration::from_millis(1);

/// Level of Firecracker's log: only lines about faults.
const LOG_LEVEL: &str = "Warning";

/// The names of the boot files in the directory.
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";

impl FirecrackerGuest {
    /// Starts a VM on empty memory, its disks out of a snapshot or, without one, as copies of their images. It runs
    /// when this returns. On failure no process of it is left; the holdings under `key` are the caller's to forget.
    pub fn start(
        keeper: &KeeperClient,
        key: &str,
        spec: &FirecrackerSpec,
        places: &Places,
        disks: Option<DriveSource<'_>>,
    ) -> Result<Self, FirecrackerError> {
        let origin = if disks.is_some() { Origin::Disks } else { Origin::Images };
        let prepared = Prepared::new(key, spec, places, disks, origin)?;
        prepared.tidy_on_failure(|prepared| {
            prepared.place_boot_files()?;
            let begun = prepared.begin(keeper, key)?;
            let initrd = spec.initrd.as_ref().map(|_| INITRD);
            begun.calls.boot(spec, KERNEL, initrd)?;
            begun.finish()
        })
    }

    /// Starts a process that loads `state` and runs; its memory is handed over at `handover`, which must have a
    /// listener. Returns before that has happened: the load ends by [`FirecrackerGuest::finish_load`], while its faults
    /// are served.
    pub fn resume(
        keeper: &KeeperClient,
        key: &str,
        spec: &FirecrackerSpec,
        places: &Places,
        disks: DriveSource<'_>,
        (handover, state): (&Path, &[u8]),
    ) -> Result<Self, FirecrackerError> {
        let prepared = Prepared::new(key, spec, places, Some(disks), Origin::Snapshot)?;
        prepared.tidy_on_failure(|prepared| {
            let handover = prepared.directory.handover(handover);
            let handover =
                handover.map_err(FirecrackerError::system("putting the hand-over socket into the jail"))?;
            let mut begun = prepared.begin(keeper, key)?;
            begun.files.put_state(state).map_err(FirecrackerError::system("giving Firecracker its state"))?;
            let path = begun.files.state_path();
            begun.loading = Some(begun.calls.begin_load(spec, &prepared.found, &path, &handover)?);
            begun.finish()
        })
    }
}

/// A directory with all files a process needs, and the process not started.
struct Prepared<'a> {
    spec: &'a FirecrackerSpec,
    places: &'a Places,
    found: Found,
    directory: VmDirectory,
    id: String,
    origin: Origin,
}

/// A process whose API answers; killed if it is dropped before it is finished.
struct Started {
    process: Unfinished,
    facts: FirecrackerFacts,
    calls: Calls,
    files: CaptureFiles,
    serial: SerialLine,
    loading: Option<super::exchange::Asked>,
}

impl<'a> Prepared<'a> {
    /// Checks everything that can be checked, then makes the directory and the disks in it.
    fn new(
        key: &str,
        spec: &'a FirecrackerSpec,
        places: &'a Places,
        disks: Option<DriveSource<'_>>,
        origin: Origin,
    ) -> Result<Self, FirecrackerError> {
        spec.validate()?;
        let found = Found::look(&places.program)?;
        spec.check(&found)?;
        if let Some(jailer) = &places.jailer {
            jailer.check()?;
        }
        for file in read_only_files(spec, origin) {
            places.digests.check(file)?;
        }
        let id = id_of(key);
        let disk_directory = &places.disk_directory;
        let directory = match &places.jailer {
            None => VmDirectory::create(disk_directory, &places.run_directory, &id),
            Some(jailer) => VmDirectory::create_jail(disk_directory, jailer, &places.program, &id),
        };
        let directory = directory.map_err(FirecrackerError::file("making a directory in", disk_directory))?;
        let prepared = Self { spec, places, found, directory, id, origin };
        prepared.tidy_on_failure(|prepared| prepared.make_drives(disks))?;
        Ok(prepared)
    }

    /// Removes the directory again where `work` fails; the error has what was logged.
    fn tidy_on_failure<T>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, FirecrackerError>,
    ) -> Result<T, FirecrackerError> {
        let done = work(self).map_err(|error| error.with_words(self.directory.log()));
        if done.is_err()
            && let Err(error) = self.directory.remove()
        {
            tracing::warn!(%error, directory = %self.directory.root().display(), "left behind");
        }
        done
    }

    fn make_drives(&self, disks: Option<DriveSource<'_>>) -> Result<(), FirecrackerError> {
        for drive in &self.spec.drives {
            match &drive.content {
                DriveContent::ReadOnly(file) => {
                    let placed = self.directory.place(&file.path, &drive.file_name());
                    placed.map_err(FirecrackerError::file("placing", &file.path))?;
                }
                DriveContent::Writable(image) => self.make_writable(drive, image.as_deref(), disks)?,
            }
        }
        Ok(())
    }

    fn make_writable(
        &self,
        drive: &Drive,
        image: Option<&Path>,
        disks: Option<DriveSource<'_>>,
    ) -> Result<(), FirecrackerError> {
        let path = self.directory.file(&drive.file_name());
        if let Some(disks) = disks {
            let (_, name) =
                self.spec.writable_drives().find(|(other, _)| other.id == drive.id).expect("it is one");
            let chunks = disks.write(drive, &name, &path)?;
            let beside = self.directory.beside(&drive.file_name());
            chunks.save(&beside).map_err(FirecrackerError::file("writing", beside))?;
        } else {
            let image = image.ok_or_else(|| FirecrackerError::NoVolume { drive: drive.id.clone() })?;
            let source = RegularFile::open(image, u64::MAX).map_err(std::io::Error::from);
            let source = source.map_err(FirecrackerError::file("opening", image))?.into_file();
            let found =
                source.metadata().map_err(FirecrackerError::file("asking for the size of", image))?.len();
            if found != drive.bytes {
                let (drive, expected) = (drive.id.clone(), drive.bytes);
                return Err(FirecrackerError::OtherSize { drive, path: image.to_owned(), expected, found });
            }
            files::copy(&source, &path).map_err(FirecrackerError::file("copying", image))?;
        }
        self.directory.give(&path).map_err(FirecrackerError::file("giving away", path))
    }

    fn place_boot_files(&self) -> Result<(), FirecrackerError> {
        let files = [(Some(&self.spec.kernel), KERNEL), (self.spec.initrd.as_ref(), INITRD)];
        for (file, name) in files.into_iter().filter_map(|(file, name)| Some((file?, name))) {
            let placed = self.directory.place(&file.path, name);
            placed.map_err(FirecrackerError::file("placing", &file.path))?;
        }
        Ok(())
    }

    /// Starts the process under the keeper and waits until its API answers.
    fn begin(&self, keeper: &KeeperClient, key: &str) -> Result<Started, FirecrackerError> {
        let system = || FirecrackerError::system("preparing Firecracker's descriptors");
        let files = if self.directory.is_jailed() {
            CaptureFiles::InJail(self.directory.clone())
        } else {
            CaptureFiles::inherited(self.spec.memory_bytes).map_err(system())?
        };
        self.make_log()?;
        let (serial, VmmEnds { input, output }) = SerialLine::pipes().map_err(system())?;
        let mut fds = vec![
            (Role::Child(0), input.as_fd()),
            (Role::Child(1), output.as_fd()),
            (Role::Held(PRINTED), serial.output.as_fd()),
            (Role::Held(TYPED), serial.input.as_fd()),
        ];
        if let Some((memory, state)) = files.fds() {
            fds.extend([(Role::Child(MEMORY_FD), memory), (Role::Held(CAPTURE), memory)]);
            fds.extend([(Role::Child(STATE_FD), state), (Role::Held(STATE), state)]);
        }
        let spawn = match self.spec.netns.clone() {
            Some(file) => Namespace { file, starter: self.places.starter.clone() }.enter(self.spawn()),
            None => self.spawn(),
        };
        let process = VmmProcess::spawn_under(keeper, key, &spawn, &fds)?;
        let calls = Calls::at(self.directory.api());
        wait_for_api(&calls, process.process(), self.directory.api())?;
        let mut found = self.found.clone();
        // The program may have been replaced since it was looked at.
        found.version = calls.version()?;
        self.spec.check(&found)?;
        let facts = FirecrackerFacts {
            pid: process.process().id(),
            directory: self.directory.clone(),
            spec: self.spec.clone(),
            found,
            origin: self.origin,
            checkpoints: 0,
        };
        Ok(Started { process, facts, calls, files, serial, loading: None })
    }

    /// Makes the log, so that it is private, which Firecracker's own mode would not be.
    fn make_log(&self) -> Result<(), FirecrackerError> {
        let log = self.directory.log();
        let made = files::create(log).and_then(|_file| self.directory.give(log));
        made.map_err(FirecrackerError::file("making", log))
    }

    fn spawn(&self) -> Spawn {
        let of_firecracker = |socket: OsString, log: OsString| {
            let mut words: Vec<OsString> =
                vec!["--api-sock".into(), socket, "--id".into(), self.id.clone().into()];
            words.extend(["--log-path".into(), log, "--level".into(), LOG_LEVEL.into()]);
            if self.places.seccomp == Seccomp::Unfiltered {
                words.push("--no-seccomp".into());
            }
            words
        };
        let log = self.places.log.clone();
        match &self.places.jailer {
            None => {
                let words = of_firecracker(self.directory.api().into(), self.directory.log().into());
                let directory = Some(self.directory.root().to_owned());
                Spawn { log, directory, ..Spawn::new(&self.places.program, words) }
            }
            Some(jailer) => {
                let mut words = jailer.words(&self.places.program, &self.id);
                words.push("--".into());
                // The jailer hands the id on.
                let own = of_firecracker(Jailer::api(), Jailer::log()).into_iter();
                let id_at = 2..4;
                words.extend(own.enumerate().filter(|(at, _)| !id_at.contains(at)).map(|(_, word)| word));
                Spawn { log, ..Spawn::new(&jailer.program, words) }
            }
        }
    }
}

impl Started {
    fn finish(self) -> Result<FirecrackerGuest, FirecrackerError> {
        let Self { process, facts, calls, files, serial, loading } = self;
        let vsock = facts.vsock()?;
        Ok(FirecrackerGuest { process: process.finish(), facts, calls, files, serial, vsock, loading })
    }
}

/// The files that have to be as they were: without those a VM only boots from, where it does not boot.
fn read_only_files(spec: &FirecrackerSpec, origin: Origin) -> Vec<&BootFile> {
    let boots = match origin {
        Origin::Images | Origin::Disks => true,
        Origin::Snapshot => false,
    };
    let boot = [Some(&spec.kernel), spec.initrd.as_ref()].into_iter().flatten().filter(move |_| boots);
    let drives = spec.drives.iter().filter_map(|drive| match &drive.content {
        DriveContent::ReadOnly(file) => Some(file),
        DriveContent::Writable(_) => None,
    });
    boot.chain(drives).collect()
}

/// A process's name at Firecracker, of at most 64 letters, digits and hyphens: the end of its key.
pub(super) fn id_of(key: &str) -> String {
    let allowed = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    let name: String = key.rsplit('/').next().unwrap_or_default().chars().map(allowed).collect();
    name.chars().take(64).collect()
}

fn wait_for_api(calls: &Calls, process: &VmmProcess, socket: &Path) -> Result<(), FirecrackerError> {
    let started = Instant::now();
    loop {
        let unreachable = |source| CallError::Unreachable { socket: socket.to_owned(), source };
        if calls.is_there().map_err(unreachable)? {
            return Ok(());
        }
        if process.ends_within(SOCKET_PAUSE) {
            return Err(ProcessError::Gone { pid: process.id(), doing: "answer at its API socket" }.into());
        }
        if started.elapsed() > SOCKET_LIMIT {
            return Err(CallError::Silent { call: "anything".to_owned(), limit: SOCKET_LIMIT }.into());
        }
    }
}
