//! Every refusal in one form: RFC 9457 problem details, with the remedy beside the reason.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::publish::{BAD_CHANGED_SINCE, BAD_CURSOR, MISSING_INDEX, PublishError};

/// The media type of a problem.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Why a request was not answered with what it asked for.
#[derive(Clone, PartialEq, Debug, Default, Serialize, ToSchema)]
pub struct Problem {
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong, and where in the request.
    pub detail: String,
    /// What to do about it.
    pub remedy: String,
    /// The field, filter or header that is wrong, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Of a suppression that hides much: anomalies of the stored past that it was tried on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tried: Option<usize>,
    /// Of these, those that it would have hidden.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// Of these, those that analysts have called true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_true: Option<usize>,
    /// The share that it would have hidden, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// What the log is told, and whoever asks is not.
    #[serde(skip)]
    pub cause: Option<Cause>,
}

/// Why the service could not answer; goes to its log with the id of the request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cause {
    /// What was being done, as a verb phrase.
    pub context: String,
    /// What came back.
    pub cause: String,
}

impl Problem {
    /// A problem with its place and remedy.
    pub fn new(status: StatusCode, detail: impl Into<String>, remedy: impl Into<String>) -> Problem {
        Problem {
            title: status.canonical_reason().unwrap_or("error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            remedy: remedy.into(),
            ..Problem::default()
        }
    }

    /// The same about one field.
    #[must_use]
    pub fn of_field(self, field: impl Into<String>) -> Problem {
        Problem { field: Some(field.into()), ..self }
    }

    fn caused_by(self, context: String, cause: String) -> Problem {
        Problem { cause: Some(Cause { context, cause }), ..self }
    }

    /// As the body of an answer.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers can always be written")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], self.to_json()).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(cause);
        }
        response
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Problem {
        // The cause is for the log of the service; whoever asks gets what they can act on.
        match error {
            PublishError::Retry { context, cause } => {
                let detail = format!("{context} failed");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail, "try again in a moment").caused_by(context, cause)
            }
            PublishError::Fatal { context, cause } if context == BAD_CURSOR => Problem::new(
                StatusCode::BAD_REQUEST,
                format!("cursor: {cause}"),
                "follow `next` of the page before as it is",
            )
            .of_field("cursor"),
            PublishError::Fatal { context, cause } if context == MISSING_INDEX => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "changed_since: the table of anomalies lacks the index `by_change`, or it is still being filled",
                "run `flowvigil migrate --apply` or deploy the data template anew; until then list without changed_since",
            )
            .of_field("changed_since")
            .caused_by(context, cause),
            PublishError::Fatal { context, cause } if context == BAD_CHANGED_SINCE => Problem::new(
                StatusCode::BAD_REQUEST,
                format!("changed_since: {cause}"),
                "give the `changed_until` of an earlier answer as it is, or list anew and go on from there",
            )
            .of_field("changed_since"),
            PublishError::Fatal { context, cause } | PublishError::Gone { context, cause } => {
                let remedy = "the log of the service has the cause under the id in `x-request-id`";
                let detail = format!("{context} failed");
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail, remedy).caused_by(context, cause)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_table_lacks_and_what_a_store_has_not_given_name_the_field_and_the_remedy() {
        let refused = |context: &str| {
            Problem::from(PublishError::Fatal { context: context.to_owned(), cause: "cause".to_owned() })
        };
        let lacking = refused(MISSING_INDEX);
        assert_eq!((lacking.status, lacking.field.as_deref()), (503, Some("changed_since")));
        assert!(lacking.remedy.contains("flowvigil migrate --apply"), "{lacking:?}");
        let unknown = refused(BAD_CHANGED_SINCE);
        assert_eq!((unknown.status, unknown.field.as_deref()), (400, Some("changed_since")));
        assert!(unknown.remedy.contains("changed_until"), "{unknown:?}");
        assert_eq!(refused("query anomalies").status, 500);
    }
}
