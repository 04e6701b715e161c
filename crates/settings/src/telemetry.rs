//! The form of log lines, and the address that spans are sent to.

use std::fmt;

/// Path at which collectors take spans.
const SPANS_PATH: &str = "/v1/traces";

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for people.
    Human,
    /// An object a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

/// `http://HOST[:PORT][/PATH]`, with the usual path where none is given.
pub fn spans_url(endpoint: &str) -> Result<String, String> {
    let Some(rest) = endpoint.strip_prefix("http://") else {
        return Err("it does not begin with http:// (a collector on this node takes TLS from there)".into());
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() {
        return Err("it names no host".into());
    }
    Ok(if path.is_empty() { format!("http://{host}{SPANS_PATH}") } else { endpoint.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_gets_the_usual_path_unless_it_has_one() {
        assert_eq!(spans_url("http://localhost:4318"), Ok("http://localhost:4318/v1/traces".into()));
        assert_eq!(spans_url("http://localhost:4318/"), Ok("http://localhost:4318/v1/traces".into()));
        assert_eq!(spans_url("http://localhost/own"), Ok("http://localhost/own".into()));
    }

    #[test]
    fn an_endpoint_that_cannot_be_used_is_refused() {
        for endpoint in ["https://localhost:4318", "localhost:4318", "http://", "http:///v1/traces", ""] {
            assert!(spans_url(endpoint).is_err(), "{endpoint}");
        }
    }
}
