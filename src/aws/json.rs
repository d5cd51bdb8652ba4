//! A thin signed client for the services of which we need one call each: Parameter Store, Secrets Manager, Cloud Map.
//!
//! Their SDK crates are large (`aws-sdk-ssm` alone would be the largest crate of the build) for four calls of AWS's JSON 1.1
//! protocol: one POST whose `x-amz-target` names the operation. Signing, credentials, endpoints, connections and deadlines
//! are those of the SDK.

use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_dynamodb::config::SharedHttpClient;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_runtime::client::orchestrator::operation::Operation;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse, OrchestratorError};
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::body::SdkBody;
use aws_types::service_config::ServiceConfigKey;
use jiff::SignedDuration;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Fault, chain, deadlines, retryable};
use crate::wait::backoff;

/// A service of the JSON 1.1 protocol.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its name as the SDKs have it; `AWS_ENDPOINT_URL_…` is made of it.
    id: &'static str,
    /// The name by which requests are signed, which is also that of its host.
    signing: &'static str,
    /// What stands before the operation in `x-amz-target`.
    target: &'static str,
}

/// Systems Manager, of which we read the Parameter Store.
pub const SSM: Service = Service { id: "SSM", signing: "ssm", target: "AmazonSSM" };

/// Secrets Manager.
pub const SECRETS: Service = Service { id: "Secrets Manager", signing: "secretsmanager", target: "secretsmanager" };

/// Cloud Map.
pub const CLOUD_MAP: Service =
    Service { id: "ServiceDiscovery", signing: "servicediscovery", target: "Route53AutoNaming_v20170314" };

/// How often a call is tried when its failure says "later".
const ATTEMPTS: u32 = 3;

/// The pause before the second try; it doubles.
const PAUSE: Duration = Duration::from_millis(200);

/// A client of one service.
#[derive(Clone, Debug)]
pub struct JsonClient {
    service: Service,
    endpoint: String,
    region: String,
    credentials: Option<SharedCredentialsProvider>,
    http: Option<SharedHttpClient>,
    timeout: SignedDuration,
}

impl JsonClient {
    /// A client with the account, region and endpoint of the configuration; `timeout` bounds one attempt of a call.
    pub fn new(aws: &SdkConfig, service: Service, timeout: SignedDuration) -> JsonClient {
        let region = aws.region().map_or("us-east-1", |region| region.as_ref()).to_owned();
        JsonClient {
            endpoint: endpoint(aws, service, &region),
            service,
            region,
            credentials: aws.credentials_provider(),
            http: aws.http_client(),
            timeout,
        }
    }

    /// The same service in another region, where an ARN names one; an endpoint that was overridden stays.
    #[must_use]
    pub fn in_region(mut self, region: &str) -> JsonClient {
        let own = host(self.service, &self.region);
        if self.endpoint == own {
            self.endpoint = host(self.service, region);
        }
        region.clone_into(&mut self.region);
        self
    }

    /// Calls an operation, and again when its failure says "later".
    ///
    /// # Errors
    /// The last try's fault; its cause never holds what was sent or answered.
    pub async fn call<T: DeserializeOwned>(&self, operation: &'static str, input: &Value) -> Result<T, Fault> {
        let mut tried = 1;
        loop {
            match self.attempt(operation, input).await {
                Err(fault) if fault.retry && tried < ATTEMPTS => {
                    tokio::time::sleep(backoff(PAUSE, Duration::MAX, tried - 1)).await;
                    tried += 1;
                }
                Err(fault) => return Err(fault),
                Ok(answer) => {
                    return serde_json::from_slice(&answer).map_err(|error| {
                        // The position of the mistake, and never the text around it: it may be a secret.
                        never(format!("{operation} answered what cannot be read, at column {}", error.column()))
                    });
                }
            }
        }
    }

