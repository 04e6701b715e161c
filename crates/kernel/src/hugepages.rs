//! Huge pages that are reserved for a while.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};

use rustix::fs::FlockOperation;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Huge pages added to the system's pool; taken out of it again when this is dropped.
#[derive(Debug)]
pub struct HugepageReservation {
    pages: u64,
}

impl HugepageReservation {
    /// Adds `pages` 2 MiB pages to the pool, all or none; needs root.
    pub fn reserve(pages: u64) -> io::Result<Self> {
        let mut pool = Pool::open()?;
        let before = pool.pages()?;
        let wanted = before.checked_add(pages).ok_or(io::ErrorKind::InvalidInput)?;
        pool.set_pages(wanted)?;
        let after = pool.pages()?;
        if after < wanted {
            pool.set_pages(before)?;
            let why = format!("the kernel found only {} of {pages} huge pages", after.saturating_sub(before));
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, why));
        }
        Ok(Self { pages })
    }

    /// Number of pages added.
    pub fn pages(&self) -> u64 {
        self.pages
    }
}

impl Drop for HugepageReservation {
    fn drop(&mut self) {
        let given_back = Pool::open().and_then(|mut pool| {
            let now = pool.pages()?;
            pool.set_pages(now.saturating_sub(self.pages))
        });
        if let Err(error) = given_back {
            eprintln!("{} huge pages could not be given back: {error}; see {POOL}/nr_hugepages", self.pages);
        }
    }
}

/// 2 MiB pages in the system's pool.
pub fn pages_in_pool() -> io::Result<u64> {
    read_count("nr_hugepages")
}

/// 2 MiB pages of the pool that are neither used nor reserved.
pub fn pages_free() -> io::Result<u64> {
    Ok(read_count("free_hugepages")?.saturating_sub(read_count("resv_hugepages")?))
}

fn read_count(name: &str) -> io::Result<u64> {
    parse(&std::fs::read_to_string(format!("{POOL}/{name}"))?)
}

fn parse(text: &str) -> io::Result<u64> {
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a count of pages"))
}

/// The size of the pool, locked against the other processes that change it by this module.
struct Pool(File);

impl Pool {
    fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(format!("{POOL}/nr_hugepages"))?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(Self(file))
    }

    fn pages(&mut self) -> io::Result<u64> {
        self.0.rewind()?;
        let mut text = String::new();
        self.0.read_to_string(&mut text)?;
        parse(&text)
    }

    fn set_pages(&mut self, pages: u64) -> io::Result<()> {
        self.0.rewind()?;
        self.0.write_all(pages.to_string().as_bytes())
    }
}
