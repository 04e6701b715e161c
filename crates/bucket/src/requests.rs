//! The requests to a bucket, one try at a time: each has a time limit in proportion to its bytes, is counted if it fails,
//! and its error is told in the service's own words without the rest of the answer.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use http_body_util::BodyExt as _;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};

use super::slow_down::{Class, Failure, RequestWatch};

/// Makes clients whose requests are watched.
#[derive(Debug)]
pub(super) struct WatchedConnector {
    pub(super) class: Class,
    pub(super) watch: Arc<RequestWatch>,
}

#[derive(Debug)]
struct WatchedClient {
    inner: HttpClient,
    class: Class,
    watch: Arc<RequestWatch>,
}

/// Reason that a try was ended.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", .0.as_secs())]
struct NoAnswer(Duration);

/// Reason that a service is not spoken to.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}: the service's certificate must be valid now, name this host, and be signed by an authority of the system or of \
     the file in bucket.authorities_file"
)]
struct CertificateRefused(rustls::Error);

/// Time that a read may take until its answer begins, and then without a byte of it.
pub(super) const READING_WAIT: Duration = Duration::from_secs(5);

/// Time that a write may take, besides what its bytes take at [`SENT_BYTES_A_SECOND_MIN`]. Joining the parts of a large
/// object takes a service tens of seconds.
const PUBLISHING_WAIT: Duration = Duration::from_secs(60);

/// Bytes in a second of the slowest line that is published over.
const SENT_BYTES_A_SECOND_MIN: u64 = 64 << 10;

/// Bytes of an answer that says what failed.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// Status codes by which services ask for fewer requests.
const TOO_MANY_REQUESTS: u16 = 429;
const SERVICE_UNAVAILABLE: u16 = 503;

impl HttpConnector for WatchedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        let watched = WatchedClient { inner, class: self.class, watch: Arc::clone(&self.watch) };
        Ok(HttpClient::new(watched))
    }
}

#[async_trait]
impl HttpService for WatchedClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let sent_bytes = u64::try_from(request.body().content_length()).unwrap_or(u64::MAX);
        let answered = match self.class {
            // The bytes of its answer have a limit of their own, in the client and at the engine's door.
            Class::Reading => {
                in_time(READING_WAIT, self.exchange(request)).await.map(|answer| self.watched(answer))
            }
            Class::Publishing => {
                self.watch.publishers_turn().await;
                in_time(publishing_limit(sent_bytes), self.whole_exchange(request)).await
            }
        };
        if let Some(failure) = failure_of(&answered) {
            self.watch.note(self.class, failure);
        }
        answered
    }
}

impl WatchedClient {
    async fn exchange(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.inner.execute(request).await.map_err(with_advice)?;
        if answer.status().is_client_error() || answer.status().is_server_error() {
            return told_in_short(answer).await;
        }
        Ok(answer)
    }

    /// The same with all of the answer, which is short. S3 answers the joining of parts with a success before it is one.
    async fn whole_exchange(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = self.exchange(request).await?.into_parts();
        let bytes = body.bytes().await?;
        if parts.status.is_success() && element(&String::from_utf8_lossy(&bytes), "Code") == Some("SlowDown")
        {
            self.watch.note(self.class, Failure::SlowDown);
        }
        Ok(HttpResponse::from_parts(parts, bytes.into()))
    }

    /// An answer, the rest of which is counted as failed if it does not come.
    fn watched(&self, answer: HttpResponse) -> HttpResponse {
        let (parts, body) = answer.into_parts();
        let (class, watch) = (self.class, Arc::clone(&self.watch));
        let noted = move |error| {
            watch.note(class, failure_by(&error));
            error
        };
        HttpResponse::from_parts(parts, HttpResponseBody::new(body.map_err(noted)))
    }
}

fn publishing_limit(sent_bytes: u64) -> Duration {
    PUBLISHING_WAIT + Duration::from_secs(sent_bytes / SENT_BYTES_A_SECOND_MIN)
}

async fn in_time<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, HttpError>>,
) -> Result<T, HttpError> {
    let ended = tokio::time::timeout(limit, work).await;
    ended.unwrap_or_else(|_| Err(HttpError::new(HttpErrorKind::Timeout, NoAnswer(limit))))
}

/// The failure that this is; none for an answer, also for one that refuses the request itself.
fn failure_of(answered: &Result<HttpResponse, HttpError>) -> Option<Failure> {
    match answered {
        Ok(answer) => match answer.status().as_u16() {
            TOO_MANY_REQUESTS | SERVICE_UNAVAILABLE => Some(Failure::SlowDown),
            _ => answer.status().is_server_error().then_some(Failure::Other),
        },
        Err(error) => Some(failure_by(error)),
    }
}

/// The error, or what to do about it. A certificate that is refused is not asked for again.
fn with_advice(error: HttpError) -> HttpError {
    match refused_certificate(&error) {
        Some(refused) => HttpError::new(HttpErrorKind::Unknown, CertificateRefused(refused)),
        None => error,
    }
}

fn refused_certificate(error: &HttpError) -> Option<rustls::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(refused @ rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return Some(refused.clone());
        }
        // An error of the system names the one in it by no source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn failure_by(error: &HttpError) -> Failure {
    if error.kind() == HttpErrorKind::Timeout { Failure::Timeout } else { Failure::Other }
}

/// The answer with only the code and message of its error: the rest repeats the request, its signature included.
async fn told_in_short(answer: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (parts, body) = answer.into_parts();
    let text = beginning_of(body).await?;
    let text = String::from_utf8_lossy(&text);
    let short = match (element(&text, "Code"), element(&text, "Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(told), None) | (None, Some(told)) => told.to_owned(),
        (None, None) => parts.status.to_string(),
    };
    Ok(HttpResponse::from_parts(parts, short.into()))
}

async fn beginning_of(body: HttpResponseBody) -> Result<Bytes, HttpError> {
    let (mut stream, mut read) = (body.bytes_stream(), BytesMut::new());
    while let Some(bytes) = stream.try_next().await? {
        read.extend_from_slice(&bytes);
        if read.len() >= ERROR_BYTES_MAX {
            break;
        }
    }
    Ok(read.freeze())
}

/// Text of an element without elements in it.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = text.split_once(&format!("<{name}>"))?;
    let (inner, _) = after.split_once(&format!("</{name}>"))?;
    Some(inner.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_has_time_in_proportion_to_its_bytes() {
        assert_eq!(publishing_limit(0), PUBLISHING_WAIT);
        assert_eq!(publishing_limit(64 << 20), PUBLISHING_WAIT + Duration::from_secs(1024));
    }

    #[test]
    fn an_error_of_the_service_is_told_without_the_request_that_it_repeats() {
        let body = "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>They differ.</Message>\
                    <StringToSign>AWS4 secret</StringToSign></Error>";
        let mut answer = HttpResponse::new(Bytes::from(body).into());
        *answer.status_mut() = hyper::StatusCode::FORBIDDEN;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let short = runtime.block_on(async { told_in_short(answer).await?.into_body().bytes().await });
        assert_eq!(short.unwrap(), "SignatureDoesNotMatch: They differ.");
    }
}
