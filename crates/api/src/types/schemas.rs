//! Schemas of maps in the document: patterns of their names and values.

use utoipa::ToSchema;
use utoipa::openapi::schema::{
    AdditionalProperties, ArrayBuilder, Object, ObjectBuilder, Schema, SchemaType, Type,
};

use crate::limits;

/// Stage that a snapshot is awaited in.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the document alone reads it")]
pub(super) enum AwaitedState {
    Captured,
    Sealed,
    Published,
}

/// A label to look for, `name=value`.
#[derive(ToSchema)]
#[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}=")]
#[expect(dead_code, reason = "the document alone reads it")]
pub(super) struct LabelFilter(String);

/// Pattern of a label's name.
pub(crate) const LABEL_NAME: &str = "^[A-Za-z0-9][A-Za-z0-9._/-]*$";

/// Pattern of a name.
pub(crate) const NAME: &str = "^[A-Za-z0-9][A-Za-z0-9._-]*$";

/// Text without control characters.
const PLAIN_TEXT: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";

/// Base64 with its `=`, of which the bits that stand for nothing are zero.
const BASE64: &str = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";

/// Labels.
pub(super) fn labels() -> Schema {
    let value = text(PLAIN_TEXT, Some(limits::LABEL_VALUE_LENGTH_MAX));
    map("Words a user puts on it, by name.", limits::LABELS_MAX, LABEL_NAME, value)
}

/// Blobs.
pub(super) fn blobs() -> Schema {
    let value = text(BASE64, None);
    let most = rekindle_engine::limits::MANIFEST_BLOBS_MAX;
    map("Device state and the like, by name, as base64 of bytes.", most, NAME, value)
}

/// Bytes as text.
pub(super) fn base64_bytes() -> Schema {
    Schema::Object(text(BASE64, Some(limits::CONSOLE_TEXT_MAX)))
}

/// Nodes.
pub(super) fn nodes() -> Schema {
    let node = ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).min_length(Some(1));
    let node = node.max_length(Some(rekindle_engine::limits::NODE_BYTES_MAX));
    let nodes = ArrayBuilder::new()
        .items(node)
        .description(Some(
            "Nodes that the sandboxes move to, as far as these take them: names in the setting `peers.static`, or addresses \
             with their ports. The node that was asked for the least memory is asked first.",
        ))
        .max_items(Some(limits::DRAIN_NODES_MAX));
    Schema::Array(nodes.build())
}

fn map(description: &str, entries_max: usize, name: &str, value: Object) -> Schema {
    let values = AdditionalProperties::RefOr(Schema::Object(value).into());
    let object = ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::Object))
        .description(Some(description))
        .property_names(Some(Schema::Object(text(name, Some(limits::NAME_LENGTH_MAX)))))
        .additional_properties(Some(values))
        .max_properties(Some(entries_max));
    Schema::Object(object.build())
}

fn text(pattern: &str, length_max: Option<usize>) -> Object {
    let text = ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).pattern(Some(pattern));
    text.max_length(length_max).build()
}
