//! Kinds of settings' values: each kind is parsed and shown in one place.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use bytesize::ByteSize;
use percent_encoding::percent_decode_str;
use rekindle_bucket::BucketUrl;
use rekindle_engine::identity::DomainName;
use rekindle_engine::learning::Prefault;
use rekindle_engine::limits;
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::StoreLocation;
use super::error::Source;
use super::keep_rules::KeepRule;
use super::layers::{GivenValue, RawValue};
use super::times::{parse_time, show_time};
use crate::memory_mode::MemoryMode;
use crate::room::Room;
use crate::telemetry::{LogFormat, spans_url};

/// A kind of value: how one is understood, and how it is shown to people and to programs. A refusal of a value says
/// what it must be instead.
pub(super) struct Kind<T> {
    pub(super) parse: fn(&GivenValue) -> Result<T, String>,
    pub(super) show: fn(&T) -> (String, Value),
}

pub(super) const PATH: Kind<PathBuf> = Kind { parse: path, show: |path| text(path.display().to_string()) };
pub(super) const STORE: Kind<StoreLocation> = Kind { parse: store, show: |store| text(store.to_string()) };
pub(super) const ENDPOINT: Kind<String> = Kind { parse: endpoint, show: |url| text(url.clone()) };
pub(super) const DOMAIN: Kind<DomainName> = Kind { parse: domain, show: |domain| text(domain.to_string()) };
pub(super) const BYTES: Kind<u64> =
    Kind { parse: bytes, show: |bytes| (ByteSize::b(*bytes).to_string(), json!(bytes)) };
pub(super) const ROOM: Kind<Room> = Kind { parse: room, show: |room| text(room.to_string()) };
pub(super) const RATE: Kind<Option<NonZeroU64>> = Kind {
    parse: rate,
    show: |rate| {
        let bytes = rate.map_or(0, NonZeroU64::get);
        (if bytes == 0 { "0".to_owned() } else { ByteSize::b(bytes).to_string() }, json!(bytes))
    },
};
pub(super) const TIME: Kind<Duration> =
    Kind { parse: time, show: |time| (show_time(*time), json!(time.as_secs_f64())) };
pub(super) const SILENCE: Kind<Duration> = Kind { parse: silence, ..TIME };
pub(super) const COUNT: Kind<usize> = Kind { parse: count, show: |count| (count.to_string(), json!(count)) };
pub(super) const WORKERS: Kind<Option<usize>> = Kind {
    parse: workers,
    show: |workers| {
        workers.map_or_else(|| text("auto".to_owned()), |count| (count.to_string(), json!(count)))
    },
};
pub(super) const AUTO_COUNT: Kind<Option<usize>> = Kind { parse: auto_count, ..WORKERS };
pub(super) const PERCENT: Kind<u8> =
    Kind { parse: percent, show: |percent| (percent.to_string(), json!(percent)) };
pub(super) const SWITCH: Kind<bool> = Kind { parse: switch, show: |on| (on.to_string(), json!(on)) };
pub(super) const LEVEL: Kind<String> = Kind { parse: level, show: |level| text(level.clone()) };
pub(super) const PREFAULT: Kind<Prefault> = Kind {
    parse: prefault,
    show: |pages| {
        let shown = match pages {
            Prefault::Nothing => "none",
            Prefault::WorkingSet => "working-set",
            Prefault::All => "all",
        };
        text(shown.to_owned())
    },
};
pub(super) const MEMORY_MODE: Kind<MemoryMode> =
    Kind { parse: |said| MemoryMode::parse(said.value.text()), show: |mode| text(mode.word().to_owned()) };
pub(super) const FORMAT: Kind<LogFormat> =
    Kind { parse: format_of_log, show: |format| text(format.to_string()) };
pub(super) const USERS: Kind<Vec<u32>> = Kind {
    parse: users,
    show: |users| {
        let shown: Vec<String> = users.iter().map(u32::to_string).collect();
        (if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }, json!(users))
    },
};
pub(super) const KEEP: Kind<Vec<KeepRule>> = Kind {
    parse: keep,
    show: |rules| {
        let shown: Vec<String> = rules.iter().map(KeepRule::to_string).collect();
        (if shown.is_empty() { "everything".to_owned() } else { shown.join(", ") }, json!(shown))
    },
};
pub(super) const USER: Kind<u32> = Kind { parse: user, show: |user| (user.to_string(), json!(user)) };
pub(super) const ADDRESS: Kind<SocketAddr> =
    Kind { parse: address, show: |address| text(address.to_string()) };
