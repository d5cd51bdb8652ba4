//! The API's own description (OpenAPI 3.1), made from the handlers and types themselves.

use std::borrow::Cow;
use std::sync::OnceLock;

use axum::body::Bytes;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, SchemaFormat, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, KnownFormat, OpenApi as Document, Ref, RefOr, Response as Described, Schema};
use utoipa::{Modify, OpenApi, PartialSchema, ToSchema};

use super::anomalies::Place;
use super::problem::{MEDIA_TYPE, Problem};
use super::{
    anomalies, audit, config, coverage, explain, export, feedback, hosts, mcp, models, probes, stream, suppressions,
};
use crate::finding::{Actor, Subject};
use crate::flow::{Address, EventTime};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "flowvigil",
        description = "Network anomalies in AWS VPC flow logs: what was reported, and why what was not."
    ),
    paths(
        anomalies::list,
        anomalies::one,
        anomalies::rejections,
        anomalies::silences,
        stream::follow,
        anomalies::signals,
        explain::explain,
        hosts::show,
        suppressions::list,
        suppressions::make,
        suppressions::remove,
        feedback::give,
        models::show,
        mcp::answer,
        probes::live,
        probes::ready,
        probes::status,
        coverage::show,
        audit::list,
        config::show,
        probes::metrics
    ),
    components(schemas(Problem, Place, export::Format)),
    modifiers(&Surroundings)
)]
struct Api;

/// What surrounds every handler: who may ask, and the refusals that no handler makes itself.
struct Surroundings;

/// The name of the security scheme.
const BEARER: &str = "bearer";

/// Refusals of every path that asks for the token.
const GUARDED: [(&str, &str); 7] = [
    ("400", "a filter, a value or the path is not understood; `field` names it"),
    ("401", "the bearer token is missing or not valid"),
    (
        "403",
        "the role is not enough; or, where no credential is configured, the request does not come from this machine or is of a page elsewhere",
    ),
    ("414", "the path with its query is too long"),
    ("429", "too many requests; `Retry-After` says when to ask again, in seconds"),
    ("500", "a defect of this service; its log has the cause under the id in `x-request-id`"),
    ("503", "the store is away, or there was no answer in time; ask again in a moment"),
];

/// Refusals of paths that take a body, besides.
const WITH_BODY: [(&str, &str); 3] = [
    ("408", "the body did not arrive in time"),
    ("413", "the body is larger than `api.body_max`"),
    ("415", "the body is not said to be JSON"),
];

/// Refusals of readiness, which asks for no token.
const OPEN: [(&str, &str); 3] = [GUARDED[2], GUARDED[4], GUARDED[5]];

impl Modify for Surroundings {
    fn modify(&self, document: &mut Document) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "the token of `api.token_file` or `api.token`, an API key of `api.keys`, or a token of the issuer of `api.oidc`; where \
                 none of these is configured, only this machine may ask, and needs none",
            ))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(BEARER, SecurityScheme::Http(scheme));
        for (path, item) in &mut document.paths.paths {
            for operation in [&mut item.get, &mut item.post, &mut item.delete].into_iter().flatten() {
                surround(path, operation);
            }
        }
    }
}

/// Adds who may ask and the refusals to one operation.
fn surround(path: &str, operation: &mut Operation) {
    let probe = path.starts_with("/health/");
    let bearer = SecurityRequirement::new(BEARER, Vec::<String>::new());
    operation.security = Some(if probe { Vec::new() } else { vec![bearer, SecurityRequirement::default()] });
    let refusals: &[(&str, &str)] = match path {
        "/health/live" => &[],
        "/health/ready" => &OPEN,
        _ => &GUARDED,
    };
    let with_body: &[(&str, &str)] = if operation.request_body.is_some() { &WITH_BODY } else { &[] };
    let responses = &mut operation.responses.responses;
    for (status, description) in refusals.iter().chain(with_body) {
        responses.entry((*status).to_owned()).or_insert_with(|| refusal(description));
    }
    for (status, response) in responses {
        let RefOr::T(response) = response else { continue };
        if status == "429" {
            let header = HeaderBuilder::new().schema(Some(ObjectBuilder::new().schema_type(Type::Integer).build()));
            response.headers.insert("Retry-After".to_owned(), header.build().into());
        }
        // Problems that handlers describe are written as JSON of any kind.
        if let Some(RefOr::T(content)) = response.content.get("application/json")
            && content.schema == Some(problem().into())
            && let Some(content) = response.content.shift_remove("application/json")
        {
            response.content.insert(MEDIA_TYPE.to_owned(), content);
        }
    }
}

fn refusal(description: &str) -> RefOr<Described> {
    let mut response = Described::new(description);
    response.content.insert(MEDIA_TYPE.to_owned(), RefOr::T(Content::new(Some(problem()))));
    response.into()
}

fn problem() -> Ref {
    Ref::from_schema_name("Problem")
}

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

impl ToSchema for Place {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("AddressOrBlock")
    }
}

impl PartialSchema for Place {
    fn schema() -> RefOr<Schema> {
        text("an IPv4 or IPv6 address, or a block such as 10.1.0.0/16", None)
    }
}

impl ToSchema for Actor {}

impl PartialSchema for Actor {
    fn schema() -> RefOr<Schema> {
        text("an IPv4 or IPv6 address, or `many`", None)
    }
}

impl ToSchema for Subject {}

impl PartialSchema for Subject {
    fn schema() -> RefOr<Schema> {
        let of = |name: &str, value: RefOr<Schema>| ObjectBuilder::new().property(name, value).required(name);
        let pair = ArrayBuilder::new().items(Address::schema()).min_items(Some(2)).max_items(Some(2)).build();
        OneOfBuilder::new()
            .item(of("actor", Address::schema()))
            .item(of("victim", Address::schema()))
            .item(of("pair", pair.into()))
            .description(Some("an actor, a victim, or a host and its peer"))
            .into()
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
