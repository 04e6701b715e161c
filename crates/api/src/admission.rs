//! Admission of requests: on the socket from the daemon's user, root and the users listed; over TCP from clients with
//! the token.

use std::fmt;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, CONNECTION};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use subtle::ConstantTimeEq as _;

use super::problem::{Code, Problem};

/// Rule for the requests of one connection.
#[derive(Clone, Debug)]
pub(crate) enum Admission {
    /// The peer may ask.
    Allowed,
    /// The peer's user may not.
    RefusedUser(u32),
    /// Those may who have the token.
    ByToken(Arc<Token>),
}

/// Users who may ask on the socket, beside root and the daemon's own.
#[derive(Clone, Debug)]
pub(crate) struct AllowedUsers {
    own: u32,
    others: Vec<u32>,
}

impl AllowedUsers {
    pub(crate) fn new(others: Vec<u32>) -> Self {
        Self { own: rustix::process::geteuid().as_raw(), others }
    }

    /// The rule for a peer of this user.
    pub(crate) fn admission(&self, uid: u32) -> Admission {
        match uid == 0 || uid == self.own || self.others.contains(&uid) {
            true => Admission::Allowed,
            false => Admission::RefusedUser(uid),
        }
    }
}

/// The secret that opens the API over TCP.
pub(crate) struct Token(Box<[u8]>);

impl Token {
    pub(crate) fn new(secret: &str) -> Self {
        Self(secret.as_bytes().into())
    }

    /// True if the fields of a request carry it, compared in a time that says nothing about its letters.
    fn is_in(&self, fields: &HeaderMap) -> bool {
        let mut offered = fields.get_all(AUTHORIZATION).iter();
        let (Some(offered), None) = (offered.next(), offered.next()) else { return false };
        let Some((scheme, secret)) = offered.as_bytes().split_at_checked("Bearer ".len()) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(secret.ct_eq(&self.0))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(secret)")
    }
}

impl Admission {
    fn check(&self, fields: &HeaderMap) -> Result<(), Problem> {
        match self {
            Self::Allowed => Ok(()),
            Self::RefusedUser(uid) => Err(Problem::new(
                Code::Unauthorized,
                format!(
                    "user {uid} may not control this daemon: ask as root or as the daemon's user, or have {uid} \
                     added to api.allowed_uids"
                ),
            )),
            Self::ByToken(token) if token.is_in(fields) => Ok(()),
            Self::ByToken(_) => Err(Problem::new(
                Code::Unauthorized,
                "this needs the field `Authorization: Bearer <token>` with the token of api.tcp.token_file",
            )),
        }
    }
}

/// Lets a request pass, or answers why not before anything of its body is read.
pub(crate) async fn admit(request: Request, next: Next) -> Response {
    let admission = request.extensions().get::<Admission>();
    let decided = match admission {
        Some(admission) => admission.check(request.headers()),
        None => Err(Problem::new(Code::Unauthorized, "no rule was set for this connection")),
    };
    match decided {
        Ok(()) => next.run(request).await,
        Err(problem) => {
            let mut refused = problem.into_response();
            refused.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            refused
        }
    }
}
