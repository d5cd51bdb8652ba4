//! Every refusal in one form: RFC 9457 problem details, with the remedy beside the reason.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::publish::{BAD_CURSOR, PublishError};

/// Why a request was not answered with what it asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong, and where in the request.
    pub detail: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    /// A problem with its place and remedy.
    pub fn new(status: StatusCode, detail: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem {
            title: status.canonical_reason().unwrap_or("error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).expect("strings and a number can always be written");
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Problem {
        // The cause is for the log of the service; whoever asks gets what they can act on.
        match error {
            PublishError::Retry { context, cause } => {
                tracing::warn!(context, cause, "the store did not answer");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("{context} failed"), "try again in a moment")
            }
            PublishError::Fatal { context, cause } if context == BAD_CURSOR => Problem::new(
                StatusCode::BAD_REQUEST,
                format!("cursor: {cause}"),
                "follow `next` of the page before as it is",
            ),
            PublishError::Fatal { context, cause } | PublishError::Gone { context, cause } => {
                tracing::error!(context, cause, "the store cannot answer");
                let remedy = "the log of the service has the cause under the id in `x-request-id`";
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{context} failed"), remedy)
            }
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Problem {
        Problem::new(
            StatusCode::BAD_REQUEST,
            rejection.body_text(),
            "GET /openapi.json lists the filters and their values",
        )
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, rejection.body_text(), "an anomaly's id is a UUID, as in `anomaly_id`")
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Problem {
        let remedy = "send JSON as in GET /openapi.json, with `content-type: application/json`";
        Problem::new(rejection.status(), rejection.body_text(), remedy)
    }
}
