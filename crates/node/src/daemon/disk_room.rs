//! Room on the disk of the state directory.

use std::path::Path;

use bytesize::ByteSize;

/// Bytes below which it is full: some writes of the catalog, and what is held back for it.
const ROOM_MIN: u64 = 16 << 20;

/// That the disk of a state directory is full, and what to do, if it is.
pub(super) fn no_room(state_directory: &Path) -> Option<String> {
    let directory = state_directory.display();
    let disk = match rustix::fs::statvfs(state_directory) {
        Ok(disk) => disk,
        Err(error) => {
            return Some(format!("the disk of state_directory ({directory}) cannot be asked: {error}"));
        }
    };
    let [left, total] = [disk.f_bavail, disk.f_blocks].map(|blocks| blocks.saturating_mul(disk.f_frsize));
    (left < ROOM_MIN).then(|| {
        format!(
            "the disk of state_directory ({directory}) is full: {} of {} are left, and {} are needed: make room, delete \
             what is not needed, or set state_directory to a place on a larger disk",
            ByteSize(left),
            ByteSize(total),
            ByteSize(ROOM_MIN)
        )
    })
}
