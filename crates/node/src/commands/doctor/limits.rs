//! Checks of the system's limits on this user's processes and on this machine's memory.

use rekindle_settings::{Settings, memory_bytes};
use rustix::process::{Resource, getrlimit};

use super::Check;
use crate::commands::shown::size;

/// Open files that a running sandbox and its snapshot take in the daemon.
const FILES_A_SANDBOX: u64 = 12;

/// Open files with which a daemon has room for more sandboxes than a machine has RAM for, mostly.
const FILES_WANTED: u64 = 16_384;

/// Mappings that a process has room for by default (DEFAULT_MAX_MAP_COUNT, linux/mm.h).
const MAPPINGS_USUAL: u64 = 65_530;

/// Looks at all of them.
pub(super) fn look(settings: &Settings) -> Vec<Check> {
    vec![open_files(), mappings(), locked_memory(), memory(settings), overcommit()]
}

fn open_files() -> Check {
    let name = "open files";
    let (_, hard) = limit(Resource::Nofile);
    let Some(hard) = hard else { return Check::ok(name, "any number a process") };
    let found = format!("{hard} a process: room for some {} sandboxes", hard / FILES_A_SANDBOX);
    if hard < FILES_WANTED {
        let advice = format!(
            "raise it: LimitNOFILE={FILES_WANTED} in the unit, or `ulimit -Hn {FILES_WANTED}` as root"
        );
        return Check::warn(name, found, advice);
    }
    Check::ok(name, found)
}

fn mappings() -> Check {
    let name = "mappings";
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    match text.trim().parse::<u64>() {
        Ok(count) if count < MAPPINGS_USUAL => Check::warn(
            name,
            format!("at most {count} a process; each capture and each open layer takes one"),
            format!("sudo sysctl vm.max_map_count={}", 4 * MAPPINGS_USUAL),
        ),
        Ok(count) => Check::ok(name, format!("at most {count} a process")),
        Err(_) => Check::ok(name, "/proc/sys/vm/max_map_count cannot be read"),
    }
}

fn locked_memory() -> Check {
    let (soft, _) = limit(Resource::Memlock);
    let said = soft.map_or_else(|| "any amount".to_owned(), size);
    Check::ok("locked memory", format!("{said}; rekindle locks none"))
}

fn limit(resource: Resource) -> (Option<u64>, Option<u64>) {
    let limit = getrlimit(resource);
    (limit.current, limit.maximum)
}

fn memory(settings: &Settings) -> Check {
    let name = "RAM";
    let (Some(total), Some(available)) = (memory_bytes("MemTotal"), memory_bytes("MemAvailable")) else {
        return Check::warn(name, "/proc/meminfo cannot be read", "mount /proc");
    };
    let captures = settings.capture_bytes_max;
    let found =
        format!("{} of {} are available; captures may hold {}", size(available), size(total), size(captures));
    if captures > total {
        let advice =
            "captures could fill all RAM: set capture_bytes_max to what guests leave, such as half of it";
        return Check::warn(name, found, advice);
    }
    Check::ok(name, found)
}

fn overcommit() -> Check {
    let name = "overcommit";
    let mode = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    match mode.trim() {
        "2" => Check::warn(
            name,
            "is strict (vm.overcommit_memory is 2): every guest's memory counts in full, touched or not",
            "sudo sysctl vm.overcommit_memory=0",
        ),
        _ => Check::ok(name, "guests' untouched memory costs nothing"),
    }
}
