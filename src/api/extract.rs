//! What a request brings, read strictly: what nobody asked for is refused by name, for it may be a word that is misspelt.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path as AxumPath, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Context;
use super::problem::Problem;

/// The filters of a path's query.
#[derive(Debug)]
pub struct Query<T>(pub T);

/// No filters at all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Query<T>, Problem> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(filters)) => Ok(Query(filters)),
            Err(rejection) => {
                let detail = rejection.body_text();
                let field = named(&detail).or_else(|| first_word(&detail));
                let remedy = "GET /openapi.json lists the filters and their values";
                Err(Problem { field, ..Problem::new(StatusCode::BAD_REQUEST, detail, remedy) })
            }
        }
    }
}

/// The parts of a path.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, Problem> {
        match AxumPath::from_request_parts(parts, state).await {
            Ok(AxumPath(path)) => Ok(Path(path)),
            Err(rejection) => Err(Problem::new(
                StatusCode::BAD_REQUEST,
                rejection.body_text(),
                "an id is a UUID, as in `anomaly_id`; an address is IPv4 or IPv6; a name is UTF-8, percent-encoded",
            )),
        }
    }
}

/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Context> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, context: &Context) -> Result<Json<T>, Problem> {
        let remedy = "send JSON as in GET /openapi.json, with `content-type: application/json`";
        let named_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if !named_type.is_some_and(is_json) {
            let detail = "the body is not said to be JSON";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail, remedy).of_field("content-type"));
        }
        let body = in_time(Bytes::from_request(request, context), context.body_timeout).await?;
        let mut text = serde_json::Deserializer::from_slice(&body);
        let value = serde_path_to_error::deserialize(&mut text)
            .map_err(|error| {
                let place = error.path().to_string();
                let error = error.into_inner();
                let detail = error.to_string();
                // What is well-formed and means nothing here is another matter than what cannot be read.
                let strange = detail.starts_with("unknown field") || detail.starts_with("duplicate field");
                let status = match error.classify() {
                    serde_json::error::Category::Data if !strange => StatusCode::UNPROCESSABLE_ENTITY,
                    _ => StatusCode::BAD_REQUEST,
                };
                let field = named(&detail).or_else(|| Some(place.clone()).filter(|place| place != "." && place != "?"));
                let detail = if place == "." { detail } else { format!("{place}: {detail}") };
                Problem { field, ..Problem::new(status, detail, remedy) }
            })
            .and_then(|value| match text.end() {
                Ok(()) => Ok(value),
                Err(error) => Err(Problem::new(StatusCode::BAD_REQUEST, error.to_string(), remedy)),
            })?;
        Ok(Json(value))
    }
}

/// The whole body, unless it takes too long.
pub(super) async fn in_time(
    body: impl Future<Output = Result<Bytes, BytesRejection>>,
    within: Duration,
) -> Result<Bytes, Problem> {
    match tokio::time::timeout(within, body).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large()),
        Ok(Err(rejection)) => Err(Problem::new(
            rejection.status(),
            rejection.body_text(),
            "send the whole body, as long as it is said to be",
        )),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not arrive within {} s", within.as_secs_f64()),
            "send it at once; api.body_timeout sets the deadline",
        )),
    }
}

/// The body is too large.
pub(super) fn too_large() -> Problem {
    let detail = "the body is larger than this service takes";
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail, "shorten it; api.body_max sets the limit")
}

fn is_json(media_type: &str) -> bool {
    let kind = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// The field that an error of serde is about, where it names one.
fn named(detail: &str) -> Option<String> {
    let (_, rest) = detail.split_once("field `")?;
    rest.split_once('`').map(|(field, _)| field.to_owned())
}

/// What stands before the first colon after the introduction: the filter whose value is wrong.
fn first_word(detail: &str) -> Option<String> {
    let word = detail.split(": ").nth(1)?;
    (!word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '_')).then(|| word.to_owned())
}
