//! What a principal may do: three roles, and the least role of every route.
//!
//! | role | may |
//! | --- | --- |
//! | `reader` | read everything but settings and the audit trail, and try a suppression without keeping it |
//! | `analyst` | also give verdicts, and make and remove suppressions |
//! | `admin` | also read the settings in effect and the audit trail |
//!
//! A route that is not in the table is for admins alone.

use axum::extract::{MatchedPath, Request};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Principal;
use super::problem::Problem;

/// What a principal may do; each role may do what those before it may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Read.
    Reader,
    /// Judge: verdicts and suppressions.
    Analyst,
    /// See how the service is set up, and who changed what.
    Admin,
}

impl Role {
    /// As it is written in settings.
    pub fn name(self) -> &'static str {
        match self {
            Role::Reader => "reader",
            Role::Analyst => "analyst",
            Role::Admin => "admin",
        }
    }
}

/// The least role of each route.
pub const ROUTES: &[(Method, &str, Role)] = &[
    (Method::GET, "/v1/anomalies", Role::Reader),
    (Method::GET, "/v1/anomalies/stream", Role::Reader),
    (Method::GET, "/v1/anomalies/{id}", Role::Reader),
    (Method::POST, "/v1/anomalies/{id}/feedback", Role::Analyst),
    (Method::GET, "/v1/rejections", Role::Reader),
    (Method::GET, "/v1/silences", Role::Reader),
    (Method::GET, "/v1/signals", Role::Reader),
    (Method::GET, "/v1/explain", Role::Reader),
    (Method::GET, "/v1/hosts/{address}", Role::Reader),
    (Method::GET, "/v1/suppressions", Role::Reader),
    // A reader may try one; the handler asks for more where it is kept.
    (Method::POST, "/v1/suppressions", Role::Reader),
    (Method::DELETE, "/v1/suppressions/{name}", Role::Analyst),
    (Method::GET, "/v1/models", Role::Reader),
    (Method::GET, "/v1/coverage", Role::Reader),
    (Method::GET, "/v1/status", Role::Reader),
    (Method::GET, "/v1/config", Role::Admin),
    (Method::GET, "/v1/audit", Role::Admin),
    (Method::GET, "/metrics", Role::Reader),
    // The tools are routes of their own, and asked for their own roles.
    (Method::POST, "/mcp", Role::Reader),
];

/// The least role of a route.
pub fn least(method: &Method, route: &str) -> Role {
    // HEAD is answered as GET is.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let known = ROUTES.iter().find(|(of, path, _)| of == method && *path == route);
    known.map_or(Role::Admin, |(_, _, role)| *role)
}

/// Lets a principal through whose role is enough for the route.
pub(super) async fn allow(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let least = least(request.method(), route);
    let Some(principal) = request.extensions().get::<Principal>() else {
        // `auth::guard` stands before every route that comes here.
        return Problem::new(StatusCode::UNAUTHORIZED, "the request has no principal", "bring a token").into_response();
    };
    match principal.require(least) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

impl Principal {
    /// Refuses a principal of a lesser role.
    pub(super) fn require(&self, least: Role) -> Result<(), Problem> {
        if self.role >= least {
            return Ok(());
        }
        let detail =
            format!("the role {} is needed, and {} has the role {}", least.name(), self.name, self.role.name());
        let remedy = "ask with a key or a token of that role; deploy/service.md says which role each route needs";
        Err(Problem::new(StatusCode::FORBIDDEN, detail, remedy).of_field("authorization"))
    }
}
