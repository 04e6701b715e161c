//! The key ring of a node: a file for its user alone, which the first start makes, and in which keys are replaced.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use rekindle_engine::catalog::{Catalog, CatalogError, Change, Kind, WriteError};
use rekindle_engine::identity::{DomainName, KeyId};
use rekindle_engine::key_ring::{KeyRing, SECRET_BYTES};
use rekindle_engine::key_ring_file::{KeyRingError, KeyRingFile, Rotation, RotationError};
use rekindle_engine::private::OTHERS;
use rekindle_input::regular_file::{FileError, RegularFile, TEXT_BYTES_MAX};

use rekindle_settings::Settings;

/// Reason that a key ring is not used.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingFileError {
    /// Other users may have read its secrets.
    #[error(
        "the key ring {} can be opened by other users (mode {mode:04o}): chmod 600 it, and set `key_ring` to another \
         file if they may have read it",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Its content is no key ring.
    #[error("the key ring {}: {source}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The fault in it.
        source: KeyRingError,
    },
    /// It cannot be read.
    #[error("the key ring {} cannot be read: {source}", path.display())]
    Unread {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: FileError,
    },
    /// It cannot be written.
    #[error(
        "the key ring {} cannot be written: {source}; have this user write there, or set `key_ring` to another place",
        path.display()
    )]
    Unwritten {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// There is no key in it that could be replaced.
    #[error(
        "the key ring {} stays as it is: {source}; `rekindle keys list` shows its keys, and `key_ring` says the file",
        path.display()
    )]
    Unrotated {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: RotationError,
    },
    /// It is not there.
    #[error("there is no key ring {}: the first start of the daemon makes it, or set `key_ring` to where it is", path.display())]
    NotThere {
        /// The file.
        path: PathBuf,
    },
    /// It lacks the key that this node has packed with.
    #[error(
        "the key ring {} has no key of domain {domain}, and this node's snapshots are named with key {key} of it: copy \
         the file from a back-up or from another node of this store, or set `key_ring` to where it is; if it is lost \
         for good, set `domain` to another name, under which the node begins anew",
        path.display()
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// The node's domain.
        domain: DomainName,
        /// The id of the key.
        key: KeyId,
    },
    /// It lacks a key of the node's domain, and none may be made here.
    #[error(
        "the key ring {} has no key of domain {domain}: run this as the daemon's user where the daemon has started once, \
         copy the file from another node of this store, or set `key_ring` to where it is",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
        /// The node's domain.
        domain: DomainName,
    },
    /// The catalog cannot say or note which key it was.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// The key ring of these settings. A key of the node's domain is made if neither the file nor the catalog has one.
pub fn open(settings: &Settings, catalog: &Catalog) -> Result<KeyRing, KeyRingFileError> {
    let (path, domain) = (&settings.key_ring, &settings.domain);
    let file = read(path)?;
    if let Some(ring) = file.as_ref().and_then(|file| file.ring(domain)) {
        note(catalog, &ring)?;
        return Ok(ring);
    }
    if let Some(key) = noted(catalog, domain)? {
        return Err(KeyRingFileError::Lost { path: path.clone(), domain: domain.clone(), key });
    }
    let ring = make(path, domain)?;
    note(catalog, &ring)?;
    let key = ring.own().domain().key_id();
    tracing::info!(
        "made key {key} of domain {domain} in {}: keep a copy of the file, and copy it to other nodes of this store",
        path.display()
    );
    Ok(ring)
}

/// The key ring of a node that has started before.
pub fn of_node(settings: &Settings) -> Result<KeyRing, KeyRingFileError> {
    let (path, domain) = (&settings.key_ring, &settings.domain);
    let ring = read(path)?.and_then(|file| file.ring(domain));
    ring.ok_or_else(|| KeyRingFileError::NoKey { path: path.clone(), domain: domain.clone() })
}

/// The keys in a file; none if it is not there.
pub fn read(path: &Path) -> Result<Option<KeyRingFile>, KeyRingFileError> {
    let unread = |source| KeyRingFileError::Unread { path: path.to_owned(), source };
    let file = match RegularFile::open(path, TEXT_BYTES_MAX) {
        Err(FileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(unread)?,
    };
    let mode = file.file().metadata().map_err(|error| unread(error.into()))?.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(KeyRingFileError::Open { path: path.to_owned(), mode });
    }
    let text = io::read_to_string(file).map_err(|error| unread(error.into()))?;
    let content = |source| KeyRingFileError::Content { path: path.to_owned(), source };
    KeyRingFile::decode(text.as_bytes()).map(Some).map_err(content)
}

