//! A client's options, and the answers to them.

use super::{ALLOCATION, ALLOCATION_ID, Agreement, EXPORT_NAME};
use crate::Access;
use crate::limits::REQUEST_BYTES_MAX;

const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
const REP_ERR_INVALID: u32 = (1 << 31) + 3;
const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
const OPT_SET_META_CONTEXT: u32 = 10;

/// Bytes of a request that suit the disk best: a page.
const PREFERRED_BYTES: u32 = 4096;

/// The longest name the protocol has.
const NAME_BYTES_MAX: usize = 4096;

/// The disk that is offered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Export {
    pub(crate) bytes: u64,
    pub(crate) access: Access,
}

/// The next step after an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another option.
    Option,
    /// Requests.
    Requests,
    /// Requests; the oldest way to ask for them has an answer of its own.
    RequestsUnanswered,
    /// Nothing: the client goes.
    End,
}

/// A handshake so far.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) export: Export,
    pub(crate) agreement: Agreement,
    /// Answers that are not sent yet.
    pub(crate) answers: Vec<u8>,
}

/// Reads a client's option from its bytes; every read is bounded by them.
struct Reader<'a>(&'a [u8]);

impl Export {
    /// Abilities of the server, as flags for a client.
    pub(crate) fn flags(self, agreement: Agreement) -> u16 {
        const HAS_FLAGS: u16 = 1 << 0;
        const READ_ONLY: u16 = 1 << 1;
        const SEND_FLUSH: u16 = 1 << 2;
        const SEND_FUA: u16 = 1 << 3;
        const SEND_TRIM: u16 = 1 << 5;
        const SEND_WRITE_ZEROES: u16 = 1 << 6;
        const SEND_DF: u16 = 1 << 7;
        const CAN_MULTI_CONN: u16 = 1 << 8;
        const SEND_FAST_ZERO: u16 = 1 << 11;
        let always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN;
        let structured = if agreement.structured { SEND_DF } else { 0 };
        let access = match self.access {
            Access::ReadOnly => READ_ONLY,
            Access::ReadWrite => SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO,
        };
        always | structured | access
    }
}

impl Handshake {
    /// Answers one option.
    pub(crate) fn option(&mut self, option: u32, data: &[u8]) -> Next {
        match option {
            OPT_EXPORT_NAME if data == EXPORT_NAME => return Next::RequestsUnanswered,
            OPT_EXPORT_NAME => return Next::End,
            OPT_ABORT => {
                self.answer(option, REP_ACK, &[]);
                return Next::End;
            }
            OPT_LIST => self.list(data),
            OPT_INFO | OPT_GO => return self.go(option, data),
            OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.agreement.structured = true;
                self.answer(option, REP_ACK, &[]);
            }
            OPT_STRUCTURED_REPLY => self.answer(option, REP_ERR_INVALID, &[]),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.contexts(option, data),
            _ => self.answer(option, REP_ERR_UNSUP, &[]),
        }
        Next::Option
    }

    /// Refuses an option that is too long to be looked at.
    pub(crate) fn refuse_long(&mut self, option: u32) {
        self.answer(option, REP_ERR_TOO_BIG, &[]);
    }

    fn list(&mut self, data: &[u8]) {
        if !data.is_empty() {
            return self.answer(OPT_LIST, REP_ERR_INVALID, &[]);
        }
        let bytes = u32::try_from(EXPORT_NAME.len()).expect("short");
        self.answer(OPT_LIST, REP_SERVER, &[&bytes.to_be_bytes()[..], EXPORT_NAME].concat());
        self.answer(OPT_LIST, REP_ACK, &[]);
    }

    fn go(&mut self, option: u32, data: &[u8]) -> Next {
        let mut reader = Reader(data);
        let asked = (|| {
            let name = reader.text()?;
            let count = reader.u16()?;
            for _ in 0..count {
                reader.u16()?;
            }
            reader.0.is_empty().then_some(name)
        })();
        match asked {
            Some(EXPORT_NAME) => {}
            Some(_) => {
                self.answer(option, REP_ERR_UNKNOWN, &[]);
                return Next::Option;
            }
            None => {
                self.answer(option, REP_ERR_INVALID, &[]);
                return Next::Option;
            }
        }
        let flags = self.export.flags(self.agreement);
        let export = [&INFO_EXPORT.to_be_bytes()[..], &self.export.bytes.to_be_bytes(), &flags.to_be_bytes()];
        self.answer(option, REP_INFO, &export.concat());
        let sizes = [1, PREFERRED_BYTES, REQUEST_BYTES_MAX].map(u32::to_be_bytes).concat();
        self.answer(option, REP_INFO, &[&INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes].concat());
        self.answer(option, REP_ACK, &[]);
        if option == OPT_GO { Next::Requests } else { Next::Option }
    }

    fn contexts(&mut self, option: u32, data: &[u8]) {
        if option == OPT_SET_META_CONTEXT {
            // A later choice stands in the place of an earlier one, also if it fails.
            self.agreement.allocation = false;
        }
        if !self.agreement.structured {
            return self.answer(option, REP_ERR_INVALID, &[]);
        }
        let Some((name, queries)) = read_queries(data) else {
            return self.answer(option, REP_ERR_INVALID, &[]);
        };
        if name != EXPORT_NAME {
            return self.answer(option, REP_ERR_UNKNOWN, &[]);
        }
        let listing = option == OPT_LIST_META_CONTEXT;
        let all = listing && (queries.is_empty() || queries.contains(&&b"base:"[..]));
        if all || queries.contains(&ALLOCATION) {
            self.answer(option, REP_META_CONTEXT, &[&ALLOCATION_ID.to_be_bytes()[..], ALLOCATION].concat());
            self.agreement.allocation |= !listing;
        }
        self.answer(option, REP_ACK, &[]);
    }

    fn answer(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.answers.extend(REPLY_MAGIC.to_be_bytes());
        self.answers.extend(option.to_be_bytes());
        self.answers.extend(kind.to_be_bytes());
        self.answers.extend(u32::try_from(data.len()).expect("answers are short").to_be_bytes());
        self.answers.extend(data);
    }
}

/// An export's name and the contexts asked for.
fn read_queries(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut reader = Reader(data);
    let name = reader.text()?;
    let count = reader.u32()?;
    // As many as there are bytes for: the count alone reserves nothing.
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(reader.text()?);
    }
    reader.0.is_empty().then_some((name, queries))
}

impl<'a> Reader<'a> {
    fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    /// A length and this many bytes.
    fn text(&mut self) -> Option<&'a [u8]> {
        let bytes = usize::try_from(self.u32()?).ok().filter(|bytes| *bytes <= NAME_BYTES_MAX)?;
        let (text, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(text)
    }
}
