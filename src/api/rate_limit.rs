//! How much one client may ask: a bucket of tokens for each address, filled at the rate of the settings.
//!
//! Behind a load balancer all requests come from its address; where the settings trust what it says, the last address that
//! it has added to `x-forwarded-for` is the client's.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Context;
use super::problem::Problem;

/// Settings `[api.rate_limit]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Requests of one client in a second, in the long run; 0 for no limit.
    pub per_second: f64,
    /// Requests that it may make at once after a pause.
    pub burst: f64,
    /// Whether `x-forwarded-for` says who asks: only behind a load balancer that sets it.
    pub trust_forwarded: bool,
}

/// Clients that are told apart. With more at once, those that have not asked for the longest begin anew.
const CLIENTS_MAX: usize = 10_000;

/// The buckets.
#[derive(Debug)]
pub(super) struct Limiter {
    settings: Settings,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Limiter {
    pub(super) fn new(settings: &Settings) -> Limiter {
        Limiter { settings: settings.clone(), buckets: Mutex::new(HashMap::new()) }
    }

    /// Takes a token; else the seconds until there is one.
    fn take(&self, client: IpAddr, now: Instant) -> Result<(), f64> {
        let Settings { per_second, burst, .. } = self.settings;
        if per_second <= 0.0 {
            return Ok(());
        }
        let burst = burst.max(1.0);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CLIENTS_MAX && !buckets.contains_key(&client) {
            // A bucket that is full again says nothing.
            buckets.retain(|_, b| b.tokens + now.duration_since(b.at).as_secs_f64() * per_second < burst);
            if buckets.len() >= CLIENTS_MAX
                && let Some(oldest) = buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(client, _)| *client)
            {
                buckets.remove(&oldest);
            }
        }
        let bucket = buckets.entry(client).or_insert(Bucket { tokens: burst, at: now });
        let gained = now.duration_since(bucket.at).as_secs_f64() * per_second;
        *bucket = Bucket { tokens: (bucket.tokens + gained).min(burst), at: now };
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err((1.0 - bucket.tokens) / per_second)
    }

    /// Who asks.
    fn client(&self, request: &Request) -> Option<IpAddr> {
        let forwarded =
            || request.headers().get("x-forwarded-for")?.to_str().ok()?.rsplit(',').next()?.trim().parse().ok();
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| address.ip());
        if self.settings.trust_forwarded { forwarded().or(peer) } else { peer }
    }
}

/// Lets a request through, or says when to come again.
pub(super) async fn limit(State(context): State<Context>, request: Request, next: Next) -> Response {
    let allowed = match context.limiter.client(&request) {
        Some(client) => context.limiter.take(client, Instant::now()),
        None => Ok(()),
    };
    let Err(seconds) = allowed else { return next.run(request).await };
    let seconds = seconds.ceil().max(1.0) as u64;
    let detail = format!("more than {} requests in a second", context.limiter.settings.per_second);
    let remedy = format!("come again in {seconds} s; api.rate_limit sets the limit");
    let mut response = Problem::new(StatusCode::TOO_MANY_REQUESTS, detail, remedy).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limiter() -> Limiter {
        Limiter::new(&Settings { per_second: 2.0, burst: 3.0, trust_forwarded: false })
    }

    #[test]
    fn a_client_may_burst_and_then_keeps_to_the_rate_and_others_are_not_held_up() {
        let (limiter, began) = (limiter(), Instant::now());
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert!((0..3).all(|_| limiter.take(a, began).is_ok()));
        assert_eq!(limiter.take(a, began), Err(0.5));
        assert!(limiter.take(b, began).is_ok());
        assert!(limiter.take(a, began + Duration::from_millis(500)).is_ok());
        assert!(limiter.take(a, began + Duration::from_millis(501)).is_err());
    }

    #[test]
    fn clients_without_number_do_not_fill_the_memory() {
        let (limiter, began) = (limiter(), Instant::now());
        for n in 0..CLIENTS_MAX as u32 + 100 {
            assert!(limiter.take(IpAddr::from(n.to_be_bytes()), began + Duration::from_micros(n.into())).is_ok());
        }
        assert!(limiter.buckets.lock().unwrap().len() <= CLIENTS_MAX);
    }
}
