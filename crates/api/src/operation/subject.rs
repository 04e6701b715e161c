//! The thing that an operation is about: its name in the path.

use std::future::Future;
use std::marker::PhantomData;

use axum::extract::FromRequestParts as _;
use axum::http::request::Parts;
use utoipa::IntoParams;
use utoipa::openapi::path::Parameter;
use uuid::Uuid;

use crate::extract::{InPath, WholeId};
use crate::problem::{Code, Problem};
use crate::types::Reference;

/// The thing that a path names.
pub(crate) trait Subject: Send + 'static {
    /// Its name, as a client says it.
    type Name: ?Sized;
    /// Its name, as the daemon gets it.
    type Taken: Send + 'static;

    /// Kinds of problems when the thing is looked for.
    const PROBLEMS: &[Code];

    /// Its name as text; none where the path names nothing.
    fn text(name: &Self::Name) -> Option<String>;
    /// The name in a request's path.
    fn take(parts: &mut Parts) -> impl Future<Output = Result<Self::Taken, Problem>> + Send;
    /// The parameters of the path.
    fn parameters() -> Vec<Parameter>;
}

/// No single thing.
#[derive(Debug)]
pub(crate) enum Nothing {}

/// A thing with an id and perhaps a name.
#[derive(Debug)]
pub(crate) struct Referenced<P>(PhantomData<fn() -> P>);

/// A sandbox.
pub(crate) type OfSandbox = Referenced<SandboxParameter>;

/// A snapshot.
pub(crate) type OfSnapshot = Referenced<SnapshotParameter>;

/// A fault socket.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the document describes its field")]
pub(crate) struct OfFaultSocket {
    /// The fault socket's id.
    id: Uuid,
}

/// A sandbox in a path.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the document describes its field")]
pub(crate) struct SandboxParameter {
    /// The sandbox: its id, a unique prefix of it of at least four characters, or its name.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    reference: String,
}

/// A snapshot in a path.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "the document describes its field")]
pub(crate) struct SnapshotParameter {
    /// The snapshot: its id, a unique prefix of it of at least four characters, or its name.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    reference: String,
}

impl Subject for Nothing {
    type Name = ();
    type Taken = ();

    const PROBLEMS: &[Code] = &[];

    fn text((): &()) -> Option<String> {
        None
    }

    async fn take(_: &mut Parts) -> Result<(), Problem> {
        Ok(())
    }

    fn parameters() -> Vec<Parameter> {
        Vec::new()
    }
}

impl<P: IntoParams + 'static> Subject for Referenced<P> {
    type Name = str;
    type Taken = Reference;

    const PROBLEMS: &[Code] = &[Code::NotFound, Code::AmbiguousReference];

    fn text(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    async fn take(parts: &mut Parts) -> Result<Reference, Problem> {
        InPath::from_request_parts(parts, &()).await.map(|InPath(reference)| reference)
    }

    fn parameters() -> Vec<Parameter> {
        P::into_params(|| None)
    }
}

impl Subject for OfFaultSocket {
    type Name = Uuid;
    type Taken = Uuid;

    const PROBLEMS: &[Code] = &[Code::NotFound];

    fn text(id: &Uuid) -> Option<String> {
        Some(id.to_string())
    }

    async fn take(parts: &mut Parts) -> Result<Uuid, Problem> {
        WholeId::from_request_parts(parts, &()).await.map(|WholeId(id)| id)
    }

    fn parameters() -> Vec<Parameter> {
        Self::into_params(|| None)
    }
}
