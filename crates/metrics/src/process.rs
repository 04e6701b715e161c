//! The usual metrics of a process, under the names that Prometheus's own clients give them.

use std::fs;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};

/// Registers the present values of `/proc/self`; unreadable ones are left out.
pub(super) fn register(started: SystemTime, registry: &mut Registry) {
    let since_1970 = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    registry.register(
        "process_start_time_seconds",
        "When this process started, in seconds since 1970",
        ConstGauge::new(since_1970.as_secs_f64()),
    );
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        let rows = [
            ("VmRSS:", 1024, "process_resident_memory_bytes", "Resident memory, mapped captures included"),
            (
                "RssAnon:",
                1024,
                "process_resident_anonymous_bytes",
                "Resident memory that is this process's alone",
            ),
            ("Threads:", 1, "process_threads", "Threads"),
        ];
        for (key, unit, name, help) in rows {
            if let Some(value) = number_after(&status, key) {
                registry.register(name, help, ConstGauge::new(value * unit));
            }
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // The directory being read is one of them.
        let open = open.count().saturating_sub(1);
        registry.register("process_open_fds", "Open file descriptors", ConstGauge::new(open));
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        registry.register("process_max_fds", "File descriptors that may be open", ConstGauge::new(limit));
    }
    if let Some(time) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu_time) {
        registry.register(
            "process_cpu_seconds",
            "Processor time in user and system mode",
            ConstCounter::new(time.as_secs_f64()),
        );
    }
}

/// The number after `key` in a text of lines such as `VmRSS:  123 kB`.
fn number_after(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// User and system time of a line of `/proc/PID/stat`: fields 14 and 15, in clock ticks; the second field may contain
/// anything, so counting begins after its closing bracket.
fn cpu_time(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    Some(Duration::from_millis((user + system) * 1000 / ticks_per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_a_name_with_brackets() {
        let stat = "42 (a) b) c) S 1 42 42 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 1 0 100 0 0";
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(cpu_time(stat), Some(Duration::from_millis(400 * 1000 / ticks)));
        assert_eq!(cpu_time("42 (a"), None);
    }

    #[test]
    fn a_number_is_found_by_its_key() {
        assert_eq!(number_after("Name:\tx\nVmRSS:\t  123 kB\n", "VmRSS:"), Some(123));
        assert_eq!(number_after("Name:\tx\n", "VmRSS:"), None);
    }
}