pub(super) const COLLECTOR: Kind<String> = Kind { parse: collector, show: |url| text(url.clone()) };
pub(super) const NAME: Kind<String> = Kind { parse: name, show: |name| text(name.clone()) };

fn text(shown: String) -> (String, Value) {
    let value = Value::String(shown.clone());
    (shown, value)
}

/// A size such as `64MiB`, or a number of bytes. `1G` is 1GiB, as to QEMU and truncate; `1GB` is 1000000000 bytes.
pub fn parse_size(given: &str) -> Result<u64, String> {
    let given = given.trim();
    let is_bare_unit = given
        .strip_suffix(['k', 'K', 'm', 'M', 'g', 'G', 't', 'T'])
        .is_some_and(|number| number.ends_with(|letter: char| letter.is_ascii_digit()));
    let whole = if is_bare_unit { format!("{given}iB") } else { given.to_owned() };
    let size =
        ByteSize::from_str(&whole).map_err(|_| "write a size such as 64MiB or 4GiB, or a number of bytes")?;
    Ok(size.as_u64())
}

fn path(said: &GivenValue) -> Result<PathBuf, String> {
    let Some(given) = said.value.text() else { return Err("a path".to_owned()) };
    if given.is_empty() || given.starts_with('~') {
        return Err("a path, written in full (`~` is not expanded)".to_owned());
    }
    absolute(Path::new(given), &said.source)
}

/// Relative paths are relative to the settings file they stand in, else to the current directory.
fn absolute(path: &Path, source: &Source) -> Result<PathBuf, String> {
    let beside = match source {
        Source::File { path: file, .. } => file.parent().map(|directory| directory.join(path)),
        Source::Default | Source::Variable(_) | Source::Flag(_) => None,
    };
    std::path::absolute(beside.as_deref().unwrap_or(path))
        .map_err(|error| format!("a path that exists: {error}"))
}

fn store(said: &GivenValue) -> Result<StoreLocation, String> {
    let Some(given) = said.value.text() else { return Err("a directory or a URL".to_owned()) };
    if given.get(..FILE_URL.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(FILE_URL)) {
        return file_url(&given[FILE_URL.len()..]).map(StoreLocation::Directory);
    }
    match given.split_once("://") {
        Some((scheme, rest)) => BucketUrl::parse(scheme, rest).map(StoreLocation::Bucket),
        None => path(said).map(StoreLocation::Directory),
    }
}

/// Beginning of a file's URL.
const FILE_URL: &str = "file://";

/// The path of a file:// URL (RFC 8089): on this machine, and with every `%XX` decoded.
fn file_url(rest: &str) -> Result<PathBuf, String> {
    let expected = || {
        "a file:// URL with an absolute path, such as file:///srv/store, in which ?, # and % are written %3F, %23 and %25"
            .to_owned()
    };
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') || path.contains(['?', '#']) {
        return Err(expected());
    }
    let mut parts = path.split('%');
    let is_encoded =
        |part: &str| part.len() >= 2 && part.bytes().take(2).all(|digit| digit.is_ascii_hexdigit());
    let first = parts.next();
    if first.is_none() || !parts.all(is_encoded) {
        return Err(expected());
    }
    let bytes: Vec<u8> = percent_decode_str(path).collect();
    if bytes.contains(&0) { Err(expected()) } else { Ok(PathBuf::from(OsString::from_vec(bytes))) }
}

fn domain(said: &GivenValue) -> Result<DomainName, String> {
    let expected = || "a name of 1 to 64 of a-z, 0-9 and -".to_owned();
    let Some(given) = said.value.text() else { return Err(expected()) };
    given.parse().map_err(|_| expected())
}

fn bytes(said: &GivenValue) -> Result<u64, String> {
    let expected = || "a size such as 64GiB, or a number of bytes, at least 1MiB".to_owned();
    size(said).filter(|bytes| *bytes >= ByteSize::mib(1).as_u64()).ok_or_else(expected)
}

