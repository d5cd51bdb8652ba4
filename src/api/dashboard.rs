//! The page: one HTML document with its own style and script, which asks this API and nothing else in the world.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// The page.
const PAGE: &str = include_str!("dashboard.html");

/// How it looks.
const STYLE: &str = include_str!("dashboard.css");

/// What it does.
const SCRIPT: &str = include_str!("dashboard.js");

/// Nothing is loaded from elsewhere, nothing is sent elsewhere, nothing within the page is run, and nobody may frame it.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Answers with the page; it holds no data, so it asks for no token.
pub async fn page() -> Response {
    asset("text/html; charset=utf-8", PAGE)
}

/// Answers with its style.
pub async fn style() -> Response {
    asset("text/css; charset=utf-8", STYLE)
}

/// Answers with its script.
pub async fn script() -> Response {
    asset("text/javascript; charset=utf-8", SCRIPT)
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}
