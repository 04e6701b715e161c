//! An NBD client that keeps a number of requests under way: the same for both servers of a comparison.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, ensure};

/// Direction of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// A connection past its handshake, with simple replies.
pub(crate) struct NbdClient {
    stream: UnixStream,
}

/// Written bytes have their offset in them once in this many.
const STAMPED_BYTES: usize = 4096;
/// Bytes of a request, and of an answer without its data.
const REQUEST_BYTES: usize = 28;
const ANSWER_BYTES: usize = 16;

impl NbdClient {
    /// Connects to the export without a name.
    pub(crate) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let mut stream = UnixStream::connect(socket).context("connecting to an NBD server")?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        ensure!(greeting.starts_with(b"NBDMAGICIHAVEOPT"), "it is no NBD server");
        // Fixed newstyle without zeroes, and the export's name as the one option.
        stream.write_all(&[&3_u32.to_be_bytes()[..], b"IHAVEOPT\0\0\0\x01\0\0\0\0"].concat())?;
        stream.read_exact(&mut [0; 10])?;
        Ok(Self { stream })
    }

    /// Carries out a request of `bytes` bytes at each of `offsets`, multiples of 4096, `depth` of them under way at once.
    /// Every page that is written begins with its offset, and what is read is checked for that.
    pub(crate) fn run(
        &mut self,
        direction: Direction,
        bytes: usize,
        depth: usize,
        offsets: &[u64],
    ) -> anyhow::Result<()> {
        let mut request = vec![0; REQUEST_BYTES + if direction == Direction::Write { bytes } else { 0 }];
        let answer_bytes = ANSWER_BYTES + if direction == Direction::Read { bytes } else { 0 };
        let mut answer = vec![0; answer_bytes];
        let mut sent = 0;
        for answered in 0..offsets.len() {
            while sent < offsets.len() && sent < answered + depth {
                encode(&mut request, direction, bytes, sent, offsets[sent])?;
                self.stream.write_all(&request)?;
                sent += 1;
            }
            self.stream.read_exact(&mut answer)?;
            check(&answer, direction, offsets)?;
        }
        Ok(())
    }
}

fn encode(
    request: &mut [u8],
    direction: Direction,
    bytes: usize,
    number: usize,
    offset: u64,
) -> anyhow::Result<()> {
    let kind: u16 = match direction {
        Direction::Read => 0,
        Direction::Write => 1,
    };
    request[..4].copy_from_slice(&0x2560_9513_u32.to_be_bytes());
    request[6..8].copy_from_slice(&kind.to_be_bytes());
    request[8..16].copy_from_slice(&u64::try_from(number)?.to_be_bytes());
    request[16..24].copy_from_slice(&offset.to_be_bytes());
    request[24..28].copy_from_slice(&u32::try_from(bytes)?.to_be_bytes());
    for (page, place) in request[REQUEST_BYTES..].chunks_mut(STAMPED_BYTES).zip(0_u64..) {
        let stamp = offset + place * u64::try_from(STAMPED_BYTES)?;
        page[..8].copy_from_slice(&stamp.to_le_bytes());
    }
    Ok(())
}

fn check(answer: &[u8], direction: Direction, offsets: &[u64]) -> anyhow::Result<()> {
    ensure!(answer[..8] == [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "the server refused a request");
    let number = u64::from_be_bytes(answer[8..16].try_into()?);
    let offset = offsets.get(usize::try_from(number)?).context("an answer to nothing")?;
    let data = &answer[ANSWER_BYTES..];
    ensure!(
        direction == Direction::Write || data.starts_with(&offset.to_le_bytes()),
        "a wrong byte was read"
    );
    Ok(())
}
