//! The servers that `tests/run` has started, and what tests do with them besides the code under test.
//!
//! Without them ([`aws`] is `None`) a test says that it was skipped; `tests/run` always starts them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_config::SdkConfig;

/// The AWS stand-ins, by the standard environment that `tests/run` sets. Never a real account: without an endpoint
/// override on this machine there is nothing.
pub async fn aws() -> Option<SdkConfig> {
    let local = |name: &str| std::env::var(name).is_ok_and(|url| url.starts_with("http://127.0.0.1:"));
    if !local("AWS_ENDPOINT_URL") || !local("AWS_ENDPOINT_URL_KINESIS") {
        eprintln!("skipped: no local AWS servers; tests/run starts them");
        return None;
    }
    Some(flowvigil::aws::load().await)
}

/// The second opinion for everything but Kinesis.
pub async fn moto() -> Option<SdkConfig> {
    let url = std::env::var("FLOWVIGIL_TEST_MOTO").ok()?;
    aws().await?;
    Some(flowvigil::aws::load_at(&url).await)
}

/// The URL of the Redis server.
pub fn redis() -> Option<String> {
    let url = std::env::var("FLOWVIGIL_TEST_REDIS").ok();
    if url.is_none() {
        eprintln!("skipped: no Redis server; tests/run starts one");
    }
    url
}

/// A name that no other test of this or an earlier run on the same servers has.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Tries until it is so, at most for `patience`; the last answer otherwise.
pub async fn eventually(patience: Duration, mut so: impl AsyncFnMut() -> bool) -> bool {
    let end = tokio::time::Instant::now() + patience;
    loop {
        if so().await {
            return true;
        }
        if tokio::time::Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