/// Puts a new key of a domain into the file, in front of the one that named what is packed in it, which stays there to read.
/// A running daemon goes on with the keys that it has.
pub fn rotate(path: &Path, domain: &DomainName) -> Result<Rotation, KeyRingFileError> {
    let unwritten = |source| KeyRingFileError::Unwritten { path: path.to_owned(), source };
    let not_there = || KeyRingFileError::NotThere { path: path.to_owned() };
    let _turn = turn(path).map_err(unwritten)?;
    let mut file = read(path)?.ok_or_else(not_there)?;
    let rotation = file.rotate(domain, secret().map_err(unwritten)?);
    let rotation =
        rotation.map_err(|source| KeyRingFileError::Unrotated { path: path.to_owned(), source })?;
    write(path, &file.encode(), false).map_err(unwritten)?;
    Ok(rotation)
}

/// Adds a first key of the domain to the file, which is replaced as a whole.
fn make(path: &Path, domain: &DomainName) -> Result<KeyRing, KeyRingFileError> {
    let unwritten = |source| KeyRingFileError::Unwritten { path: path.to_owned(), source };
    let _turn = turn(path).map_err(unwritten)?;
    let file = read(path)?;
    // Another process may have made it before this one's turn.
    if let Some(ring) = file.as_ref().and_then(|file| file.ring(domain)) {
        return Ok(ring);
    }
    let is_new = file.is_none();
    let mut file = file.unwrap_or_default();
    file.add(domain.clone(), secret().map_err(unwritten)?);
    write(path, &file.encode(), is_new).map_err(unwritten)?;
    Ok(file.ring(domain).expect("its key was just added"))
}

fn secret() -> io::Result<[u8; SECRET_BYTES]> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(io::Error::other)?;
    Ok(secret)
}

/// Waits until no other process changes the file, which is read and replaced in the turn that this returns.
fn turn(path: &Path) -> io::Result<File> {
    let directory = File::open(directory_of(path))?;
    directory.lock()?;
    Ok(directory)
}

/// Writes the file for its user alone, durably. A new one is of this process's user, and takes no other one's place.
fn write(path: &Path, content: &[u8], is_new: bool) -> io::Result<()> {
    let directory = directory_of(path);
    // Made with mode 0600.
    let mut written = tempfile::NamedTempFile::new_in(directory)?;
    written.write_all(content)?;
    if !is_new {
        let (before, now) = (fs::metadata(path)?, written.as_file().metadata()?);
        if (before.uid(), before.gid()) != (now.uid(), now.gid()) {
            fchown(written.as_file(), Some(before.uid()), Some(before.gid()))?;
        }
    }
    written.as_file().sync_all()?;
    let persisted = if is_new { written.persist_noclobber(path) } else { written.persist(path) };
    persisted.map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

fn directory_of(path: &Path) -> &Path {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    directory.unwrap_or(Path::new("."))
}

/// The id of the key that this node has packed with in a domain, as its catalog has it.
fn noted(catalog: &Catalog, domain: &DomainName) -> Result<Option<KeyId>, CatalogError> {
    let value = catalog.get(Kind::Meta, &note_key(domain))?;
    Ok(value.and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok()))
}

/// Notes the key in the catalog, so that a start without it makes no other one.
fn note(catalog: &Catalog, ring: &KeyRing) -> Result<(), CatalogError> {
    let own = ring.own().domain();
    let before = noted(catalog, own.name())?;
    if before == Some(own.key_id()) {
        return Ok(());
    }
    if let Some(before) = before {
        let (domain, key) = (own.name(), own.key_id());
        tracing::info!(
            "key {key} names what is packed in domain {domain} from now on; key {before} did until now"
        );
    }
    let (key, value) = (note_key(own.name()), own.key_id().to_string().into_bytes());
    // Right whether it is found made or not: the ring has the key.
    catalog.write(&[Change::Put { kind: Kind::Meta, key, value }]).map_err(WriteError::either_way)
}

