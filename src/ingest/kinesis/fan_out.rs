//! Enhanced fan-out: Kinesis pushes a shard's records to a consumer that is registered with the stream.
//!
//! Every registered consumer has 2 MiB a second of each shard for itself and hears of a record within about 70 ms, for a
//! price; polling shares its five reads and 2 MiB a second with all who poll. A subscription lasts five minutes and is then
//! made again from the last continuation number; so it is after an error. Kinesis lets the same consumer subscribe to a shard
//! again after five seconds, and then ends the earlier subscription: that is how a shard moves from one task to another.
//!
//! Source: Kinesis API reference, `SubscribeToShard`; `FanOutRecordsPublisher.java` and `FanOutConsumerRegistration.java` of
//! `awslabs/amazon-kinesis-client` 3.5.1.

use std::fmt;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::error::SdkError;
use aws_sdk_kinesis::operation::subscribe_to_shard::SubscribeToShardOutput;
use aws_sdk_kinesis::types::error::SubscribeToShardEventStreamError;
use aws_sdk_kinesis::types::{ConsumerStatus, StartingPosition, SubscribeToShardEvent, SubscribeToShardEventStream};
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use crate::aws::{Fault, apart, retryable};
use crate::ingest::kinesis::{Settings, client};
use crate::wait::{backoff, positive};

/// A consumer that is registered with the stream. It belongs to all tasks of the application, and outlives them.
#[derive(Clone)]
pub(super) struct Consumer {
    arn: String,
    aws: SdkConfig,
    settings: Settings,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Consumer({})", self.arn)
    }
}

impl Consumer {
    /// The consumer that the settings name; one that is named without an ARN is registered where it is not yet.
    pub async fn find(aws: &SdkConfig, settings: &Settings) -> Result<Consumer, Fault> {
        let arn = match settings.fan_out.as_str() {
            arn if arn.starts_with("arn:") => arn.to_owned(),
            name => registered(&client(aws, settings), &settings.stream, name).await?,
        };
        Ok(Consumer { arn, aws: aws.clone(), settings: settings.clone() })
    }

    /// A subscription to a shard; nothing is asked yet.
    ///
    /// Over a connection of its own: the subscriptions of one HTTP/2 connection share its window, and a shard whose records
    /// wait for the pipeline would hold back the others, and with them every call.
    pub fn subscription(&self, shard: &str) -> Subscription {
        let mut aws = apart(&self.aws).into_builder();
        // A quiet shard and one whose records wait are no stalled downloads; `SILENCE_MAX` is for those.
        aws.set_stalled_stream_protection(Some(StalledStreamProtectionConfig::disabled()));
        Subscription {
            client: client(&aws.build(), &self.settings),
            consumer: self.arn.clone(),
            shard: shard.to_owned(),
            open: None,
            continuation: None,
            heard: Instant::now(),
            not_before: Instant::now(),
            pauses: 0,
        }
    }
}

/// The ARN of the stream's consumer of this name, once it is active.
async fn registered(kinesis: &Client, stream: &str, name: &str) -> Result<String, Fault> {
    let told = kinesis.describe_stream_summary().stream_name(stream).send().await.map_err(|e| Fault::of(&e))?;
    let stream_arn = told.stream_description_summary.map(|summary| summary.stream_arn).unwrap_or_default();
    for _ in 0..CONSUMER_POLLS {
        let described = kinesis.describe_stream_consumer().stream_arn(&stream_arn).consumer_name(name).send().await;
        match described.map_err(|e| Fault::of(&e)) {
            Ok(told) => match told.consumer_description {
                Some(consumer) if consumer.consumer_status == ConsumerStatus::Active => {
                    return Ok(consumer.consumer_arn);
                }
                _ => {}
            },
            Err(fault) if fault.code == "ResourceNotFoundException" => {
                let made = kinesis.register_stream_consumer().stream_arn(&stream_arn).consumer_name(name).send().await;
                match made.map_err(|e| Fault::of(&e)) {
                    Ok(_) => info!(consumer = name, stream, "stream consumer registered"),
                    // Another task was faster.
                    Err(fault) if fault.code == "ResourceInUseException" => {}
                    Err(fault) => return Err(fault),
                }
            }
            Err(fault) => return Err(fault),
        }
        tokio::time::sleep(CONSUMER_POLL).await;
    }
    Err(Fault { code: String::new(), cause: format!("stream consumer {name} does not become active"), retry: true })
}

/// What ended an event stream. Kinesis names an exception there by its type alone, and not by a code as in an answer.
fn thrown<R: fmt::Debug>(error: &SdkError<SubscribeToShardEventStreamError, R>) -> Fault {
    use SubscribeToShardEventStreamError::{KmsThrottlingException, ResourceInUseException, ResourceNotFoundException};
    let code = match error.as_service_error() {
        Some(ResourceInUseException(_)) => "ResourceInUseException",
        Some(ResourceNotFoundException(_)) => "ResourceNotFoundException",
        Some(KmsThrottlingException(_)) => "KMSThrottlingException",
        _ => return Fault::of(error),
    };
    Fault { code: code.to_owned(), cause: format!("{code}{}", Fault::of(error).cause), retry: retryable(code) }
}

