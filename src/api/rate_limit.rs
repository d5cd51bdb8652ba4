//! How much one client may ask: buckets of tokens, filled at the rate of the settings.
//!
//! Requests are counted after it is known who asks, each kind in buckets of its own, so that nobody can use up what is
//! somebody else's:
//!
//! | requests | a bucket for |
//! | --- | --- |
//! | that are admitted | whoever was authenticated; without a token, each client |
//! | that are not | each client; those that are admitted do not notice |
//! | of open pages | each client |
//! | `/health/live` | nobody: it costs nothing, and an orchestrator that is refused kills the service |
//!
//! A client is an IPv4 address or an IPv6 /64, behind [`super::clients`].

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer};

use super::problem::Problem;

/// Settings `[api.rate_limit]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::manual_non_exhaustive, reason = "the private field is a key that is refused by name")]
pub struct Settings {
    /// Requests of one client in a second, in the long run; 0 for no limit.
    pub per_second: f64,
    /// Requests that it may make at once after a pause.
    pub burst: f64,
    /// Requests in a second that one client may make without being admitted; 0 for no limit.
    pub failures_per_second: f64,
    /// Such requests at once after a pause.
    pub failures_burst: f64,
    /// What is now called `api.trusted_proxies`.
    #[serde(default, deserialize_with = "renamed")]
    #[allow(dead_code, reason = "it is there to be refused by name")]
    trust_forwarded: (),
}

/// Refuses the setting that there was.
fn renamed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer)?;
    Err(serde::de::Error::custom(
        "this setting is gone, since it believed whoever asked: name the networks of your load balancers in api.trusted_proxies",
    ))
}

/// Clients that are told apart. With more at once, those that have not asked for the longest begin anew.
const CLIENTS_MAX: usize = 10_000;

/// The buckets of all kinds.
#[derive(Debug)]
pub(super) struct Limiter {
    admitted: Buckets<String>,
    failed: Buckets<IpAddr>,
    open: Buckets<IpAddr>,
}

impl Limiter {
    pub(super) fn new(settings: &Settings) -> Limiter {
        Limiter {
            admitted: Buckets::new(settings.per_second, settings.burst),
            failed: Buckets::new(settings.failures_per_second, settings.failures_burst),
            open: Buckets::new(settings.per_second, settings.burst),
        }
    }

    /// A request of somebody who was admitted.
    pub(super) fn admit(&self, who: &str) -> Result<(), TooMany> {
        self.admitted.take(who.to_owned(), Instant::now())
    }

    /// A request that was not admitted.
    pub(super) fn fail(&self, client: Option<IpAddr>) -> Result<(), TooMany> {
        client.map_or(Ok(()), |client| self.failed.take(client, Instant::now()))
    }

    /// A request of an open page.
    pub(super) fn open(&self, client: Option<IpAddr>) -> Result<(), TooMany> {
        client.map_or(Ok(()), |client| self.open.take(client, Instant::now()))
    }
}

/// Too many requests, and when there may be another.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct TooMany {
    per_second: f64,
    seconds: f64,
}

impl IntoResponse for TooMany {
    fn into_response(self) -> Response {
        let seconds = self.seconds.ceil().max(1.0) as u64;
        let detail = format!("more than {} requests in a second", self.per_second);
        let remedy = format!("come again in {seconds} s; api.rate_limit sets the limit");
        let mut response = Problem::new(StatusCode::TOO_MANY_REQUESTS, detail, remedy).into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        response
    }
}

/// The buckets of one kind.
#[derive(Debug)]
struct Buckets<K> {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    fn new(per_second: f64, burst: f64) -> Buckets<K> {
        Buckets { per_second, burst: burst.max(1.0), buckets: Mutex::new(HashMap::new()) }
    }

    /// Takes a token; else says when there is one.
    fn take(&self, who: K, now: Instant) -> Result<(), TooMany> {
        let Buckets { per_second, burst, .. } = *self;
        if per_second <= 0.0 {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CLIENTS_MAX && !buckets.contains_key(&who) {
            // A bucket that is full again says nothing.
            buckets.retain(|_, b| b.tokens + now.duration_since(b.at).as_secs_f64() * per_second < burst);
            if buckets.len() >= CLIENTS_MAX
                && let Some(oldest) = buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(who, _)| who.clone())
            {
                buckets.remove(&oldest);
            }
        }
        let bucket = buckets.entry(who).or_insert(Bucket { tokens: burst, at: now });
        let gained = now.duration_since(bucket.at).as_secs_f64() * per_second;
        *bucket = Bucket { tokens: (bucket.tokens + gained).min(burst), at: now };
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(TooMany { per_second, seconds: (1.0 - bucket.tokens) / per_second })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn buckets() -> Buckets<IpAddr> {
        Buckets::new(2.0, 3.0)
    }

    #[test]
    fn a_client_may_burst_and_then_keeps_to_the_rate_and_others_are_not_held_up() {
        let (buckets, began) = (buckets(), Instant::now());
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert!((0..3).all(|_| buckets.take(a, began).is_ok()));
        assert_eq!(buckets.take(a, began), Err(TooMany { per_second: 2.0, seconds: 0.5 }));
        assert!(buckets.take(b, began).is_ok());
        assert!(buckets.take(a, began + Duration::from_millis(500)).is_ok());
        assert!(buckets.take(a, began + Duration::from_millis(501)).is_err());
    }

    #[test]
    fn clients_without_number_do_not_fill_the_memory() {
        let (buckets, began) = (buckets(), Instant::now());
        for n in 0..CLIENTS_MAX as u32 + 100 {
            assert!(buckets.take(IpAddr::from(n.to_be_bytes()), began + Duration::from_micros(n.into())).is_ok());
        }
        assert!(buckets.buckets.lock().unwrap().len() <= CLIENTS_MAX);
    }
}
