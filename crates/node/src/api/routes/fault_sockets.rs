//! Fault sockets: each serves a snapshot's memory to a VMM that others start.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa_axum::routes;

use super::Routes;
use crate::api::answer::Made;
use crate::api::audit::Removed;
use crate::api::bounded::BoundedControl;
use crate::api::control::Answer;
use crate::api::extract::{JsonBody, WholeId};
use crate::api::places::Place;
use crate::api::types::{FaultSocket, OpenFaultSocket};

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(open_fault_socket, list_fault_sockets))
        .routes(routes!(show_fault_socket, close_fault_socket))
}

/// Opens a socket at which a VMM is served with a snapshot's memory.
#[utoipa::path(
    post,
    path = "/v1/fault-sockets",
    tag = "memory",
    request_body = OpenFaultSocket,
    responses((status = 201, description = "The socket; its path is in `Location`", body = FaultSocket))
)]
async fn open_fault_socket(
    State(control): State<BoundedControl>,
    place: Place,
    JsonBody(wanted): JsonBody<OpenFaultSocket>,
) -> Answer<Made<FaultSocket>> {
    let made =
        control.change(place, None, move |control, asked| control.open_fault_socket(asked, wanted)).await?;
    let path = Some(format!("/v1/fault-sockets/{}", made.id));
    Ok(Made { made, path })
}

/// Lists the fault sockets.
#[utoipa::path(
    get,
    path = "/v1/fault-sockets",
    tag = "memory",
    responses((status = 200, description = "All of them", body = Vec<FaultSocket>))
)]
async fn list_fault_sockets(
    State(control): State<BoundedControl>,
    place: Place,
) -> Answer<Json<Vec<FaultSocket>>> {
    control.ask(place, |control| control.fault_sockets()).await.map(Json)
}

/// Shows one fault socket.
#[utoipa::path(
    get,
    path = "/v1/fault-sockets/{id}",
    tag = "memory",
    params(crate::api::document::FaultSocketParameter),
    responses((status = 200, description = "The socket", body = FaultSocket))
)]
async fn show_fault_socket(
    State(control): State<BoundedControl>,
    place: Place,
    WholeId(id): WholeId,
) -> Answer<Json<FaultSocket>> {
    control.ask(place, move |control| control.fault_socket(id)).await.map(Json)
}

/// Closes a fault socket and ends its serving; the caller has ended the VMM.
#[utoipa::path(
    delete,
    path = "/v1/fault-sockets/{id}",
    tag = "memory",
    params(crate::api::document::FaultSocketParameter),
    responses((status = 204, description = "It is closed"))
)]
async fn close_fault_socket(
    State(control): State<BoundedControl>,
    place: Place,
    WholeId(id): WholeId,
) -> Answer<StatusCode> {
    control
        .change(place, None, move |control, _| {
            control.close_fault_socket(id).map(|()| Removed::FaultSocket(id))
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