/// How long a consumer may take to become active: AWS needs seconds, up to a minute.
const CONSUMER_POLLS: u32 = 600;
const CONSUMER_POLL: Duration = Duration::from_millis(200);

/// Kinesis refuses a consumer that subscribes to a shard again within five seconds.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(5);

/// Kinesis allows one attempt a second for a consumer and a shard.
const SUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);

/// Kinesis sends an event every few seconds also where nothing arrives. A subscription that is silent for longer than this is
/// made again (`FanOutRecordsPublisher` waits 35 s).
const SILENCE_MAX: Duration = Duration::from_secs(35);

/// What a shard's records are pushed through.
pub(super) struct Subscription {
    client: Client,
    consumer: String,
    shard: String,
    open: Option<SubscribeToShardOutput>,
    /// Where the last event said to go on.
    continuation: Option<String>,
    heard: Instant,
    /// Not subscribed again before this moment.
    not_before: Instant,
    /// Pauses after failures in a row.
    pauses: u32,
}

impl Subscription {
    /// The next event; `None` when there is none within `idle`. Where nothing was heard yet, it begins at `from`.
    pub async fn next(
        &mut self,
        from: StartingPosition,
        settings: &Settings,
    ) -> Result<Option<SubscribeToShardEvent>, Fault> {
        let idle = positive(settings.idle);
        let Some(open) = &mut self.open else {
            tokio::time::sleep_until(self.not_before.min(Instant::now() + idle)).await;
            if self.not_before <= Instant::now() {
                self.subscribe(from, settings).await?;
            }
            return Ok(None);
        };
        let Ok(heard) = timeout(idle, open.event_stream.recv()).await else {
            if self.heard.elapsed() > SILENCE_MAX {
                debug!(shard = self.shard, "the subscription is silent");
                self.open = None;
            }
            return Ok(None);
        };
        match heard.map_err(|e| thrown(&e)) {
            Ok(Some(SubscribeToShardEventStream::SubscribeToShardEvent(event))) => {
                self.heard = Instant::now();
                self.pauses = 0;
                if !event.continuation_sequence_number.is_empty() {
                    self.continuation = Some(event.continuation_sequence_number.clone());
                }
                Ok(Some(event))
            }
            // An event of a later version of the service.
            Ok(Some(_)) => Ok(None),
            Ok(None) => {
                debug!(shard = self.shard, "the subscription has ended");
                self.open = None;
                Ok(None)
            }
            Err(fault) => {
                self.open = None;
                self.refused(fault, settings)
            }
        }
    }

    async fn subscribe(&mut self, from: StartingPosition, settings: &Settings) -> Result<(), Fault> {
        let from = match &self.continuation {
            Some(number) => StartingPosition::builder()
                .r#type(aws_sdk_kinesis::types::ShardIteratorType::AfterSequenceNumber)
                .sequence_number(number)
                .build()
                .expect("the type is set"),
            None => from,
        };
        let asked = Instant::now();
        let request = self.client.subscribe_to_shard().consumer_arn(&self.consumer).shard_id(&self.shard);
        // The deadlines of a call end with the head of its answer; the first event is waited for beyond that.
        let patience = positive(settings.timeout) * 3;
        let told = match timeout(patience, request.starting_position(from).send()).await {
            Ok(told) => told.map_err(|e| Fault::of(&e)),
            Err(_) => Err(Fault { code: String::new(), cause: format!("no answer within {patience:?}"), retry: true }),
        };
        match told {
            Ok(open) => {
                debug!(shard = self.shard, "subscribed");
                self.not_before = asked + SUBSCRIBE_AGAIN;
                self.heard = Instant::now();
                self.open = Some(open);
                Ok(())
            }
            Err(fault) => self.refused(fault, settings).map(|_| ()),
        }
    }

    /// Decides when to try again, and whether the failure is worth telling.
    fn refused(&mut self, fault: Fault, settings: &Settings) -> Result<Option<SubscribeToShardEvent>, Fault> {
        let next = backoff(SUBSCRIBE_PAUSE, positive(settings.backoff_max), self.pauses);
        self.pauses = self.pauses.saturating_add(1);
        let pause = match fault.code.as_str() {
            // Somebody subscribed within the last seconds: ourselves, or the task that had the lease before.
            "ResourceInUseException" => SUBSCRIBE_AGAIN,
            _ => next,
        };
        self.not_before = self.not_before.max(Instant::now() + pause);
        match fault.code.as_str() {
            "ResourceInUseException" | "LimitExceededException" | "ThrottlingException" | "KMSThrottlingException" => {
                debug!(shard = self.shard, code = fault.code, ?pause, "subscribing again after a pause");
                Ok(None)
            }
            _ => Err(fault),
        }
    }
}
