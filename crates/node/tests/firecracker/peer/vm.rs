//! A peer's states and their work: nothing, a VM being configured, one that runs, one that stands.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rekindle_kernel::{PageKind, Userfaultfd};

use super::configured::{Configured, CreateSnapshot, LoadSnapshot, Machine};
use super::guest::{Guest, Mind};
use super::memory::{Memory, Sharing};
use super::settings::{Settings, Step};
use super::snapshot::{State, write_memory};
use super::vsock;

pub(super) struct Peer {
    settings: PathBuf,
    vm: Mutex<Vm>,
    life_changed: Condvar,
    /// Opened before a jailed process gave its rights up.
    userfaultfd: Mutex<Option<Userfaultfd>>,
    log: Option<PathBuf>,
}

pub(super) struct Vm {
    pub(super) configured: Configured,
    pub(super) life: Life,
    tracked: bool,
    guest: Option<Guest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    NotStarted,
    Running,
    Paused,
}

impl Peer {
    pub(super) fn new(settings: PathBuf, userfaultfd: Option<Userfaultfd>, log: Option<PathBuf>) -> Self {
        let vm =
            Vm { configured: Configured::default(), life: Life::NotStarted, tracked: false, guest: None };
        Self {
            settings,
            vm: Mutex::new(vm),
            life_changed: Condvar::new(),
            userfaultfd: Mutex::new(userfaultfd),
            log,
        }
    }

    /// Its settings as they are now.
    pub(super) fn settings(&self) -> Settings {
        Settings::read(&self.settings)
    }

    pub(super) fn vm(&self) -> MutexGuard<'_, Vm> {
        self.vm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a line: where it was told, else among what the guest prints.
    pub(super) fn log(&self, line: &str) {
        let line = format!("2026-01-01T00:00:00.000000000 [peer:main] {line}\n");
        match &self.log {
            Some(path) => {
                let file = std::fs::OpenOptions::new().append(true).open(path);
                write!(file.expect("the log was made before"), "{line}").expect("it can be written");
            }
            None => super::console::print(&line),
        }
    }

    /// Dies or stands here, if it is to.
    pub(super) fn step(&self, step: Step) {
        let settings = self.settings();
        if settings.dies_at == Some(step) {
            eprintln!("Firecracker dies at {step:?}, as it was told");
            self.log(&format!("about to die at {step:?}"));
            if settings.is_filtered {
                let this = rustix::process::getpid();
                rustix::process::kill_process(this, rustix::process::Signal::SYS)
                    .expect("it is this process");
                // Another thread may be the one that takes it.
                loop {
                    std::thread::park();
                }
            }
            std::process::exit(148);
        }
        if let Some((_, pipe)) = settings.stands_at.filter(|(at, _)| *at == step) {
            let mut told = [0];
            let mut pipe = std::fs::File::open(pipe).expect("the test made a pipe");
            assert_eq!(pipe.read(&mut told).expect("it can be read"), 1, "somebody lets it go on");
        }
    }

    /// Runs a line of the guest's console, once its vCPU runs.
    pub(super) fn guest_runs(&self, line: &str) -> String {
        let running = self.life_changed.wait_while(self.vm(), |vm| vm.life != Life::Running);
        let mut vm = running.unwrap_or_else(PoisonError::into_inner);
        vm.guest.as_mut().expect("a running VM has a guest").run(line)
    }

    pub(super) fn note_request(&self, line: &str) {
        if let Some(path) = self.settings().requests {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            writeln!(file.expect("requests are noted"), "{line}").expect("requests are noted");
        }
    }

    pub(super) fn start(&self) -> Result<(), String> {
        let mut vm = self.vm();
        let (Some(machine), Some(boot)) = (vm.configured.machine.clone(), vm.configured.boot.clone()) else {
            return Err("Cannot start microvm without kernel configuration.".to_owned());
        };
        for path in [Some(&boot.kernel_image_path), boot.initrd_path.as_ref()].into_iter().flatten() {
            std::fs::metadata(path).map_err(|error| format!("The kernel file cannot be opened: {error}"))?;
        }
        let memory = Memory::map(machine.mem_size_mib << 20, kind(&machine), Sharing::Private);
        let drives = Guest::open_drives(&vm.configured.drives)
            .map_err(|error| format!("Unable to open the block device: {error}"))?;
        let mut guest = Guest { memory, mind: Mind::default(), dirty: BTreeSet::new(), drives };
        guest.give_back(vm.configured.balloon.as_ref().map_or(0, |balloon| balloon.amount_mib));
        vm.configured.vsock.as_ref().map_or(Ok(()), vsock::listen)?;
        vm.tracked = machine.track_dirty_pages;
        vm.guest = Some(guest);
        self.set_life(&mut vm, Life::Running);
        self.step(Step::InstanceStart);
        Ok(())
    }

