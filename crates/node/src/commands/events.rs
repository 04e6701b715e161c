//! `rekindle events`: what happened, and what happens, as it happens.

use clap::Args;
use uuid::Uuid;

use super::numbers::number;
use super::session::Session;
use super::shown;
use super::status::Status;
use super::target::Target;
use crate::api::types::Event;

/// Which events.
#[derive(Args, Clone, Debug)]
pub struct EventsArguments {
    /// Begin after this event instead of with the first that is still known
    #[arg(long, value_name = "ID", conflicts_with = "new", value_parser = number::<u64>(0..=u64::MAX))]
    after: Option<u64>,
    /// Only what happens from now on
    #[arg(long)]
    new: bool,
    /// Only those about this sandbox or snapshot
    #[arg(long, value_name = "NAME|ID")]
    about: Option<String>,
    /// End after so many
    #[arg(long, short = 'n', value_name = "NUMBER")]
    count: Option<u64>,
}

/// Shows them until there are enough, or the daemon ends.
pub fn run(session: &Session, arguments: &EventsArguments) -> anyhow::Result<Status> {
    let client = session.client()?;
    let about = match &arguments.about {
        Some(word) => Some(Target::find(&client, word)?.id()),
        None => None,
    };
    let mut left = arguments.count.unwrap_or(u64::MAX);
    if left == 0 {
        return Ok(Status::Done);
    }
    let after = if arguments.new { None } else { Some(arguments.after.unwrap_or(0)) };
    for event in client.events(after)? {
        let event = event?;
        if about.is_some_and(|id| !is_about(&event, id)) {
            continue;
        }
        if session.output.json {
            session.output.value_line(&event)?;
        } else {
            super::output::write(&line(&event))?;
        }
        left -= 1;
        if left == 0 {
            return Ok(Status::Done);
        }
    }
    anyhow::bail!(
        "the daemon ended the stream: ask again once it is back, for what has happened since its start"
    )
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
