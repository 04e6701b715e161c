//! Connections that carry a guest's bytes after their last answer.

use std::fmt;
use std::future::Future;
use std::os::unix::net::UnixStream as StdStream;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy, split};
use tokio::net::UnixStream;

use super::bounded::Ending;
use super::control::Answer;
use super::places::Place;
use super::problem::{Code, Problem};

/// The protocol that a connection is upgraded to, as the field `Upgrade` names it: bytes as they are, both ways.
pub(crate) const PROTOCOL: &str = "rekindle-channel";

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The work of a connection after its last answer, which the connection's own task does.
#[derive(Clone, Default)]
pub(crate) struct Afterwards(Arc<Mutex<Option<Work>>>);

impl Afterwards {
    fn put(&self, work: Work) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(work);
    }

    /// The work, if there is any.
    pub(crate) fn take(&self) -> Option<Work> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Afterwards {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Afterwards").finish_non_exhaustive()
    }
}

/// The right to go on with a request's connection as bytes.
#[derive(Debug)]
pub(crate) struct Upgrade {
    upgraded: OnUpgrade,
    afterwards: Afterwards,
}

impl Upgrade {
    /// The one that a request asks for.
    pub(crate) fn take(parts: &mut Parts) -> Option<Self> {
        let asked = parts.headers.get(UPGRADE)?;
        if !asked.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()) {
            return None;
        }
        let afterwards = parts.extensions.get::<Afterwards>()?.clone();
        Some(Self { upgraded: parts.extensions.remove()?, afterwards })
    }

    /// The problem of a request that asks for none.
    pub(crate) fn missing() -> Problem {
        let why = format!("this request needs the fields `Connection: Upgrade` and `Upgrade: {PROTOCOL}`");
        Problem::new(Code::InvalidRequest, why)
    }

    /// The answer after which the connection is joined to `guest`, until either side ends or the daemon does.
    pub(crate) fn answer(self, guest: StdStream, place: Place, mut ending: Ending) -> Answer<Response> {
        let made = guest.set_nonblocking(true).and_then(|()| UnixStream::from_std(guest));
        let guest = made.map_err(|error| {
            Problem::new(Code::Internal, format!("the channel cannot be waited for: {error}"))
        })?;
        let Self { upgraded, afterwards } = self;
        afterwards.put(Box::pin(async move {
            let _place = place;
            tokio::select! {
                upgraded = upgraded => match upgraded {
                    Ok(upgraded) => join(upgraded, guest, &mut ending).await,
                    Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
                },
                () = ending.comes() => {}
            }
        }));
        let fields = [(CONNECTION, "upgrade"), (UPGRADE, PROTOCOL)];
        Ok((StatusCode::SWITCHING_PROTOCOLS, fields).into_response())
    }
}

async fn join(upgraded: Upgraded, guest: UnixStream, ending: &mut Ending) {
    tokio::select! {
        () = joined(TokioIo::new(upgraded), guest) => {}
        () = ending.comes() => {}
    }
}

/// Carries bytes both ways until either side ends.
pub(crate) async fn joined(
    one: impl AsyncRead + AsyncWrite + Unpin,
    other: impl AsyncRead + AsyncWrite + Unpin,
) {
    let ((mut from_one, mut to_one), (mut from_other, mut to_other)) = (split(one), split(other));
    let ended = tokio::select! {
        ended = copy(&mut from_other, &mut to_one) => {
            // The bytes carried last are still to be sent.
            to_one.shutdown().await.and(ended)
        }
        ended = copy(&mut from_one, &mut to_other) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a joined connection broke");
    }
}
