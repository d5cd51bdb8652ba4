//! The API's own description (OpenAPI 3.1), made from the handlers and types themselves.

use std::sync::OnceLock;

use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::schema::{ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{KnownFormat, OpenApi as Document, RefOr, Schema};
use utoipa::{OpenApi, PartialSchema, ToSchema};

use super::{anomalies, explain, feedback, models, probes, suppressions};
use crate::finding::Actor;
use crate::flow::{Address, EventTime};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "flowvigil",
        description = "Network anomalies in AWS VPC flow logs: what was told, and why what was not."
    ),
    paths(
        anomalies::list,
        anomalies::one,
        anomalies::silences,
        anomalies::signals,
        explain::explain,
        suppressions::list,
        suppressions::make,
        suppressions::remove,
        feedback::give,
        models::show,
        probes::live,
        probes::ready,
        probes::status,
        probes::metrics
    )
)]
struct Api;

/// The description.
pub fn describe() -> Document {
    Api::openapi()
}

/// Answers with the description, which is made once.
pub async fn document() -> Response {
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    let make = || serde_json::to_vec(&describe()).expect("a description of plain data can always be written").into();
    ([(header::CONTENT_TYPE, "application/json")], TEXT.get_or_init(make).clone()).into_response()
}

impl ToSchema for Address {}

impl PartialSchema for Address {
    fn schema() -> RefOr<Schema> {
        text("an IPv4 or IPv6 address", None)
    }
}

impl ToSchema for Actor {}

impl PartialSchema for Actor {
    fn schema() -> RefOr<Schema> {
        text("an IPv4 or IPv6 address, or `many`", None)
    }
}

impl ToSchema for EventTime {}

impl PartialSchema for EventTime {
    fn schema() -> RefOr<Schema> {
        text("a moment in UTC, to the second", Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
    }
}

fn text(description: &str, format: Option<SchemaFormat>) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description)).format(format).build().into()
}