    async fn attempt(&self, operation: &'static str, input: &Value) -> Result<Vec<u8>, Fault> {
        let request = self.signed(operation, input.to_string()).await?;
        let http = self.http.clone().ok_or_else(|| never("there is no HTTP client".to_owned()))?;
        let call = Operation::builder()
            .service_name(self.service.id)
            .operation_name(operation)
            .http_client(http)
            .endpoint_url(&self.endpoint)
            .no_auth()
            .no_retry()
            .timeout_config(deadlines(self.timeout))
            .serializer(|request: HttpRequest| Ok(request))
            .deserializer(read)
            .build();
        call.invoke(request).await.map_err(|error| match error {
            SdkError::ServiceError(refused) => refused.into_err().0,
            other => Fault { code: String::new(), cause: chain(&other), retry: true },
        })
    }

    async fn signed(&self, operation: &str, body: String) -> Result<HttpRequest, Fault> {
        let provider = self.credentials.as_ref().ok_or_else(|| never("there are no credentials".to_owned()))?;
        let credentials = provider.provide_credentials().await.map_err(|error| Fault {
            code: String::new(),
            cause: chain(&error),
            retry: true,
        })?;
        let host = self.endpoint.split_once("://").map_or(self.endpoint.as_str(), |(_, rest)| rest);
        let target = format!("{}.{operation}", self.service.target);
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("host", host.trim_end_matches('/')),
            ("x-amz-target", target.as_str()),
        ];
        let uri = format!("{}/", self.endpoint.trim_end_matches('/'));
        let identity = credentials.into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(self.service.signing)
            .time(now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| never(error.to_string()))?
            .into();
        let signable = SignableRequest::new("POST", &uri, headers.into_iter(), SignableBody::Bytes(body.as_bytes()))
            .map_err(|error| never(error.to_string()))?;
        let (instructions, _) = sign(signable, &parameters).map_err(|error| never(error.to_string()))?.into_parts();
        let mut request = HttpRequest::new(SdkBody::from(body));
        request.set_method("POST").map_err(|error| never(error.to_string()))?;
        // The endpoint is put before the path by the client.
        request.set_uri("/").map_err(|error| never(error.to_string()))?;
        for (name, value) in headers {
            request.headers_mut().insert(name, value.to_owned());
        }
        for (name, value) in instructions.headers() {
            request.headers_mut().insert(name.to_owned(), value.to_owned());
        }
        Ok(request)
    }
}

/// A fault as the error type that the client wants.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.cause)]
struct Refused(Fault);

/// The body of an answer, or the service's code and message.
fn read(response: &HttpResponse) -> Result<Vec<u8>, OrchestratorError<Refused>> {
    let body = response.body().bytes().unwrap_or_default();
    if response.status().is_success() {
        return Ok(body.to_vec());
    }
    #[derive(serde::Deserialize, Default)]
    struct Told {
        #[serde(rename = "__type", default)]
        code: String,
        #[serde(alias = "Message", default)]
        message: String,
    }
    let told: Told = serde_json::from_slice(body).unwrap_or_default();
    // `com.amazonaws.ssm#ParameterNotFound` and `ParameterNotFound:http://…` are the same code.
    let code = told.code.rsplit('#').next().unwrap_or_default().split(':').next().unwrap_or_default().to_owned();
    let status = response.status().as_u16();
    let cause = if code.is_empty() { format!("HTTP {status}") } else { format!("{code}: {}", told.message) };
    let retry = retryable(&code) && (status >= 500 || status == 429 || !code.is_empty());
    Err(OrchestratorError::operation(Refused(Fault { code, cause, retry })))
}

/// A signature holds for five minutes around the wall clock.
#[expect(clippy::disallowed_methods, reason = "the signature is dated by the wall clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn never(cause: String) -> Fault {
    Fault { code: String::new(), cause, retry: false }
}

/// Where the service is: as the environment or the profile says, else in the region.
fn endpoint(aws: &SdkConfig, service: Service, region: &str) -> String {
    let key = ServiceConfigKey::builder()
        .service_id(service.id)
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .expect("all parts are set just above");
    let configured = aws.service_config().and_then(|config| config.load_config(key));
    let overridden = match aws.get_origin("endpoint_url").is_client_config() {
        true => aws.endpoint_url().map(str::to_owned).or(configured),
        false => configured.or_else(|| aws.endpoint_url().map(str::to_owned)),
    };
    overridden.unwrap_or_else(|| host(service, region))
}

fn host(service: Service, region: &str) -> String {
    let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://{}.{region}.{suffix}", service.signing)
}