fn room(said: &GivenValue) -> Result<Room, String> {
    let expected = || {
        "a size such as 200GiB, at least 1MiB, a share of the disk from 1% to 99%, or 0 for none".to_owned()
    };
    let share = said.value.text().and_then(|given| given.trim().strip_suffix('%'));
    if let Some(share) = share {
        let percent = share.trim().parse().ok().filter(|percent| (1..100).contains(percent));
        return percent.map(Room::Share).ok_or_else(expected);
    }
    match size(said).ok_or_else(expected)? {
        0 => Ok(Room::None),
        bytes if bytes >= ByteSize::mib(1).as_u64() => Ok(Room::Bytes(bytes)),
        _ => Err(expected()),
    }
}

/// A rate is at least as much as an upload's time limit allows for: the slowest line that is published over.
const RATE_MIN: u64 = 64 << 10;

fn rate(said: &GivenValue) -> Result<Option<NonZeroU64>, String> {
    let expected = || "a size such as 50MiB, at least 64KiB, or 0 for no limit".to_owned();
    let bytes = size(said).filter(|bytes| *bytes == 0 || *bytes >= RATE_MIN);
    bytes.map(NonZeroU64::new).ok_or_else(expected)
}

fn size(said: &GivenValue) -> Option<u64> {
    match &said.value {
        RawValue::Number(number) => u64::try_from(*number).ok(),
        RawValue::Text(given) => parse_size(given).ok(),
        RawValue::Truth(_) | RawValue::List(_) | RawValue::Other(_) => None,
    }
}

fn silence(said: &GivenValue) -> Result<Duration, String> {
    let given = time(said)?;
    let least = limits::NODE_ABANDONED_AFTER_MIN;
    if given < least { Err(format!("a time of {} or more", show_time(least))) } else { Ok(given) }
}

fn time(said: &GivenValue) -> Result<Duration, String> {
    let expected = || "a time such as 500ms, 30s, 5m, 1h or 7d".to_owned();
    match &said.value {
        RawValue::Number(number) => u64::try_from(*number).map(Duration::from_secs).map_err(|_| expected()),
        RawValue::Text(given) => parse_time(given),
        RawValue::Truth(_) | RawValue::List(_) | RawValue::Other(_) => Err(expected()),
    }
}

/// Counts are of things that are kept or waited for in RAM: a million is far beyond use.
const COUNT_MAX: usize = 1_000_000;

fn count(said: &GivenValue) -> Result<usize, String> {
    let number = match &said.value {
        RawValue::Number(number) => usize::try_from(*number).ok(),
        RawValue::Text(given) => given.parse().ok(),
        RawValue::Truth(_) | RawValue::List(_) | RawValue::Other(_) => None,
    };
    number
        .filter(|number| (1..=COUNT_MAX).contains(number))
        .ok_or_else(|| format!("a number from 1 to {COUNT_MAX}"))
}

fn workers(said: &GivenValue) -> Result<Option<usize>, String> {
    if said.value.text() == Some("auto") {
        return Ok(None);
    }
    let workers = count(said).ok().filter(|workers| *workers <= 1024);
    workers.map(Some).ok_or_else(|| "auto, or a number from 1 to 1024".to_owned())
}

fn auto_count(said: &GivenValue) -> Result<Option<usize>, String> {
    if said.value.text() == Some("auto") {
        return Ok(None);
    }
    count(said).map(Some).map_err(|expected| format!("auto, or {expected}"))
}

fn percent(said: &GivenValue) -> Result<u8, String> {
    let number = match &said.value {
        RawValue::Number(number) => u8::try_from(*number).ok(),
        RawValue::Text(given) => given.parse().ok(),
        RawValue::Truth(_) | RawValue::List(_) | RawValue::Other(_) => None,
    };
    number.filter(|percent| *percent <= 100).ok_or_else(|| "a number from 0 to 100".to_owned())
}

