//! Snapshots of a disk: the volumes it takes and gives back.

use rekindle_disk::{Overlay, OverlayError};
use rekindle_engine::limits::MANIFEST_PAGES_MAX;
use rekindle_metrics::{Metrics, Observed};
use rekindle_vmm::copied_memory::copy_volume;

use crate::client::{Client, Style, TRIM, WRITE_ZEROES};
use crate::stand::{PAGE, Stand, content, disk_name, disk_of, word};

#[test]
fn a_disk_takes_memory_for_what_is_written_and_gives_back_what_is_discarded() {
    let stand = Stand::new();
    let bytes = 4096 * PAGE;
    let disk = stand.disk(bytes, None);
    let held = || disk.overlay().bytes_held().unwrap();
    let mut client = Client::connect(&stand.socket(), Style::Oldest).unwrap();
    client.without_data(WRITE_ZEROES, 0, 0, word(bytes)).unwrap();
    client.read(0, bytes).unwrap();
    assert_eq!(held(), 0, "zeroes and reads take none");
    client.write(0, &vec![1; 100 * PAGE]).unwrap();
    client.write(200 * 4096 + 10, b"a part of a page").unwrap();
    assert_eq!(held(), 101 * 4096);
    client.without_data(TRIM, 0, 100, 50 * 4096).unwrap();
    assert_eq!(held(), 52 * 4096);
    client.without_data(WRITE_ZEROES, 0, 0, word(bytes)).unwrap();
    assert_eq!(held(), 0);
    let stats = disk.stats();
    assert_eq!((stats.requests, stats.failed_requests, stats.cold_requests), (6, 0, 0));
    assert_eq!((stats.bytes_read, stats.bytes_written), (word(bytes), 100 * 4096 + 16));
    assert_eq!(stats.bytes_zeroed, 2 * word(bytes) + 50 * 4096);
}

#[test]
fn what_a_disk_did_is_measured_once_also_when_it_is_gone() {
    let (stand, metrics) = (Stand::new(), Metrics::new());
    let disk = stand.disk(PAGE, None);
    metrics.disk_served(disk.watch());
    let mut client = Client::connect(&stand.socket(), Style::Oldest).unwrap();
    client.write(0, &[1; 500]).unwrap();
    client.read(0, 300).unwrap();
    client.read(word(PAGE), 1).unwrap_err();
    let assert_measured = || {
        let text = metrics.render(&Observed::default());
        for line in
            ["requests_total 3", "failed_requests_total 1", "read_bytes_total 300", "written_bytes_total 500"]
        {
            assert!(text.contains(&format!("\nrekindle_disk_{line}\n")), "{line}: {text}");
        }
    };
    assert_measured();
    disk.end();
    assert_measured();
    assert_measured();
}

#[test]
fn a_child_has_only_what_was_written() {
    let stand = Stand::new();
    let mut model = content(21, 600 * PAGE);
    let parent = stand.snapshot(&model);
    let disk = stand.disk(600 * PAGE, Some(&parent));
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    let new = vec![0x5a; 3 * PAGE];
    client.write(word(70 * PAGE), &new).unwrap();
    client.without_data(WRITE_ZEROES, 0, word(200 * PAGE), word(10 * PAGE)).unwrap();
    model[70 * PAGE..73 * PAGE].copy_from_slice(&new);
    model[200 * PAGE..210 * PAGE].fill(0);
    let volume = disk.freeze().volume(disk_name()).unwrap();
    assert_eq!((volume.pages.kept.len(), volume.pages.zero.len()), (3, 10));
    let child = stand.commit(Some(&parent), volume);
    disk.end();
    assert!(stand.read(&child, model.len()) == model);
    let (elsewhere, cold) = stand.cold(&child);
    assert!(elsewhere.read(&cold, model.len()) == model, "from the store");
}

#[test]
fn a_disk_goes_on_from_a_checkpoint_with_nothing_written() {
    let stand = Stand::new();
    let mut model = content(22, 600 * PAGE);
    let mut parent = stand.snapshot(&model);
    let disk = stand.disk(600 * PAGE, Some(&parent));
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    for round in 1..4_u8 {
        // A part of a page that the round before wrote as well, whole pages, zeroes.
        let places = [(70 * PAGE + 100, 200), (usize::from(round) * 80 * PAGE, 3 * PAGE)];
        for (start, bytes) in places {
            client.write(word(start), &vec![round; bytes]).unwrap();
            model[start..start + bytes].fill(round);
        }
        let zeroes = (usize::from(round) * 100 + 7) * PAGE;
        client.without_data(WRITE_ZEROES, 0, word(zeroes), word(10 * PAGE)).unwrap();
        model[zeroes..zeroes + 10 * PAGE].fill(0);
        assert!(disk.overlay().is_changed());
        let frozen = disk.freeze();
        let volume = copy_volume(frozen.volume(disk_name()).unwrap()).unwrap();
        assert_eq!((volume.pages.kept.len(), volume.pages.zero.len()), (4, 10), "round {round}");
        parent = stand.commit(Some(&parent), volume);
        frozen.rebase(disk_of(&parent)).unwrap();
        frozen.thaw();
        assert_eq!(disk.overlay().bytes_held().unwrap(), 0);
        assert!(!disk.overlay().is_changed(), "round {round}");
        assert!(client.read(0, model.len()).unwrap() == model, "round {round}");
        assert!(stand.read(&parent, model.len()) == model, "round {round}");
    }
    client.write(0, &[9; 10]).unwrap();
    model[..10].fill(9);
    let files = disk.overlay().files().unwrap();
    disk.end();
    let again = stand.serve(600 * PAGE, Some(disk_of(&parent)), Overlay::recover(files).unwrap());
    let mut client = Client::connect(&stand.socket(), Style::Structured).unwrap();
    assert!(client.read(0, model.len()).unwrap() == model, "under the next server");
    drop(again);
}

#[test]
fn a_disk_that_no_volume_can_be_is_refused() {
    for bytes in [0, u64::from(MANIFEST_PAGES_MAX) * 4096 + 1, u64::MAX] {
        assert!(matches!(Overlay::create(bytes), Err(OverlayError::Size { .. })), "{bytes}");
    }
}
