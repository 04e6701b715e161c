//! The handshake of a client and the server before the first request, within a limited time.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::Agreement;
use super::options::{Export, Handshake, Next};
use crate::limits;

const MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";

const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;

/// Zeroes after the oldest answer, unless the client wants none.
const ZEROES_BYTES: usize = 124;

/// Bytes of an option that is thrown away, at once.
const SKIPPED_BYTES: usize = 4096;

/// A client that has until `deadline` to send what is read.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

/// Agrees with a client on what follows; none if it wants nothing.
pub(crate) fn shake_hands(stream: &UnixStream, export: Export) -> io::Result<Option<Agreement>> {
    let mut client = Timed { stream, deadline: Instant::now() + limits::HANDSHAKE_LIMIT };
    stream.set_write_timeout(Some(limits::HANDSHAKE_LIMIT))?;
    let flags = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES;
    client.send(&[&MAGIC[..], OPTION_MAGIC, &flags.to_be_bytes()].concat())?;
    let theirs = u32::from_be_bytes(client.array()?);
    if theirs & !u32::from(flags) != 0 {
        return Err(refused("a client's flags are unknown"));
    }
    let wants_zeroes = theirs & u32::from(FLAG_NO_ZEROES) == 0;
    let mut handshake = Handshake { export, agreement: Agreement::default(), answers: Vec::new() };
    let next = client.options(&mut handshake)?;
    let Handshake { agreement, .. } = handshake;
    match next {
        Next::Requests => {}
        Next::RequestsUnanswered => {
            let mut answer = export.bytes.to_be_bytes().to_vec();
            answer.extend(export.flags(agreement).to_be_bytes());
            answer.resize(answer.len() + if wants_zeroes { ZEROES_BYTES } else { 0 }, 0);
            client.send(&answer)?;
        }
        Next::Option | Next::End => return Ok(None),
    }
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(Some(agreement))
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Timed<'_> {
    /// Answers options until one of them ends the handshake.
    fn options(&mut self, handshake: &mut Handshake) -> io::Result<Next> {
        for _ in 0..limits::OPTIONS_MAX {
            if self.array()? != *OPTION_MAGIC {
                return Err(refused("a client's option is none"));
            }
            let option = u32::from_be_bytes(self.array()?);
            let bytes = u32::from_be_bytes(self.array()?);
            let next = self.option(handshake, option, bytes)?;
            self.send(&handshake.answers)?;
            handshake.answers.clear();
            if next != Next::Option {
                return Ok(next);
            }
        }
        Err(refused("a client has too many options"))
    }

    fn option(&mut self, handshake: &mut Handshake, option: u32, bytes: u32) -> io::Result<Next> {
        let size = usize::try_from(bytes).expect("64 bits");
        if bytes > limits::OPTION_BYTES_SKIPPED_MAX {
            return Err(refused("a client's option is far too long"));
        }
        if bytes > limits::OPTION_BYTES_MAX {
            self.skip(size)?;
            handshake.refuse_long(option);
            return Ok(Next::Option);
        }
        let mut data = vec![0; size];
        self.receive(&mut data)?;
        Ok(handshake.option(option, &data))
    }

    fn skip(&mut self, bytes: usize) -> io::Result<()> {
        let mut skipped = [0; SKIPPED_BYTES];
        let mut left = bytes;
        while left > 0 {
            let step = left.min(SKIPPED_BYTES);
            self.receive(&mut skipped[..step])?;
            left -= step;
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.receive(&mut bytes)?;
        Ok(bytes)
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut into[done..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }
}