fn switch(said: &GivenValue) -> Result<bool, String> {
    let given = match &said.value {
        RawValue::Truth(truth) => return Ok(*truth),
        RawValue::Text(given) => given.as_str(),
        RawValue::Number(_) | RawValue::List(_) | RawValue::Other(_) => "",
    };
    match given {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

fn level(said: &GivenValue) -> Result<String, String> {
    let expected = || {
        "error, warn, info, debug, trace or off, also by module as in info,rekindle_engine=debug".to_owned()
    };
    let Some(given) = said.value.text() else { return Err(expected()) };
    // A word alone that is no level would be taken for a module whose everything is logged.
    let words = given.split(',').map(str::trim);
    let understood = words.clone().all(|word| word.contains('=') || LevelFilter::from_str(word).is_ok());
    if !understood || EnvFilter::try_new(given).is_err() { Err(expected()) } else { Ok(given.to_owned()) }
}

fn prefault(said: &GivenValue) -> Result<Prefault, String> {
    match said.value.text() {
        Some("none") => Ok(Prefault::Nothing),
        Some("working-set") => Ok(Prefault::WorkingSet),
        Some("all") => Ok(Prefault::All),
        Some(_) | None => Err("none, working-set or all".to_owned()),
    }
}

fn format_of_log(said: &GivenValue) -> Result<LogFormat, String> {
    match said.value.text() {
        Some("human") => Ok(LogFormat::Human),
        Some("json") => Ok(LogFormat::Json),
        Some(_) | None => Err("human or json".to_owned()),
    }
}

fn user(said: &GivenValue) -> Result<u32, String> {
    match users(said).as_deref() {
        Ok([id]) => Ok(*id),
        Ok(_) | Err(_) => Err("one id, a number such as 1000".to_owned()),
    }
}

fn users(said: &GivenValue) -> Result<Vec<u32>, String> {
    let expected = || "a list of user ids, such as [1000, 1001]".to_owned();
    let one = |value: &RawValue| match value {
        RawValue::Number(number) => u32::try_from(*number).map_err(|_| expected()),
        RawValue::Text(given) => given.trim().parse().map_err(|_| expected()),
        RawValue::Truth(_) | RawValue::List(_) | RawValue::Other(_) => Err(expected()),
    };
    match &said.value {
        RawValue::List(values) => values.iter().map(one).collect(),
        RawValue::Text(given) if given.is_empty() => Ok(Vec::new()),
        RawValue::Text(given) => given.split(',').map(|id| one(&RawValue::Text(id.to_owned()))).collect(),
        RawValue::Number(_) | RawValue::Truth(_) | RawValue::Other(_) => one(&said.value).map(|id| vec![id]),
    }
}

/// Rules in a list, or in a text with commas between them; none keeps everything.
fn keep(said: &GivenValue) -> Result<Vec<KeepRule>, String> {
    let one = |value: &RawValue| match value {
        RawValue::Text(given) => given.parse(),
        RawValue::Number(_) | RawValue::Truth(_) | RawValue::List(_) | RawValue::Other(_) => "".parse(),
    };
    match &said.value {
        RawValue::List(values) => values.iter().map(one).collect(),
        RawValue::Text(given) if given.is_empty() => Ok(Vec::new()),
        RawValue::Text(given) => given.split(',').map(str::parse).collect(),
        value @ (RawValue::Number(_) | RawValue::Truth(_) | RawValue::Other(_)) => {
            one(value).map(|rule| vec![rule])
        }
    }
}

fn address(said: &GivenValue) -> Result<SocketAddr, String> {
    let expected = || "an address and a port, such as 127.0.0.1:7433 or [::]:7433".to_owned();
    let Some(given) = said.value.text() else { return Err(expected()) };
    given.parse().map_err(|_| expected())
}

fn collector(said: &GivenValue) -> Result<String, String> {
    let expected =
        || "the address of a collector on this node, without TLS, such as http://127.0.0.1:4318".to_owned();
    let Some(given) = said.value.text() else { return Err(expected()) };
    let is_url = given.parse::<hyper::Uri>().is_ok_and(|url| url.host().is_some());
    match spans_url(given) {
        Ok(_) if is_url => Ok(given.to_owned()),
        Ok(_) | Err(_) => Err(expected()),
    }
}

/// The address of a service, without a `/` at its end.
fn endpoint(said: &GivenValue) -> Result<String, String> {
    let expected =
        || "the URL of a service, such as https://s3.example.org, without user, ? and #".to_owned();
    let Some(given) = said.value.text() else { return Err(expected()) };
    let Ok(url) = given.parse::<hyper::Uri>() else { return Err(expected()) };
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    if !is_http || url.host().is_none_or(str::is_empty) || given.contains(['@', '?', '#']) {
        return Err(expected());
    }
    Ok(given.trim_end_matches('/').to_owned())
}

fn name(said: &GivenValue) -> Result<String, String> {
    let given = said.value.text().filter(|given| !given.trim().is_empty());
    given.map(str::to_owned).ok_or_else(|| "a name".to_owned())
}
