//! An NBD client that shows the answers it got.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Way in which a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// The oldest way: an export's name, simple replies.
    Oldest,
    /// Chunks, and the allocation of the disk.
    Structured,
}

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISCONNECT: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const ENOTSUP: u32 = 95;

pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

/// A connection past its handshake.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) style: Style,
    pub(crate) bytes: u64,
    pub(crate) flags: u16,
    cookie: u64,
}

/// An answer of a server to one option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OptionReply {
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

/// A chunk of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) data: Vec<u8>,
}

/// Answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Simple { error: u32, cookie: u64 },
    Chunk(Chunk),
}

pub(crate) fn exactly<const N: usize>(stream: &UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    (&mut &*stream).read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn some(stream: &UnixStream, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    (&mut &*stream).read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A connection on which nothing is said yet but what the server says first.
pub(crate) fn greeted(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    let greeting: [u8; 18] = exactly(&stream)?;
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\x00\x03");
    Ok(stream)
}

/// The same with the client's flags sent.
pub(crate) fn haggling(socket: &Path) -> io::Result<UnixStream> {
    let stream = greeted(socket)?;
    (&stream).write_all(&3_u32.to_be_bytes())?;
    Ok(stream)
}

pub(crate) fn send_option(stream: &UnixStream, option: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    (&mut &*stream).write_all(&bytes)
}

pub(crate) fn option_reply(stream: &UnixStream, option: u32) -> io::Result<OptionReply> {
    assert_eq!(u64::from_be_bytes(exactly(stream)?), 0x0003_e889_0455_65a9);
    assert_eq!(u32::from_be_bytes(exactly(stream)?), option);
    let kind = u32::from_be_bytes(exactly(stream)?);
    let bytes = u32::from_be_bytes(exactly(stream)?);
    Ok(OptionReply { kind, data: some(stream, usize::try_from(bytes).unwrap())? })
}

/// Sends an option and reads answers until one ends them.
pub(crate) fn ask(stream: &UnixStream, option: u32, data: &[u8]) -> io::Result<Vec<OptionReply>> {
    send_option(stream, option, data)?;
    let mut replies = Vec::new();
    loop {
        let reply = option_reply(stream, option)?;
        let last = reply.kind == 1 || reply.kind >= 1 << 31;
        replies.push(reply);
        if last {
            return Ok(replies);
        }
    }
}

/// The data of an option that names an export and lists contexts.
pub(crate) fn contexts(export: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let length = |bytes: usize| u32::try_from(bytes).unwrap().to_be_bytes();
    let mut data = length(export.len()).to_vec();
    data.extend(export);
    data.extend(length(queries.len()));
    for query in queries {
        data.extend(length(query.len()));
        data.extend(*query);
    }
    data
}

/// The data of `GO` and `INFO`.
pub(crate) fn go(export: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(export.len()).unwrap().to_be_bytes().to_vec();
    data.extend(export);
    data.extend(u16::try_from(wanted.len()).unwrap().to_be_bytes());
    wanted.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

pub(crate) fn request(kind: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

impl Client {
    pub(crate) fn connect(socket: &Path, style: Style) -> io::Result<Self> {
        let stream = haggling(socket)?;
        let (bytes, flags) = match style {
            Style::Oldest => {
                send_option(&stream, 1, b"")?;
                (u64::from_be_bytes(exactly(&stream)?), u16::from_be_bytes(exactly(&stream)?))
            }
            Style::Structured => {
                assert_eq!(ask(&stream, 8, b"")?.last().unwrap().kind, 1);
                let replies = ask(&stream, 10, &contexts(b"", &[b"base:allocation"]))?;
                assert_eq!(replies[0].data, b"\0\0\0\x01base:allocation");
                let replies = ask(&stream, 7, &go(b"", &[]))?;
                let export = &replies[0].data;
                assert_eq!(export[..2], [0, 0], "the export's facts come first");
                (
                    u64::from_be_bytes(export[2..10].try_into().unwrap()),
                    u16::from_be_bytes(export[10..].try_into().unwrap()),
                )
            }
        };
        Ok(Self { stream, style, bytes, flags, cookie: 0 })
    }

    /// Sends a request and returns its cookie.
    pub(crate) fn send(&mut self, kind: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> u64 {
        self.cookie += 1;
        let mut bytes = request(kind, flags, self.cookie, offset, length);
        bytes.extend(data);
        (&self.stream).write_all(&bytes).expect("the server reads");
        self.cookie
    }

    pub(crate) fn answer(&self) -> io::Result<Answer> {
        match u32::from_be_bytes(exactly(&self.stream)?) {
            0x6744_6698 => {
                let error = u32::from_be_bytes(exactly(&self.stream)?);
                Ok(Answer::Simple { error, cookie: u64::from_be_bytes(exactly(&self.stream)?) })
            }
            0x668e_33ef => {
                let flags = u16::from_be_bytes(exactly(&self.stream)?);
                let kind = u16::from_be_bytes(exactly(&self.stream)?);
                let cookie = u64::from_be_bytes(exactly(&self.stream)?);
                let bytes = u32::from_be_bytes(exactly(&self.stream)?);
                let data = some(&self.stream, usize::try_from(bytes).unwrap())?;
                Ok(Answer::Chunk(Chunk { flags, kind, cookie, data }))
            }
            magic => panic!("{magic:#x} begins no answer"),
        }
    }

    /// The chunks of one answer.
    pub(crate) fn chunks(&self, cookie: u64) -> io::Result<Vec<Chunk>> {
        let mut chunks = Vec::new();
        loop {
            let Answer::Chunk(chunk) = self.answer()? else { panic!("an answer in chunks was due") };
            assert_eq!(chunk.cookie, cookie);
            let last = chunk.flags & 1 != 0;
            chunks.push(chunk);
            if last {
                return Ok(chunks);
            }
        }
    }

    /// The answer of a request that has no data.
    pub(crate) fn done(&self, cookie: u64) -> Result<(), u32> {
        match self.answer().expect("an answer") {
            Answer::Simple { error, cookie: of } => {
                assert_eq!(of, cookie);
                if error == 0 { Ok(()) } else { Err(error) }
            }
            Answer::Chunk(chunk) => panic!("{chunk:?} answers a request without data"),
        }
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        let cookie = self.send(WRITE, 0, offset, u32::try_from(data.len()).unwrap(), data);
        self.done(cookie)
    }

    pub(crate) fn without_data(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        length: u64,
    ) -> Result<(), u32> {
        let cookie = self.send(kind, flags, offset, u32::try_from(length).unwrap(), &[]);
        self.done(cookie)
    }

    pub(crate) fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, u32> {
        let cookie = self.send(READ, 0, offset, u32::try_from(length).unwrap(), &[]);
        self.data(cookie, offset, length)
    }

    /// The answer of a read.
    pub(crate) fn data(&self, cookie: u64, offset: u64, length: usize) -> Result<Vec<u8>, u32> {
        if self.style == Style::Oldest {
            self.done(cookie)?;
            return Ok(some(&self.stream, length).expect("the data follows"));
        }
        let mut data = vec![0xee; length];
        let mut covered = 0;
        for chunk in self.chunks(cookie).expect("an answer") {
            let word = |at: usize| u64::from_be_bytes(chunk.data[at..at + 8].try_into().unwrap());
            let start = |at: usize| usize::try_from(word(at) - offset).unwrap();
            match chunk.kind {
                0 => assert!(chunk.data.is_empty()),
                1 => {
                    let bytes = &chunk.data[8..];
                    data[start(0)..start(0) + bytes.len()].copy_from_slice(bytes);
                    covered += bytes.len();
                }
                2 => {
                    let bytes = u32::from_be_bytes(chunk.data[8..].try_into().unwrap());
                    let bytes = usize::try_from(bytes).unwrap();
                    data[start(0)..start(0) + bytes].fill(0);
                    covered += bytes;
                }
                0x8001 => return Err(u32::from_be_bytes(chunk.data[..4].try_into().unwrap())),
                kind => panic!("a chunk of kind {kind}"),
            }
        }
        assert_eq!(covered, length, "every byte comes once");
        Ok(data)
    }

    /// The stretches of a block status: bytes and flags.
    pub(crate) fn status(&mut self, flags: u16, offset: u64, length: u64) -> Result<Vec<(u64, u32)>, u32> {
        let cookie = self.send(BLOCK_STATUS, flags, offset, u32::try_from(length).unwrap(), &[]);
        let chunks = self.chunks(cookie).expect("an answer");
        let [chunk] = &chunks[..] else { panic!("one context has one chunk") };
        if chunk.kind == 0x8001 {
            return Err(u32::from_be_bytes(chunk.data[..4].try_into().unwrap()));
        }
        assert_eq!((chunk.kind, &chunk.data[..4]), (5, &1_u32.to_be_bytes()[..]));
        let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap());
        Ok(chunk.data[4..]
            .chunks(8)
            .map(|extent| (u64::from(word(&extent[..4])), word(&extent[4..])))
            .collect())
    }
}