fn note_key(domain: &DomainName) -> Vec<u8> {
    format!("key-of-domain/{domain}").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rekindle_engine::identity::Domain;

    use super::*;
    use rekindle_settings::{SettingFlags, Surroundings};

    fn name(text: &str) -> DomainName {
        text.parse().expect("a legal name")
    }

    struct Node {
        place: tempfile::TempDir,
        catalog: Catalog,
    }

    impl Node {
        fn new() -> Self {
            let place = tempfile::tempdir().expect("a directory");
            let catalog = Catalog::open(&place.path().join("catalog")).expect("a disk");
            Self { place, catalog }
        }

        fn file(&self) -> PathBuf {
            self.place.path().join("key-ring.json")
        }

        fn open_of(&self, domain: &str) -> Result<KeyRing, KeyRingFileError> {
            let flags = SettingFlags::default()
                .with_config(Some("/dev/null".into()))
                .with("state_directory", "--state-directory", Some(self.place.path().display().to_string()))
                .with("domain", "--domain", Some(domain.to_owned()));
            let settings = Settings::load_in(&flags, &Surroundings::of_process()).expect("good settings");
            assert_eq!(settings.key_ring, self.file());
            open(&settings, &self.catalog)
        }

        fn refused(&self) -> String {
            self.open_of("default").expect_err("it is refused").to_string()
        }
    }

    #[test]
    fn a_first_start_makes_a_key_that_only_this_user_can_read_and_later_ones_use_it() {
        let node = Node::new();
        let first = node.open_of("default").expect("it is made");
        assert_eq!(node.file().metadata().expect("it is there").mode() & 0o7777, 0o600);
        let again = node.open_of("default").expect("it is there");
        assert_eq!(first.own().domain(), again.own().domain());
        assert_ne!(first.own().domain(), Node::new().open_of("default").expect("it is made").own().domain());
    }

    #[test]
    fn another_domain_of_a_node_gets_a_key_beside_the_first_one() {
        let node = Node::new();
        let first = node.open_of("default").expect("it is made");
        let second = node.open_of("tenant-1").expect("it is made");
        assert!(second.key(first.own().domain()).is_ok());
        let again = node.open_of("default").expect("it is there");
        assert_eq!(again.own().domain(), first.own().domain());
    }

    #[test]
    fn a_rotation_puts_a_key_in_front_and_leaves_the_one_before_it_to_read() {
        let node = Node::new();
        let refused = rotate(&node.file(), &name("default")).expect_err("there is no ring").to_string();
        assert!(refused.contains("key-ring.json: the first start of the daemon makes it"), "{refused}");
        let first = node.open_of("default").expect("it is made");
        let rotation = rotate(&node.file(), &name("default")).expect("it has a key");
        assert_eq!(rotation.replaced, first.own().domain().key_id());
        assert_eq!(node.file().metadata().expect("it is there").mode() & 0o7777, 0o600);
        let now = node.open_of("default").expect("it is there");
        assert_eq!(now.own().domain().key_id(), rotation.key);
        assert!(now.key(first.own().domain()).is_ok());
        let content = fs::read(node.file()).expect("it is there");
        let refused = rotate(&node.file(), &name("tenant-1")).expect_err("it has no key").to_string();
        assert!(
            refused.contains("key-ring.json stays as it is: it has no key of domain tenant-1"),
            "{refused}"
        );
        assert_eq!(fs::read(node.file()).expect("it is there"), content);
    }

    #[test]
    fn rotations_at_the_same_time_lose_no_key() {
        let node = Node::new();
        node.open_of("default").expect("it is made");
        let (file, domain) = (node.file(), name("default"));
        let rotations = std::thread::scope(|scope| {
            let begun = [0; 8].map(|_| scope.spawn(|| rotate(&file, &domain).expect("it has a key")));
            begun.map(|rotation| rotation.join().expect("it does not panic"))
        });
        let ring = node.open_of("default").expect("it is there");
        for Rotation { key, .. } in rotations {
            assert!(ring.key(&Domain::new(domain.clone(), key)).is_ok(), "{key}");
        }
    }

    #[test]
    fn a_ring_that_is_gone_is_asked_for_by_name_and_no_other_key_is_made() {
        let node = Node::new();
        let key = node.open_of("default").expect("it is made").own().domain().key_id();
        fs::remove_file(node.file()).expect("it is there");
        let refused = node.refused();
        assert!(refused.contains(&format!("are named with key {key} of it: copy the file")), "{refused}");
        assert!(!node.file().exists());
    }

    #[test]
    fn a_ring_that_others_may_read_or_that_is_none_is_refused_with_its_path() {
        let node = Node::new();
        node.open_of("default").expect("it is made");
        fs::set_permissions(node.file(), fs::Permissions::from_mode(0o640)).expect("it is ours");
        let refused = node.refused();
        assert!(
            refused.contains("key-ring.json can be opened by other users (mode 0640): chmod 600"),
            "{refused}"
        );
        fs::set_permissions(node.file(), fs::Permissions::from_mode(0o600)).expect("it is ours");
        fs::write(node.file(), "{\"version\":1,\n\"keys\":7}").expect("a disk");
        assert!(node.refused().contains("key-ring.json: line 2, column "), "{}", node.refused());
        fs::write(node.file(), "{\"version\":9}").expect("a disk");
        assert!(node.refused().contains("key-ring.json: version 9 is unknown"), "{}", node.refused());
    }
}
