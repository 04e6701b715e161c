//! A connection to the agent of a guest.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::StatusCode;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::endpoint::Endpoint;
use super::error::ClientError;
use super::exchange::{self, Call};
use crate::upgrade::joined;

/// A guest's bytes, both ways, until either side ends. Dropped, the connection ends.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    /// Carries bytes between the stream and the daemon.
    carrier: Option<JoinHandle<()>>,
}

impl Channel {
    pub(super) fn open(endpoint: &Endpoint, call: Call, within: Duration) -> Result<Self, ClientError> {
        let runtime = exchange::runtime(endpoint)?;
        let opening = async {
            let mut open = exchange::open(endpoint, call).await?;
            if open.response.status() != StatusCode::SWITCHING_PROTOCOLS {
                open.collected(endpoint).await?.succeeded()?;
                let (status, reason) = (200, "an answer without a connection".to_owned());
                return Err(ClientError::Strange { endpoint: endpoint.to_string(), status, reason });
            }
            let upgraded = hyper::upgrade::on(open.response);
            exchange::driven(&mut open.driving, upgraded)
                .await
                .map_err(|error| exchange::broken(endpoint, &error))
        };
        let opened = runtime.block_on(async { timeout(within, opening).await });
        let upgraded = opened
            .unwrap_or_else(|_elapsed| Err(ClientError::Silent { endpoint: endpoint.to_string(), within }))?;
        let carry = || -> io::Result<Self> {
            let (stream, carried) = UnixStream::pair()?;
            carried.set_nonblocking(true)?;
            let carrier = std::thread::Builder::new().name("channel".into()).spawn(move || {
                runtime.block_on(async {
                    match tokio::net::UnixStream::from_std(carried) {
                        Ok(carried) => joined(TokioIo::new(upgraded), carried).await,
                        Err(error) => tracing::warn!(%error, "a channel cannot be waited for"),
                    }
                });
            })?;
            Ok(Self { stream, carrier: Some(carrier) })
        };
        carry().map_err(|error| exchange::broken(endpoint, &error))
    }

    /// The guest's bytes; its end is that of the connection.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // An error says that it has ended.
        self.stream.shutdown(Shutdown::Both).ok();
        if let Some(carrier) = self.carrier.take() {
            drop(carrier.join());
        }
    }
}
