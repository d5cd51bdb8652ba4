//! Fetching a document of the issuer.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, header};

use crate::telemetry::trace::otlp::client;

/// What is at an address.
pub(super) async fn get(url: &str, timeout: Duration) -> Result<Bytes, String> {
    let client = client(url, timeout).map_err(|error| error.to_string())?;
    let request = Request::get(url).header(header::ACCEPT, "application/json").body(Bytes::new());
    let request = request.map_err(|error| format!("{url}: {error}"))?;
    let answer = tokio::time::timeout(timeout, client.send_bytes(request)).await;
    let answer = answer.map_err(|_| format!("{url}: no answer in time"))?.map_err(|error| format!("{url}: {error}"))?;
    if answer.status().is_success() {
        Ok(answer.into_body())
    } else {
        Err(format!("{url} answers {}", answer.status()))
    }
}
