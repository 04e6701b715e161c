//! The catalog's file: one user, whole transactions, and clear errors about its faults.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use redb::{Database, TableDefinition};
use rekindle_engine::catalog::{Catalog, CatalogError, Change, Kind};
use rekindle_engine::change::CatalogListener;
use tempfile::TempDir;

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory can be made")
}

fn put(key: &str, value: &[u8]) -> Change {
    Change::Put { kind: Kind::Sandbox, key: key.as_bytes().to_vec(), value: value.to_vec() }
}

fn value(catalog: &Catalog, key: &str) -> Option<Vec<u8>> {
    catalog.get(Kind::Sandbox, key.as_bytes()).expect("it can be read")
}

#[test]
fn what_was_written_is_there_when_it_is_opened_again() {
    let directory = directory();
    let path = directory.path().join("catalog.redb");
    let catalog = Catalog::open(&path).expect("a new one");
    catalog.write(&[put("a", b"1"), put("b", b"2"), put("a", b"3")]).expect("room");
    let remove = Change::Remove { kind: Kind::Sandbox, key: b"b".to_vec() };
    catalog.write(&[remove.clone(), remove]).expect("removing twice is removing");
    drop(catalog);
    let catalog = Catalog::open(&path).expect("it was closed");
    assert_eq!(catalog.all(Kind::Sandbox), Ok(vec![(b"a".to_vec(), b"3".to_vec())]));
    assert_eq!(catalog.all(Kind::Snapshot), Ok(vec![]));
}

#[test]
fn an_image_of_the_file_taken_at_any_time_has_everything_that_was_written_before() {
    let directory = directory();
    let path = directory.path().join("catalog.redb");
    let catalog = Catalog::open(&path).expect("a new one");
    for number in 0..20_u8 {
        catalog.write(&[put(&number.to_string(), &[number; 3000])]).expect("room");
        let image = directory.path().join(format!("image-{number}.redb"));
        std::fs::copy(&path, &image).expect("room");
        let found = Catalog::open(&image).expect("as a crash leaves it");
        assert_eq!(found.all(Kind::Sandbox).expect("it can be read").len(), usize::from(number) + 1);
        assert_eq!(value(&found, &number.to_string()), Some(vec![number; 3000]));
    }
}

#[derive(Debug, Default)]
struct Told(Mutex<Vec<u64>>);

impl CatalogListener for Told {
    fn made(&self, transactions: u64) {
        self.0.lock().expect("nobody panics").push(transactions);
    }
}

#[test]
fn an_older_copy_of_it_was_made_by_fewer_transactions_and_each_of_them_is_told() {
    let directory = directory();
    let (path, copy) = (directory.path().join("catalog.redb"), directory.path().join("copy.redb"));
    let catalog = Catalog::open(&path).expect("a new one");
    catalog.write(&[put("a", b"1")]).expect("room");
    std::fs::copy(&path, &copy).expect("room");
    let told = Arc::new(Told::default());
    catalog.tell(told.clone());
    catalog.write(&[put("b", b"2"), put("c", b"3")]).expect("room");
    catalog.write_with_last_room(&[put("a", b"4")]).expect("room");
    let now = catalog.transactions().expect("it can be read");
    assert_eq!(*told.0.lock().expect("nobody panics"), [now - 1, now]);
    drop(catalog);
    let copy = Catalog::open(&copy).expect("it is whole");
    assert_eq!(copy.transactions().expect("it can be read"), now - 2);
    let again = Catalog::open(&path).expect("it was closed");
    assert_eq!(again.transactions().expect("it can be read"), now);
}

#[test]
fn a_second_user_is_told_who_has_it() {
    let directory = directory();
    let path = directory.path().join("catalog.redb");
    let catalog = Catalog::open(&path).expect("a new one");
    let refused = Catalog::open(&path).expect_err("it has a user");
    assert_eq!(refused, CatalogError::Held { path: path.clone() });
    assert!(refused.to_string().contains("catalog.redb is in use by another daemon"), "{refused}");
    let shared = catalog.clone();
    drop(catalog);
    Catalog::open(&path).expect_err("a clone is a user");
    drop(shared);
    Catalog::open(&path).expect("it has no user");
}

#[test]
fn the_file_of_a_newer_program_is_refused_and_left_alone() {
    let directory = directory();
    let path = directory.path().join("catalog.redb");
    drop(Catalog::open(&path).expect("a new one"));
    let database = Database::create(&path).expect("it was closed");
    let transaction = database.begin_write().expect("nobody else writes");
    let about: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
    transaction.open_table(about).expect("it is there").insert("format", 7).expect("room");
    transaction.commit().expect("room");
    drop(database);
    let refused = Catalog::open(&path).expect_err("it is newer");
    assert_eq!(refused, CatalogError::Newer { path, found: 7 });
}

#[test]
fn a_damaged_file_is_refused_by_name() {
    let directory = directory();
    let path = directory.path().join("catalog.redb");
    std::fs::write(&path, [7; 9000]).expect("room");
    let refused = Catalog::open(&path).expect_err("it is no catalog");
    assert!(matches!(refused, CatalogError::Damaged { .. }), "{refused}");
    assert!(refused.to_string().contains("catalog.redb"), "{refused}");
}

#[test]
fn a_flipped_byte_of_a_record_is_found_when_the_file_is_opened() {
    let directory = directory();
    let path = directory.path().join("catalog.redb");
    let catalog = Catalog::open(&path).expect("a new one");
    catalog.write(&[put("sandbox", &[0xa5; 100])]).expect("room");
    drop(catalog);
    let bytes = std::fs::read(&path).expect("it is there");
    let at =
        bytes.windows(100).position(|window| window == [0xa5; 100]).expect("values lie there as they are");
    let file = OpenOptions::new().write(true).open(&path).expect("it is there");
    file.write_all_at(&[0xa4], u64::try_from(at + 50).expect("64 bits")).expect("a disk");
    let refused = Catalog::open(&path).expect_err("a checksum is wrong");
    assert!(matches!(refused, CatalogError::Damaged { .. }), "{refused}");
}

#[test]
fn writers_at_the_same_time_each_have_their_changes_on_the_disk() {
    let directory = directory();
    let path = directory.path().join("catalog.redb");
    let catalog = Catalog::open(&path).expect("a new one");
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let catalog = &catalog;
            scope.spawn(move || {
                for number in 0..10 {
                    let key = format!("{writer}-{number}");
                    catalog.write(&[put(&key, key.as_bytes())]).expect("room");
                    assert_eq!(value(catalog, &key), Some(key.into_bytes()));
                }
            });
        }
    });
    drop(catalog);
    let catalog = Catalog::open(&path).expect("it was closed");
    assert_eq!(catalog.all(Kind::Sandbox).expect("it can be read").len(), 80);
}
