//! Keys from the metadata service of a machine, which a test plays.

use std::net::SocketAddr;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, put};
use object_store::path::Path;
use object_store::{Error, ObjectStoreExt as _};
use rekindle_testkit::s3::{KEY_ID, S3Server, SECRET};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::bucket::Bucket;
use crate::runtime;

/// The word that a machine has to show when it asks for keys.
const TOKEN: &str = "a-token-of-this-machine";

/// A metadata service whose role has the keys that servers take; it ends with this.
struct Metadata {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Metadata {
    fn start() -> Self {
        let roles = "/latest/meta-data/iam/security-credentials/";
        let routes = Router::new()
            .route("/latest/api/token", put(|| async { TOKEN }))
            .route(roles, get(|asked: HeaderMap| async move { shown_to(&asked, "node".to_owned()) }))
            .route(
                &format!("{roles}node"),
                get(|asked: HeaderMap| async move { shown_to(&asked, keys().to_string()) }),
            );
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("there is a port");
        let address = listener.local_addr().expect("it is bound");
        runtime.spawn(async { axum::serve(listener, routes).await });
        Self { address, runtime: Some(runtime) }
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn shown_to(asked: &HeaderMap, text: String) -> Result<String, StatusCode> {
    let shown = asked.get("X-aws-ec2-metadata-token").map(|token| token.as_bytes());
    if shown == Some(TOKEN.as_bytes()) { Ok(text) } else { Err(StatusCode::UNAUTHORIZED) }
}

fn keys() -> serde_json::Value {
    serde_json::json!({
        "AccessKeyId": KEY_ID,
        "SecretAccessKey": SECRET,
        "Token": "a-token-of-the-role",
        "Expiration": "2999-01-01T00:00:00Z",
    })
}

#[test]
fn keys_come_from_the_metadata_service_of_the_machine_where_none_are_given() {
    let (server, metadata) = (S3Server::start().expect("a server"), Metadata::start());
    let endpoint = format!("http://{}", metadata.address);
    let environment = [("AWS_METADATA_ENDPOINT".to_owned(), endpoint)].into();
    let (objects, _) = Bucket { environment, ..Bucket::of(&server, "") }.opened();
    let asked = runtime().block_on(objects.head(&Path::from("nothing")));
    assert!(matches!(asked, Err(Error::NotFound { .. })), "{asked:?}");
}
