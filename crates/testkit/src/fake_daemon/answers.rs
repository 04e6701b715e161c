//! Answers of the daemon that depend on little.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{
    ConsoleOutput, PageClasses, PlacedLayer, Sandbox, Snapshot, SnapshotState, SnapshotUsage,
    StoreVerification, StoreVerificationState, StoredSnapshot, Verification, WithdrawnSnapshot,
};
use serde_json::{Value, json};
use uuid::Uuid;

/// Name of a snapshot that is damaged.
const DAMAGED: &str = "damaged";

/// Number of pages that a guest told to compare finds one wrong in.
const UNLUCKY: u64 = 13;

/// Classes of the pages of every sealed snapshot.
pub(super) const CLASSES: PageClasses = PageClasses { dirty: 65_536, zero: 100, equal: 400, kept: 65_036 };

/// A guest's answer to a command; one that it does not know is repeated.
pub(super) fn of_guest(command: &Value) -> Value {
    let written = |new: u32, zero: u32, same: u32| json!({ "new_pages": new, "zero_pages": zero, "same_pages": same, "nanoseconds": 30_000_000 });
    let wrong = u32::from(command["pages"] == UNLUCKY);
    let verified =
        json!({ "pages": 65_536, "mismatches": wrong, "first_mismatch": null, "nanoseconds": 20_000_000 });
    match command["command"].as_str() {
        Some("fill") => written(65_536, 0, 0),
        Some("rewrite") => written(26_000, 3_300, 3_200),
        Some("discard") => json!({ "pages": 100, "nanoseconds": 40_000 }),
        Some("tick") => json!({ "count": 3, "verified": verified }),
        Some("state") => json!({ "count": 3, "history": [{ "fill": { "seed": 1 } }] }),
        Some("verify") => verified,
        Some(_) | None => json!({ "told": command }),
    }
}

/// A channel whose guest gives back all bytes, and then ends it where a line says `end`.
pub(super) fn echo() -> io::Result<UnixStream> {
    let (stream, guest) = UnixStream::pair()?;
    let echo = move || -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut reader = BufReader::new(guest.try_clone()?);
        while reader.read_until(b'\n', &mut bytes)? > 0 && bytes != b"end\n" {
            (&guest).write_all(&std::mem::take(&mut bytes))?;
        }
        Ok(())
    };
    // An error says that its client is gone.
    std::thread::Builder::new().name("echo".into()).spawn(move || echo().ok())?;
    Ok(stream)
}

/// Output of a console from a place on.
pub(super) fn of_console(from: u64) -> ConsoleOutput {
    let output = b"tick 1";
    let skipped = usize::try_from(from).unwrap_or(output.len()).min(output.len());
    let at = |place: usize| u64::try_from(place).expect("the output is short");
    let bytes = BASE64_STANDARD.encode(&output[skipped..]);
    ConsoleOutput { from: at(skipped), next: at(output.len()), bytes }
}

/// Findings about a snapshot; one that is called damaged is.
pub(super) fn of_verification(snapshot: &Snapshot) -> Verification {
    let is_damaged = snapshot.name.as_deref() == Some(DAMAGED);
    let store = if snapshot.state == SnapshotState::Published {
        StoreVerification {
            state: StoreVerificationState::Asked,
            objects: 3,
            wrong_objects: u64::from(is_damaged),
            reason: is_damaged.then(|| "layers/a7a7/0199 is not in the store".to_owned()),
        }
    } else {
        let state = StoreVerificationState::NotPublished;
        StoreVerification { state, objects: 0, wrong_objects: 0, reason: None }
    };
    Verification {
        snapshot: snapshot.id,
        pages: 65_536,
        wrong_pages: u64::from(is_damaged),
        first: is_damaged.then(|| "page 7 of memory: frame 0 of layer a7a7 has another digest".to_owned()),
        store,
    }
}

/// Bytes of the objects that belong to no snapshot.
pub(super) const BOOKKEEPING_BYTES: u64 = 300;

/// Bytes of a snapshot: a manifest and a layer of its own, once it is published.
pub(super) fn usage_of(snapshot: &Snapshot) -> SnapshotUsage {
    let is_published = snapshot.state == SnapshotState::Published;
    let (own_bytes, unique_bytes) = if is_published { (4 << 10, 96 << 20) } else { (0, 0) };
    SnapshotUsage {
        snapshot: snapshot.id,
        stored_bytes: own_bytes + unique_bytes,
        own_bytes,
        unique_bytes,
        shared_bytes: 0,
        freed_bytes: own_bytes + unique_bytes,
        local_bytes: layers(snapshot).iter().map(|layer| layer.local_bytes).sum(),
    }
}

/// The layers of a snapshot: one, once it is sealed.
pub(super) fn layers(snapshot: &Snapshot) -> Vec<PlacedLayer> {
    if snapshot.state == SnapshotState::Captured {
        return Vec::new();
    }
    vec![PlacedLayer { id: "a7".repeat(32), bytes: 1 << 28, local_bytes: 1 << 27, stored_bytes: None }]
}

/// Seconds for which a deleted snapshot can be brought back.
pub(super) const UNDELETE_SECONDS: u64 = 3600;

/// A deleted snapshot that can be brought back.
pub(super) fn withdrawn(snapshot: &Snapshot) -> WithdrawnSnapshot {
    let deleted_unix_ms = snapshot.created_unix_ms;
    WithdrawnSnapshot {
        id: snapshot.id,
        deleted_by: Some("node-1".to_owned()),
        deleted_unix_ms,
        until_unix_ms: deleted_unix_ms + UNDELETE_SECONDS * 1000,
    }
}

/// A snapshot that another node published.
pub(super) fn published_elsewhere() -> StoredSnapshot {
    let id = Uuid::from_u128(0x0193_2f5e_7c00_7000_8000_0000_00e1_5e00);
    StoredSnapshot { id, name: None, is_known: false, stored_unix_ms: 1_700_000_000_000 }
}

/// The problem of a sandbox that is in another state than it must be.
pub(super) fn wrong_state(sandbox: &Sandbox, detail: &str) -> Problem {
    Problem::new(Code::WrongState, format!("sandbox {} {detail}", sandbox.id)).sandbox(sandbox.id)
}
