//! The output of a guest at its console, cut into lines.

/// Received bytes that were not read as lines yet.
#[derive(Clone, Debug, Default)]
pub struct ConsoleLines(Vec<u8>);

/// A guest answered a command with an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest answers {line:?}")]
pub struct GuestRefuses {
    /// Its answer.
    pub line: String,
}

impl ConsoleLines {
    /// Appends received bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// The rest of the first complete line that begins with `start`; lines before it are dropped. An error if the guest
    /// answers with one instead.
    pub fn answer(&mut self, start: &str) -> Result<Option<String>, GuestRefuses> {
        while let Some(at) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=at).collect();
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if let Some(rest) = line.strip_prefix(start) {
                return Ok(Some(rest.trim().to_owned()));
            }
            if line.starts_with("error: ") {
                return Err(GuestRefuses { line });
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_once_it_is_whole_and_a_refusal_is_an_error() {
        let mut said = ConsoleLines::default();
        said.add(b"tick 1\r\nverified 10");
        assert_eq!(said.answer("verified "), Ok(None));
        said.add(b" 0\r\ntick 2\r\nerror: no\r\n");
        assert_eq!(said.answer("verified "), Ok(Some("10 0".to_owned())));
        assert!(said.answer("verified ").is_err());
    }
}
