//! `rekindle events`: prints past events, and new ones as they happen.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use clap::Args;
use rekindle_api::client::{Client, ClientError, Events};
use rekindle_api::problem::Code;
use rekindle_api::types::Event;
use uuid::Uuid;

use super::numbers::number;
use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::Target;

/// Longest wait for a daemon that ended to come back.
const BACK_WITHIN: Duration = Duration::from_secs(600);
/// Time between two checks if it is back.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// The events to print.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Without options it prints the events that the daemon knows, oldest first, and then new ones, until Ctrl-C. It connects \
again to a daemon that was restarted, and reports missed events on standard error. \
`rekindle events -n 20` prints the newest 20 and ends.")]
pub struct EventsArguments {
    /// Begin after this event instead of with the first that is still known
    #[arg(long, value_name = "ID", conflicts_with = "new", value_parser = number::<u64>(0..=u64::MAX))]
    after: Option<u64>,
    /// Only new events
    #[arg(long)]
    new: bool,
    /// Only those about this sandbox or snapshot
    #[arg(long, value_name = "NAME|ID")]
    about: Option<String>,
    /// Print the known events and end
    #[arg(long, conflicts_with = "new")]
    known: bool,
    /// Print the newest known events, at most this many, and end; with --new, this many new ones
    #[arg(long, short = 'n', value_name = "NUMBER", value_parser = number::<usize>(0..=u64::MAX))]
    count: Option<usize>,
    /// With --known or --count, go on with new events
    #[arg(long, short, conflicts_with = "new")]
    follow: bool,
}

/// Prints events about one thing, or about all.
struct Printer<'a> {
    session: &'a Session,
    about: Option<Uuid>,
}

/// Shows them until there are enough, or it is interrupted.
pub fn run(session: &Session, arguments: &EventsArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let about = match &arguments.about {
        Some(word) => Some(Target::find(&client, word)?.id()),
        None => None,
    };
    let printer = Printer { session, about };
    if arguments.new {
        return printer.follow(&client, None, arguments.count.unwrap_or(usize::MAX));
    }
    let mut after = arguments.after.unwrap_or(0);
    if arguments.known || arguments.count.is_some() {
        after = printer.print_known(&client, after, arguments.count.unwrap_or(usize::MAX))?;
        if !arguments.follow {
            return Ok(Status::Done);
        }
    }
    printer.follow(&client, Some(after), usize::MAX)
}

impl Printer<'_> {
    /// Prints the newest `count` of the known events after `after`; the id of the last one that is known.
    fn print_known(&self, client: &Client, after: u64, count: usize) -> anyhow::Result<u64> {
        let mut known = VecDeque::new();
        let (mut last, mut events) = (after, client.known_events(after)?);
        loop {
            match events.next() {
                Some(Ok(event)) => {
                    last = event.id;
                    if self.is_wanted(&event) {
                        known.push_back(event);
                        known.drain(..known.len().saturating_sub(count));
                    }
                }
                Some(Err(ClientError::EventsLost { missed, go_on_behind })) => {
                    say_missed(missed);
                    last = go_on_behind.unwrap_or(last);
                    events = client.known_events(last)?;
                }
                Some(Err(error)) => return Err(error.into()),
                None => break,
            }
        }
        known.iter().try_for_each(|event| self.print(event))?;
        Ok(last)
    }

    /// Prints events after `after` as they come, until `left` were printed; waits for a daemon that ends to come back.
    fn follow(&self, client: &Client, mut after: Option<u64>, mut left: usize) -> anyhow::Result<Status> {
        let mut events = client.events(after)?;
        let mut end_is_said = false;
        while left > 0 {
            match events.next() {
                Some(Ok(event)) => {
                    end_is_said = false;
                    after = Some(event.id);
                    if self.is_wanted(&event) {
                        self.print(&event)?;
                        left -= 1;
                    }
                }
                Some(Err(ClientError::EventsLost { missed, go_on_behind })) => {
                    say_missed(missed);
                    after = go_on_behind.or(after);
                    events = wait_back(client, after)?;
                }
                Some(Err(error)) if !error.is_undecided() => return Err(error.into()),
                // A daemon that is ending may take one more connection before it shuts its socket.
                Some(Err(_)) | None => {
                    if !std::mem::replace(&mut end_is_said, true) {
                        eprintln!("rekindle: the daemon has ended; waiting until it is back");
                    }
                    events = wait_back(client, after)?;
                }
            }
        }
        Ok(Status::Done)
    }

    fn is_wanted(&self, event: &Event) -> bool {
        self.about.is_none_or(|id| is_about(event, id))
    }

    fn print(&self, event: &Event) -> anyhow::Result<()> {
        if self.session.output.json {
            self.session.output.value_line(event)
        } else {
            super::output::write(&line(event))
        }
    }
}

/// The events of a daemon that may still have to be started again.
fn wait_back(client: &Client, after: Option<u64>) -> Result<Events, ClientError> {
    let until = Instant::now() + BACK_WITHIN;
    loop {
        match client.events(after) {
            Err(error) if is_away(&error) && Instant::now() < until => std::thread::park_timeout(ASK_EVERY),
            answer => return answer,
        }
    }
}

fn is_away(error: &ClientError) -> bool {
    error.is_unreachable() || error.is_undecided() || error.code() == Some(Code::Ending)
}

fn say_missed(missed: u64) {
    eprintln!("rekindle: up to {missed} events were missed: `rekindle list` shows how things are now");
}

fn is_about(event: &Event, id: Uuid) -> bool {
    event.sandbox == Some(id) || event.snapshot == Some(id)
}

/// An event in one line.
fn line(event: &Event) -> String {
    let id_of = |kind: &str, id: Option<Uuid>| id.map(|id| format!("{kind} {id}"));
    let about = [id_of("sandbox", event.sandbox), id_of("snapshot", event.snapshot), event.detail.clone()];
    let about: Vec<String> = about.into_iter().flatten().collect();
    let line =
        format!("{:>6}  {}  {:<18}  {}", event.id, shown::utc(event.unix_ms), event.kind, about.join("  "));
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            id: 12,
            unix_ms: 0,
            kind: "snapshot.sealed".to_owned(),
            sandbox: None,
            snapshot: Some(Uuid::nil()),
            detail: None,
        };
        assert_eq!(
            line(&event),
            "    12  1970-01-01T00:00:00.000Z  snapshot.sealed     snapshot 00000000-0000-0000-0000-000000000000\n"
        );
    }
}
