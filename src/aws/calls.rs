//! What every call to AWS came to: one HTTP client under all SDKs, which counts.
//!
//! Counted are attempts, by service and outcome, and which of them were repetitions. The SDKs repeat throttled calls by
//! themselves, so that nothing else in this program sees them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use aws_sdk_dynamodb::config::SharedHttpClient;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;

/// Attempts so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// All of this service and outcome.
    pub attempts: u64,
    /// Of these, repetitions by the SDK.
    pub repeated: u64,
}

/// What a call came to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    /// It was done.
    Done,
    /// Too much was asked at once.
    Throttled,
    /// The request was refused.
    Refused,
    /// The service failed.
    Failed,
    /// There was no answer.
    Silent,
}

impl Outcome {
    /// As metrics name it.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Throttled => "throttled",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::Silent => "silent",
        }
    }
}

/// Services and outcomes are a few dozen at most.
static COUNTS: Mutex<BTreeMap<(String, Outcome), Count>> = Mutex::new(BTreeMap::new());

/// What was counted in this process, by service (as requests are signed) and outcome.
pub fn counts() -> BTreeMap<(String, Outcome), Count> {
    COUNTS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn count(service: String, outcome: Outcome, repeated: bool) {
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.entry((service, outcome)).or_default();
    count.attempts += 1;
    count.repeated += u64::from(repeated);
}

/// A client that counts what another one does.
#[derive(Clone, Debug)]
pub(super) struct Counting(pub SharedHttpClient);

impl HttpClient for Counting {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(CountingConnector(self.0.http_connector(settings, components)))
    }
}

#[derive(Debug)]
struct CountingConnector(SharedHttpConnector);

impl HttpConnector for CountingConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let service = service(&request);
        let attempt = request.headers().get("amz-sdk-request").unwrap_or_default();
        let repeated = attempt.starts_with("attempt=") && !attempt.starts_with("attempt=1");
        let answer = self.0.call(request);
        HttpConnectorFuture::new(async move {
            let Some(service) = service else { return answer.await };
            match answer.await {
                Ok(response) => {
                    let (response, outcome) = judge(response).await;
                    count(service, outcome, repeated);
                    Ok(response)
                }
                Err(error) => {
                    count(service, Outcome::Silent, repeated);
                    Err(error)
                }
            }
        })
    }
}

/// The service's name in the signature, `Credential=ID/20261120/us-east-1/dynamodb/aws4_request`.
fn service(request: &HttpRequest) -> Option<String> {
    let scope = request.headers().get("authorization")?.split("Credential=").nth(1)?;
    scope.split('/').nth(3).map(str::to_owned)
}

/// Refusals are told apart by a code that most services have only in the body. An error's body is a few hundred bytes.
async fn judge(mut response: HttpResponse) -> (HttpResponse, Outcome) {
    const SMALL: usize = 65_536;
    let status = response.status().as_u16();
    let outcome = match status {
        0..400 => return (response, Outcome::Done),
        429 | 503 => return (response, Outcome::Throttled),
        500.. => return (response, Outcome::Failed),
        _ => Outcome::Refused,
    };
    let length = response.headers().get("content-length").and_then(|length| length.parse::<usize>().ok());
    if length.is_none_or(|length| length > SMALL) {
        return (response, outcome);
    }
    let Ok(body) = ByteStream::new(response.take_body()).collect().await else { return (response, Outcome::Silent) };
    let body = body.into_bytes();
    let throttled = ["Throttl", "ThroughputExceeded", "RequestLimitExceeded", "SlowDown", "TooManyRequests"]
        .iter()
        .any(|word| body.windows(word.len()).any(|part| part == word.as_bytes()));
    *response.body_mut() = SdkBody::from(body);
    (response, if throttled { Outcome::Throttled } else { outcome })
}
