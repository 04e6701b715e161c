//! Raw images as the first content of a disk.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rekindle_disk::{ImageFile, ImportError, Imported, whole_sectors};
use rekindle_input::asker::Asker;

use crate::client::{Client, Style};
use crate::stand::{PAGE, Stand, content, disk_name, word};

const ALL: u64 = 1 << 30;

fn import(path: &Path, data_bytes_max: u64) -> Result<Imported, ImportError> {
    ImageFile::open(path)?.import(data_bytes_max, &Asker::default())
}

#[test]
fn an_image_becomes_a_disk_of_whole_sectors_and_its_zeroes_take_no_memory() {
    let stand = Stand::new();
    let path = stand.file("disk.raw");
    for bytes in [1, 511, PAGE, PAGE + 1, 300 * PAGE + 512, 700 * PAGE] {
        let model = content(word(bytes), bytes);
        std::fs::write(&path, &model).unwrap();
        let image = import(&path, ALL).unwrap();
        assert_eq!(image.bytes, whole_sectors(word(bytes)));
        assert_eq!(image.memfd.allocated_bytes().unwrap(), u64::from(image.pages.kept.len()) * 4096);
        let snapshot = stand.commit(None, image.into_volume(disk_name()));
        assert!(stand.read(&snapshot, bytes) == model, "{bytes} bytes");
        let sectors = bytes.next_multiple_of(512);
        let disk = stand.disk(sectors, Some(&snapshot));
        let mut client = Client::connect(&stand.socket(), Style::Oldest).unwrap();
        assert_eq!(client.bytes, word(sectors));
        let mut model = model;
        model.resize(sectors, 0);
        assert!(client.read(0, sectors).unwrap() == model);
        let last = word(sectors) - 512;
        client.write(last, &[7; 512]).unwrap();
        model[sectors - 512..].fill(7);
        assert!(client.read(0, sectors).unwrap() == model, "the last sector of {bytes} bytes is written");
        disk.end();
    }
}

#[test]
fn a_sparse_image_of_a_terabyte_is_imported_by_its_data() {
    let stand = Stand::new();
    let path = stand.file("sparse.raw");
    let file = File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"front", 0).unwrap();
    file.write_all_at(b"middle", (1 << 39) + 4093).unwrap();
    file.write_all_at(b"end", (1 << 40) - 3).unwrap();
    let image = import(&path, ALL).unwrap();
    assert_eq!((image.bytes, image.pages.kept.len()), (1 << 40, 4));
    let mut found = [0; 6];
    image.memfd.read_at(&mut found, (1 << 39) + 4093).unwrap();
    assert_eq!(&found, b"middle");
    assert!(matches!(import(&path, 3 * 4096), Err(ImportError::TooMuchData { .. })));
    let mut opened = ImageFile::open(&path).unwrap();
    let data = opened.data_bytes().unwrap();
    assert!((4 * 4096..1 << 20).contains(&data), "{data} bytes are no holes");
    assert_eq!(opened.count_bytes(&Asker::default()).unwrap(), 4 * 4096);
    file.set_len((1 << 40) + 1).unwrap();
    assert!(matches!(import(&path, ALL), Err(ImportError::Size { .. })));
}

#[test]
fn what_is_no_raw_image_is_refused() {
    let stand = Stand::new();
    let path = stand.file("image");
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(import(&path, ALL), Err(ImportError::Size { bytes: 0 })));
    std::fs::write(&path, b"QFI\xfb and so on").unwrap();
    assert!(matches!(import(&path, ALL), Err(ImportError::Qcow2)));
    assert!(matches!(import(path.parent().unwrap(), ALL), Err(ImportError::File(_))));
    assert!(matches!(import("/dev/zero".as_ref(), ALL), Err(ImportError::File(_))));
    assert!(matches!(import(&stand.file("none"), ALL), Err(ImportError::File(_))));
    let pipe = stand.file("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    assert!(matches!(import(&pipe, ALL), Err(ImportError::File(_))), "and nobody waits for a writer");
}
