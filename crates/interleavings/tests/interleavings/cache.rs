//! Layers of equal bytes: one handle, one file, and no removal of a file that another handle lies over.

use std::path::Path;
use std::sync::Arc;

use engine_under_shuttle::cache::Cache;
use engine_under_shuttle::geometry::GuestPage;
use engine_under_shuttle::key_ring::KeyRing;
use engine_under_shuttle::layer::Layer;
use engine_under_shuttle::pack::pack_pages;
use engine_under_shuttle::page_set::PageSet;
use shuttle::thread;

use crate::node::{PAGES, directory};
use crate::schedule::random;

fn pack(cache: &Cache) -> Arc<Layer> {
    let mut pages = PageSet::new(PAGES);
    pages.insert(GuestPage::FIRST);
    let packed = pack_pages(&pages, cache, cache.keys().own(), |_, into| {
        into.fill(7);
        Ok(())
    });
    packed.expect("the disk has room").expect("a page was kept")
}

fn files_in(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory)
        .expect("the directory is there")
        .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
        .collect()
}

/// Case 8.
#[test]
fn equal_bytes_packed_twice_at_once_share_a_handle_and_its_file() {
    let disk = directory();
    random(3000, move || {
        let cache =
            Arc::new(Cache::open(disk.path(), KeyRing::of_name("shared")).expect("the directory is there"));
        let packing = [(); 2].map(|()| {
            let cache = Arc::clone(&cache);
            thread::spawn(move || pack(&cache))
        });
        let layers = packing.map(|packing| packing.join().expect("packing ended"));
        assert!(Arc::ptr_eq(&layers[0], &layers[1]), "two handles of one layer");
        assert_eq!(files_in(disk.path()), [format!("{}.raw", layers[0].id())]);
        drop(layers);
        assert!(files_in(disk.path()).is_empty(), "a layer that nobody names stays");
    });
}

/// Case 8: the only copy.
#[test]
fn a_layer_packed_again_while_its_last_owner_goes_keeps_its_file() {
    let disk = directory();
    random(3000, move || {
        let cache =
            Arc::new(Cache::open(disk.path(), KeyRing::of_name("shared")).expect("the directory is there"));
        let old = pack(&cache);
        let packing = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || pack(&cache))
        };
        let going = thread::spawn(move || drop(old));
        going.join().expect("going is always possible");
        let layer = packing.join().expect("packing ended");
        assert_eq!(files_in(disk.path()), [format!("{}.raw", layer.id())]);
    });
}
