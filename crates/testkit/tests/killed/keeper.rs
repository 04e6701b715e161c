//! The keeper, which survives the node: it holds memory files, and receives each acknowledgement. Every message has an
//! answer, so a node that is killed instead of answered dies exactly there.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rekindle_engine::identity::SnapshotId;
use rekindle_kernel::fd_passing;
use rekindle_testkit::random::Random;

use crate::ledger::{Entry, Ledger, State};

/// Memory and notes that survive a node.
#[derive(Debug, Default)]
pub(crate) struct Outliving {
    memory: BTreeMap<SnapshotId, [OwnedFd; 2]>,
    ledger: Ledger,
    acknowledged: u32,
}

/// Reason that the serving of a node ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It has sent its number of messages; it gets no more answers.
    Enough,
    /// It closed the connection.
    Closed,
}

impl Outliving {
    /// Answers a node's messages, at most `messages` of them; the last one is done or not, and gets no answer.
    pub(crate) fn serve(&mut self, stream: &UnixStream, seed: u64, messages: Option<u32>) -> End {
        let mut random = Random::new(seed);
        let mut left = messages;
        loop {
            let Some((line, fds)) = receive(stream) else { return End::Closed };
            left = left.map(|left| left - 1);
            if left == Some(0) {
                if random.percent(50) {
                    self.answer(&line, fds, messages.is_none(), seed);
                }
                return End::Enough;
            }
            let (answer, fds) = self.answer(&line, fds, messages.is_none(), seed);
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            fd_passing::send(stream, format!("{answer}\n").as_bytes(), &fds).expect("the node waits for it");
        }
    }

    pub(crate) fn held(&self) -> usize {
        self.memory.len()
    }

    pub(crate) fn acknowledged(&self) -> u32 {
        self.acknowledged
    }

    fn answer(&mut self, line: &str, fds: Vec<OwnedFd>, last: bool, seed: u64) -> (String, Vec<OwnedFd>) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let id = || words[1].parse::<SnapshotId>().expect("an id");
        match words[0] {
            "begin" => return (format!("{last} {seed} {}", self.ledger.to_line()), Vec::new()),
            "keep" => {
                self.memory.insert(id(), fds.try_into().expect("memory and its sets"));
            }
            "kept" => {
                let again = |fds: &[OwnedFd; 2]| fds.each_ref().map(|fd| fd.try_clone().expect("it is open"));
                return match self.memory.get(&id()).map(again) {
                    Some(fds) => ("here".into(), fds.into()),
                    None => ("nothing".into(), Vec::new()),
                };
            }
            "forget" => {
                self.memory.remove(&id());
            }
            "held" => {
                let held: Vec<_> = self.memory.keys().map(SnapshotId::to_string).collect();
                return (held.join(" "), Vec::new());
            }
            "pausing" => {
                let parent = (words[2] != "-").then(|| words[2].parse().expect("an id"));
                let seed = words[3].parse().expect("a number");
                self.ledger.0.insert(id(), Entry { parent, seed, state: State::Begun });
            }
            "paused" => {
                self.acknowledged += 1;
                self.said(id(), State::Acknowledged);
            }
            "deleting" => self.said(id(), State::Deleting),
            "deleted" => self.said(id(), State::Deleted),
            step => assert_eq!(step, "step", "the node says nothing else"),
        }
        ("done".into(), Vec::new())
    }

    fn said(&mut self, id: SnapshotId, state: State) {
        self.ledger.0.get_mut(&id).expect("it was begun").state = state;
    }
}

/// Sends a message and waits for its answer.
pub(crate) fn ask(mut stream: &UnixStream, line: &str, fds: &[OwnedFd]) -> (String, Vec<OwnedFd>) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    fd_passing::send(stream, format!("{line}\n").as_bytes(), &fds).expect("the test listens");
    stream.flush().expect("a socket");
    receive(stream).expect("the test answers")
}

fn receive(stream: &UnixStream) -> Option<(String, Vec<OwnedFd>)> {
    let (mut line, mut fds) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        let mut buffer = [0; 4096];
        let (bytes, more) =
            fd_passing::receive(stream, &mut buffer, 2).ok().filter(|(bytes, _)| *bytes > 0)?;
        line.extend_from_slice(&buffer[..bytes]);
        fds.extend(more);
    }
    line.pop();
    Some((String::from_utf8(line).expect("text"), fds))
}
