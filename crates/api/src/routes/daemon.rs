//! Operations about the daemon itself.

use std::sync::LazyLock;

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse as _;

use super::{Routes, Taken, document_text};
use crate::operation::JSON;
use crate::operations::{
    COLLECT, DRAIN, SHOW_DOCUMENT, SHOW_DRAIN, SHOW_HEALTH, SHOW_METRICS, SHOW_READINESS, SHOW_VERSION,
    UNDO_DRAIN,
};
use crate::types::Health;

/// Operations that make this node ready to go down.
pub(super) fn drains() -> Routes {
    Routes::default()
        .changes(&DRAIN, |control, _, (), how| control.drain(&how))
        .reads(&SHOW_DRAIN, |control, (), ()| control.drained())
        .changes(&UNDO_DRAIN, |control, _, (), ()| control.undo_drain())
}

/// Operations that look at the whole store.
pub(super) fn collections() -> Routes {
    Routes::default().changes(&COLLECT, |control, _, (), how| control.collect(&how))
}

pub(super) fn routes() -> Routes {
    Routes::default()
        .answers(&SHOW_HEALTH, async |_, _| Ok(SHOW_HEALTH.response(Health { healthy: true })))
        .answers(&SHOW_READINESS, async |control, Taken { place, .. }| {
            let mut readiness = control.ask(place, |control| Ok(control.readiness())).await?;
            if control.ending().has_come() {
                readiness.ready = false;
                readiness.reasons.push("the daemon is ending".to_owned());
            }
            let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            Ok((status, Json(readiness)).into_response())
        })
        .reads(&SHOW_VERSION, |control, (), ()| Ok(control.version()))
        .reads(&SHOW_METRICS, |control, (), ()| Ok(control.metrics()))
        .answers(&SHOW_DOCUMENT, async |_, _| {
            static TEXT: LazyLock<String> = LazyLock::new(document_text);
            Ok(([(CONTENT_TYPE, JSON)], TEXT.as_str()).into_response())
        })
}
