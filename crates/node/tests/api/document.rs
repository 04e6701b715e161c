//! The document that is kept is the document that is served.

use std::fs;
use std::path::Path;

use rekindle_api::document_text;

use crate::raw;
use crate::served::Served;

#[test]
fn the_kept_document_is_what_the_routes_say() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let text = document_text();
    if fs::read_to_string(&kept).ok().as_deref() != Some(text.as_str()) {
        let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openapi.json");
        fs::write(&new, text).unwrap();
        unreachable!(
            "docs/openapi.json is not what the routes say: `rekindle openapi > docs/openapi.json`, or copy {}",
            new.display()
        );
    }
}

#[test]
fn the_served_document_is_the_kept_one() {
    let served = Served::new();
    let answer = raw::ask(&served.socket(), "GET /openapi.json", "", "");
    assert!(answer.fields.contains("content-type: application/json"));
    assert!(answer.body.ends_with(&document_text()));
}