    /// Answers only after the memory was handed over and some of it was read.
    pub(super) fn load(&self, load: &LoadSnapshot) -> Result<(), String> {
        let settings = self.settings();
        let mut vm = self.vm();
        if vm.life != Life::NotStarted || vm.configured.is_begun() {
            return Err("Loading a microVM snapshot not allowed after configuring boot-specific resources."
                .to_owned());
        }
        self.step(Step::LoadBegins);
        let mut state = State::read(&load.snapshot_path, &settings.format)?;
        for wanted in &load.network_overrides {
            let interface =
                state.interfaces.iter_mut().find(|interface| interface.iface_id == wanted.iface_id);
            let interface = interface.ok_or("Unknown Network Device")?;
            interface.host_dev_name = wanted.host_dev_name.clone();
        }
        let sharing = match (settings.shares_memory, settings.seals_seals) {
            (true, true) => Sharing::SharedUnsealable,
            (true, false) => Sharing::Shared,
            (false, _) => Sharing::Private,
        };
        let mut memory = Memory::map(state.machine.mem_size_mib << 20, kind(&state.machine), sharing);
        let opened = self.userfaultfd.lock().unwrap_or_else(PoisonError::into_inner).take();
        memory
            .hand_over(opened, &load.mem_backend.backend_path, settings.is_since(1, 10))
            .map_err(|error| format!("Load snapshot error: Failed to UFFD object: {error}"))?;
        self.step(Step::LoadHandedOver);
        let drives = Guest::open_drives(&state.drives)
            .map_err(|error| format!("Failed to restore devices: {error}"))?;
        let guest = Guest { memory, mind: state.mind, dirty: BTreeSet::new(), drives };
        guest.touch(8);
        self.step(Step::LoadTouched);
        state.vsock.as_ref().map_or(Ok(()), vsock::listen)?;
        vm.configured = Configured {
            machine: Some(state.machine),
            boot: None,
            drives: state.drives,
            interfaces: state.interfaces,
            balloon: state.balloon,
            vsock: state.vsock,
        };
        vm.tracked = load.track_dirty_pages || load.enable_diff_snapshots;
        vm.guest = Some(guest);
        self.set_life(&mut vm, if load.resume_vm { Life::Running } else { Life::Paused });
        Ok(())
    }

    pub(super) fn set_state(&self, wanted: &str) -> Result<(), String> {
        let (step, life) = match wanted {
            "Paused" => (Step::Pause, Life::Paused),
            "Resumed" => (Step::Resume, Life::Running),
            other => return Err(format!("unknown variant `{other}`, expected `Paused` or `Resumed`")),
        };
        let mut vm = self.vm();
        if vm.life == Life::NotStarted {
            return Err("The requested operation is not supported before starting the microVM.".to_owned());
        }
        self.set_life(&mut vm, life);
        self.step(step);
        Ok(())
    }

    pub(super) fn create(&self, create: &CreateSnapshot) -> Result<(), String> {
        let settings = self.settings();
        let mut vm = self.vm();
        if vm.life != Life::Paused {
            return Err("Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running".to_owned());
        }
        self.step(Step::CreateBegins);
        let machine = vm.configured.machine.clone().expect("a paused VM has a machine");
        let tracked = vm.tracked;
        let Vm { configured, guest, .. } = &mut *vm;
        let guest = guest.as_mut().expect("a paused VM has a guest");
        let state = State {
            format: settings.format.clone(),
            machine,
            drives: configured.drives.clone(),
            interfaces: configured.interfaces.clone(),
            balloon: configured.balloon.clone(),
            vsock: configured.vsock.clone(),
            mind: guest.mind.clone(),
        };
        let failed = |error: std::io::Error| {
            format!("Create snapshot error: Cannot perform open on the memory backing file: {error}")
        };
        state.write(&create.snapshot_path).map_err(failed)?;
        self.step(Step::CreateState);
        let all = 0..guest.memory.pages();
        let pages: Vec<u32> = match create.snapshot_type.as_deref() {
            Some("Diff") if tracked => guest.dirty.iter().copied().collect(),
            Some("Diff" | "Full") | None => all.collect(),
            Some(other) => return Err(format!("unknown variant `{other}`, expected `Diff` or `Full`")),
        };
        write_memory(guest, &create.mem_file_path, pages, settings.cuts_files).map_err(failed)?;
        guest.dirty.clear();
        if settings.late_frame {
            guest.memory.write(0, &[0xee; 64]);
        }
        self.step(Step::CreateMemory);
        Ok(())
    }

    pub(super) fn set_balloon(&self, mib: u32) -> Result<(), String> {
        let mut vm = self.vm();
        let Vm { configured, guest, .. } = &mut *vm;
        let balloon = configured.balloon.as_mut().ok_or("Balloon device not configured.")?;
        balloon.amount_mib = mib;
        if let Some(guest) = guest {
            guest.give_back(mib);
        }
        Ok(())
    }

    fn set_life(&self, vm: &mut Vm, life: Life) {
        vm.life = life;
        self.life_changed.notify_all();
    }
}

impl Configured {
    /// True if anything but the logger was set.
    fn is_begun(&self) -> bool {
        self.machine.is_some()
            || self.boot.is_some()
            || !self.drives.is_empty()
            || !self.interfaces.is_empty()
    }
}

fn kind(machine: &Machine) -> PageKind {
    match machine.huge_pages.as_deref() {
        Some("2M") => PageKind::Huge,
        _ => PageKind::Small,
    }
}
