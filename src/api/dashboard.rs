//! The page: one self-contained HTML document that asks this API, and nothing else in the world.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// The page, with its style and script inside.
const PAGE: &str = include_str!("dashboard.html");

/// Nothing is loaded from elsewhere, nothing is sent elsewhere, and nobody may frame it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Answers with the page; it holds no data, so it asks for no token.
pub async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, PAGE).into_response()
}
