//! What every AWS backend shares: one configuration, one HTTP client with TLS on ring, and one reading of errors.
//!
//! Credentials, region and endpoint overrides come from the standard environment (`AWS_ENDPOINT_URL_KINESIS` …), as
//! every other AWS program reads them.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, ConfigLoader, SdkConfig};
use aws_sdk_dynamodb::config::SharedHttpClient;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use jiff::SignedDuration;

use crate::wait::positive;

pub mod calls;
pub mod json;

/// Reads the standard environment and makes the one configuration that all clients are made from.
pub async fn load() -> SdkConfig {
    loader().load().await
}

/// The same, with all services at one endpoint, whatever the environment says of endpoints.
pub async fn load_at(endpoint: &str) -> SdkConfig {
    loader().endpoint_url(endpoint).load().await
}

/// The same account with connections of its own, for a runtime of its own: a connection lives in the runtime that opened
/// it, and waits for whatever that runtime waits for.
pub fn apart(aws: &SdkConfig) -> SdkConfig {
    aws.to_builder().http_client(http()).build()
}

fn loader() -> ConfigLoader {
    aws_config::defaults(BehaviorVersion::latest()).http_client(http())
}

fn http() -> SharedHttpClient {
    let client = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    SharedHttpClient::new(calls::Counting(client))
}

/// Deadlines of one call: `timeout` for an attempt, three times as long for the call with its retries, so that no call
/// waits for ever on a half-open connection.
pub fn deadlines(timeout: SignedDuration) -> TimeoutConfig {
    let timeout = positive(timeout);
    TimeoutConfig::builder()
        .connect_timeout(timeout.min(Duration::from_secs(3)))
        .operation_attempt_timeout(timeout)
        .operation_timeout(timeout * 3)
        .build()
}

/// What went wrong with a call, read once for all services.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The service's code (`ThrottlingException`), empty where no answer came.
    pub code: String,
    /// The whole chain of causes.
    pub cause: String,
    /// Whether the same call may go better later.
    pub retry: bool,
}

impl Fault {
    /// Reads an error of any operation.
    pub fn of<E, R>(error: &SdkError<E, R>) -> Fault
    where
        E: ProvideErrorMetadata + Error + 'static,
        R: std::fmt::Debug,
    {
        match error {
            SdkError::ServiceError(context) => {
                let code = context.err().code().unwrap_or_default().to_owned();
                let message = context.err().message().unwrap_or_default();
                let retry = retryable(&code);
                Fault { cause: format!("{code}: {message}"), code, retry }
            }
            // A request that cannot even be built will not be built the next time.
            SdkError::ConstructionFailure(_) => Fault { code: String::new(), cause: chain(error), retry: false },
            _ => Fault { code: String::new(), cause: chain(error), retry: true },
        }
    }
}

/// Whether a service's code says "later" instead of "never". A code that is missing comes from an answer no service
/// wrote (a proxy's 502): later.
pub fn retryable(code: &str) -> bool {
    const FINAL: [&str; 18] = [
        "AccessDeniedException",
        "AccessDenied",
        "ConditionalCheckFailedException",
        "ExpiredIteratorException",
        "IdempotentParameterMismatchException",
        "IncompleteSignature",
        "InvalidArgumentException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "NoSuchBucket",
        "NoSuchKey",
        "ParameterNotFound",
        "QueueDoesNotExist",
        "ResourceNotFoundException",
        "SerializationException",
        "UnrecognizedClientException",
        "ValidationException",
    ];
    !FINAL.contains(&code)
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttles_are_tried_again_and_refusals_are_not() {
        for later in ["ThrottlingException", "ProvisionedThroughputExceededException", "InternalFailure", ""] {
            assert!(retryable(later), "{later}");
        }
        for never in ["ValidationException", "AccessDeniedException", "ConditionalCheckFailedException"] {
            assert!(!retryable(never), "{never}");
        }
    }
}
