//! The question that a person must confirm before something is done that cannot be undone.

use std::io::{BufRead as _, IsTerminal as _};

use anyhow::bail;

/// True if `question` is confirmed: without asking if `said_yes`, else by a person at the terminal. Without a terminal
/// it is an error that nothing was said.
pub fn confirmed(question: &str, said_yes: bool) -> anyhow::Result<bool> {
    if said_yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        bail!("{question} No terminal to ask on; use --yes to confirm. Nothing was done");
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        assert!(["y", "Yes\n", " Y "].into_iter().all(is_yes));
        assert!(!["", "\n", "n", "ye", "yes please"].into_iter().any(is_yes));
    }

    #[test]
    fn a_question_that_was_answered_with_yes_is_not_asked() {
        assert!(confirmed("Delete it?", true).is_ok_and(|yes| yes));
    }
}
