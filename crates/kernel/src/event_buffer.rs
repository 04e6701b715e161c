//! A batch of userfaultfd events: as the kernel writes them, and decoded.

use linux_raw_sys::general::{
    UFFD_EVENT_PAGEFAULT, UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP, UFFD_PAGEFAULT_FLAG_MINOR,
    UFFD_PAGEFAULT_FLAG_WP, UFFD_PAGEFAULT_FLAG_WRITE, uffd_msg,
};

use crate::guest_range::GuestRange;
use crate::number::wide;
use crate::shared_buffer::SharedBuffer;

/// Bytes of one event as the kernel writes it.
pub const EVENT_BYTES: usize = size_of::<uffd_msg>();

const EVENT_WORDS: usize = EVENT_BYTES / 8;

/// A buffer for a batch of events, in private memory or in memory that another process holds too.
#[derive(Debug)]
pub struct EventBuffer {
    memory: Memory,
    events_max: usize,
}

#[derive(Debug)]
enum Memory {
    Private(Box<[u64]>),
    Shared(SharedBuffer),
}

/// One event in served memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for a page.
    Fault {
        /// The first address of the page; the exact address if the descriptor reports those.
        address: u64,
        /// The access the thread wanted.
        kind: FaultKind,
        /// The thread's id in its own pid namespace, if the descriptor reports it.
        thread: Option<u32>,
    },
    /// Pages were given back. Reading the event lets the thread that did so go on.
    Remove(GuestRange),
    /// Addresses were unmapped.
    Unmap(GuestRange),
    /// Any other event, by its number.
    Other(u8),
}

/// The access that a faulting thread wanted to its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// To read a page that is missing.
    Read,
    /// To write a page that is missing.
    Write,
    /// To write a page that is there but protected.
    WriteProtect,
    /// To use a page that is in the file but not mapped.
    Minor,
}

impl EventBuffer {
    /// A buffer for `events_max` events in private memory.
    pub fn private(events_max: usize) -> Self {
        let words = vec![0; events_max * EVENT_WORDS].into_boxed_slice();
        Self { memory: Memory::Private(words), events_max }
    }

    /// A buffer for as many events as fit in `buffer`, in which another process that holds it finds them.
    pub fn shared(buffer: SharedBuffer) -> Self {
        let events_max = buffer.bytes() / EVENT_BYTES;
        Self { memory: Memory::Shared(buffer), events_max }
    }

    /// Number of events that fit.
    pub fn events_max(&self) -> usize {
        self.events_max
    }

    /// The shared memory with the events, if the buffer is shared.
    pub fn shared_buffer(&self) -> Option<&SharedBuffer> {
        match &self.memory {
            Memory::Private(_) => None,
            Memory::Shared(buffer) => Some(buffer),
        }
    }

    /// The first `count` events, each read once and then decoded.
    ///
    /// # Panics
    /// If `count` is larger than `events_max`.
    pub fn events(&self, count: usize) -> impl Iterator<Item = Event> + '_ {
        assert!(count <= self.events_max, "no more events than fit in the buffer");
        (0..count).map(|index| decode(self.message(index)))
    }

    #[inline]
    fn message(&self, index: usize) -> [u64; EVENT_WORDS] {
        match &self.memory {
            Memory::Private(words) => std::array::from_fn(|word| words[index * EVENT_WORDS + word]),
            Memory::Shared(buffer) => {
                std::array::from_fn(|word| buffer.word_at(index * EVENT_BYTES + word * 8))
            }
        }
    }

    /// The address that the kernel writes to, and the number of bytes it may write.
    pub(crate) fn target(&mut self) -> (*mut u8, usize) {
        let bytes = self.events_max * EVENT_BYTES;
        match &mut self.memory {
            Memory::Private(words) => (words.as_mut_ptr().cast(), bytes),
            Memory::Shared(buffer) => (buffer.address_of(0, bytes), bytes),
        }
    }
}

/// Decodes one `struct uffd_msg` (linux/userfaultfd.h): the event in the first byte, its arguments from the 8th.
#[inline]
fn decode(message: [u64; EVENT_WORDS]) -> Event {
    let [first, a, b, c] = message;
    let [event, ..] = first.to_le_bytes();
    match u32::from(event) {
        UFFD_EVENT_PAGEFAULT => {
            let [t0, t1, t2, t3, ..] = c.to_le_bytes();
            let thread = u32::from_le_bytes([t0, t1, t2, t3]);
            Event::Fault { address: b, kind: fault_kind(a), thread: (thread != 0).then_some(thread) }
        }
        UFFD_EVENT_REMOVE => Event::Remove(GuestRange { start: a, bytes: b.saturating_sub(a) }),
        UFFD_EVENT_UNMAP => Event::Unmap(GuestRange { start: a, bytes: b.saturating_sub(a) }),
        _ => Event::Other(event),
    }
}

fn fault_kind(flags: u64) -> FaultKind {
    if flags & wide(UFFD_PAGEFAULT_FLAG_WP) != 0 {
        FaultKind::WriteProtect
    } else if flags & wide(UFFD_PAGEFAULT_FLAG_MINOR) != 0 {
        FaultKind::Minor
    } else if flags & wide(UFFD_PAGEFAULT_FLAG_WRITE) != 0 {
        FaultKind::Write
    } else {
        FaultKind::Read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_decoded_as_the_kernel_lays_them_out() {
        let fault = |flags, thread| decode([0x12, flags, 0x7000, thread]);
        let event = |kind, thread| Event::Fault { address: 0x7000, kind, thread };
        assert_eq!(fault(0, 0), event(FaultKind::Read, None));
        assert_eq!(fault(1, 77), event(FaultKind::Write, Some(77)));
        assert_eq!(fault(3, 0), event(FaultKind::WriteProtect, None));
        assert_eq!(fault(4, 0xffff_ffff_0000_0005), event(FaultKind::Minor, Some(5)));
        assert_eq!(decode([0x15, 0x1000, 0x3000, 9]), Event::Remove(GuestRange::new(0x1000, 0x2000)));
        assert_eq!(decode([0x16, 0x1000, 0x3000, 9]), Event::Unmap(GuestRange::new(0x1000, 0x2000)));
        assert_eq!(decode([0x14, 1, 2, 3]), Event::Other(0x14));
    }

    #[test]
    fn a_remove_that_ends_before_it_starts_is_empty() {
        assert_eq!(decode([0x15, 0x3000, 0x1000, 0]), Event::Remove(GuestRange::new(0x3000, 0)));
    }

    #[test]
    fn a_shared_buffer_holds_the_events_that_a_private_one_does() {
        let shared = SharedBuffer::create(4096).unwrap();
        let words = [0x12_u64, 1, 0x5000, 3];
        for (index, word) in words.iter().enumerate() {
            shared.write(EVENT_BYTES + index * 8, &word.to_le_bytes());
        }
        let buffer = EventBuffer::shared(shared);
        assert_eq!(buffer.events_max(), 128);
        let second = buffer.events(2).nth(1).expect("two were asked for");
        assert_eq!(second, Event::Fault { address: 0x5000, kind: FaultKind::Write, thread: Some(3) });
    }

    #[test]
    #[should_panic(expected = "no more events than fit")]
    fn more_events_than_fit_are_refused() {
        EventBuffer::private(2).events(3).for_each(drop);
    }
}
