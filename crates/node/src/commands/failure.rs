//! An error as the program's last output: a sentence to people, an object to programs.

use rekindle_api::client::ClientError;
use serde::Serialize;
use uuid::Uuid;

use super::shown;
use super::status::Status;

/// Letters of a word that are shown.
const WORD_LETTERS_MAX: usize = 400;

/// An error as programs read it, on standard error.
#[derive(Debug, Serialize)]
struct Failure<'a> {
    /// The code of the daemon's problem, or one of this program's own: `no_daemon`, `not_found`, `error`.
    code: &'a str,
    /// The event, the thing it happened to, and the remedy.
    detail: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    sandboxes: &'a [Uuid],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    snapshots: &'a [Uuid],
}

/// Tells it on standard error; the answer is the status to end with.
pub fn tell(error: &anyhow::Error, json: bool) -> Status {
    let status = Status::of_error(error);
    if json {
        eprintln!("{}", to_json(error, status));
    } else {
        eprintln!("rekindle: {}", sentence(error));
    }
    status
}

fn to_json(error: &anyhow::Error, status: Status) -> String {
    let problem = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()?.problem());
    let failure = Failure {
        code: problem.map_or(own_code(status), |problem| &problem.code),
        detail: sentence(error),
        sandboxes: problem.map_or(&[], |problem| &problem.sandboxes),
        snapshots: problem.map_or(&[], |problem| &problem.snapshots),
    };
    serde_json::to_string(&failure).unwrap_or_else(|_| failure.detail.clone())
}

/// An error and its causes in one sentence, nothing twice.
pub fn sentence(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| match without_long_words(&cause.to_string()) {
        cause if said.is_empty() => cause,
        cause if said.contains(&cause) => said,
        cause => format!("{said}: {cause}"),
    })
}

/// A text in which words that are far longer than any name or path are cut.
fn without_long_words(text: &str) -> String {
    let cut = |word: &str| shown::cut(word, WORD_LETTERS_MAX);
    text.split_inclusive(' ').map(cut).collect()
}

fn own_code(status: Status) -> &'static str {
    match status {
        Status::NotFound => "not_found",
        Status::NoDaemon => "no_daemon",
        Status::Done | Status::CheckFailed | Status::Error | Status::Refused => "error",
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use rekindle_api::problem::{Code, Problem};

    use super::*;
    use crate::commands::status::NoSuchThing;

    fn problem(code: Code) -> anyhow::Error {
        let problem = Problem::new(code, "sandbox web is running: pause it first").sandbox(Uuid::nil());
        ClientError::Problem(Box::new(problem.body())).into()
    }

    #[test]
    fn programs_are_told_the_code_and_the_ids() {
        let told: serde_json::Value =
            serde_json::from_str(&to_json(&problem(Code::WrongState), Status::Refused)).unwrap();
        assert_eq!(
            told,
            serde_json::json!({
                "code": "wrong_state",
                "detail": "sandbox web is running: pause it first",
                "sandboxes": [Uuid::nil()],
            })
        );
    }

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        let text = source.to_string();
        let told = ClientError::Unreachable { endpoint: "/run/api.sock".to_owned(), source };
        assert_eq!(sentence(&told.into()).matches(&text).count(), 1);
        let nested = Err::<(), _>(anyhow::anyhow!("inner")).context("outer").expect_err("it is an error");
        assert_eq!(sentence(&nested), "outer: inner");
    }

    #[test]
    fn a_word_that_is_far_too_long_is_cut() {
        let missing = NoSuchThing { what: "sandbox", reference: "x".repeat(100_000) };
        let said = sentence(&missing.into());
        assert!(said.len() < 600 && said.ends_with("`rekindle list` shows them all"), "{said}");
    }

    #[test]
    fn each_kind_of_failure_has_its_status() {
        let of = |code| Status::of_error(&problem(code));
        assert_eq!(of(Code::NotFound), Status::NotFound);
        assert_eq!(of(Code::WrongState), Status::Refused);
        assert_eq!(of(Code::NameTaken), Status::Refused);
        assert_eq!(of(Code::NotYet), Status::CheckFailed);
        assert_eq!(of(Code::Internal), Status::Error);
        let missing = NoSuchThing { what: "sandbox", reference: "web".to_owned() };
        assert_eq!(Status::of_error(&missing.into()), Status::NotFound);
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        let absent = ClientError::Unreachable { endpoint: "/run/api.sock".to_owned(), source };
        let absent = Err::<(), _>(absent).context("asking").expect_err("it is an error");
        assert_eq!(Status::of_error(&absent), Status::NoDaemon);
    }
}
