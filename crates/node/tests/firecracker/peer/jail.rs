//! The jailer: a root of its own, no descriptors but the standard streams, and the user it was told.

use std::path::{Path, PathBuf};

use rekindle_kernel::{Features, Userfaultfd};

use super::settings::Settings;
use super::{Arguments, play};

/// Plays the jailer, then Firecracker in the jail.
pub(super) fn run(settings: &Path, words: &[String]) {
    let of = |name: &str| {
        let at = words.iter().position(|word| word == name).expect("the jailer is told everything it needs");
        words[at + 1].clone()
    };
    let (id, program) = (of("--id"), PathBuf::from(of("--exec-file")));
    let name = program.file_name().expect("a program has a name");
    let root = PathBuf::from(of("--chroot-base-dir")).join(name).join(&id).join("root");
    std::fs::create_dir_all(&root).expect("the jail can be made");
    let end = words.iter().position(|word| word == "--").expect("Firecracker's own words follow");
    let mut own: Vec<String> = vec!["--id".into(), id];
    own.extend(words[end + 1..].iter().cloned());
    let userfaultfd = Userfaultfd::open(Features::EVENT_REMOVE).expect("the jailer runs as root");
    // The jail has nothing but what was put there, so its settings are put there too.
    let requests = Some(PathBuf::from("/requests"));
    Settings { requests, ..Settings::read(settings) }.write(&root.join("settings.json"));
    rustix::process::chroot(&root).expect("the jailer runs as root");
    std::env::set_current_dir("/").expect("a root can be entered");
    assert!(!Path::new("/proc").exists(), "a jail has no /proc");
    let arguments = Arguments::of(&own);
    play(PathBuf::from("/settings.json"), Some(userfaultfd), arguments);
}
