//! Dead letters: what could not be announced waits in an SQS queue, with its cause, until a sweep announces it; and what can
//! never be recorded or announced, for its own sake ([`crate::blame`]), is kept for people.
//!
//! [`WithDeadLetters`] stands before an announcer. What the announcer gives back goes to the queue, and is then as good
//! as announced: the queue keeps it, and [`WithDeadLetters::sweep`] tries again. Meanwhile health says that the announcer is away.
//! Only where the queue is away too does the caller get the error, and holds. A letter that is never taken stays in the queue
//! until the queue's own redrive policy or retention ends it, where a person can read its cause.
//!
//! [`Letters`] is where everything else goes that has no other place: the queue, and for what that does not take, or where there
//! is none, a file ([`local`]).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, Message, SendMessageBatchRequestEntry};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::anomaly::Anomaly;
use crate::aws::{Fault, deadlines};
use crate::blame::Backend;
use crate::health::Health;
use crate::ingest::{Refusal, ShardId};
use crate::publish::{Announcement, Announcer, Notice, PublishError, Silence};
use crate::telemetry::{self, Metrics};

use local::LetterFile;

pub mod local;

/// Settings of the backend, `[publish.dead_letter]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// URL of the SQS queue for what cannot be announced.
    pub queue_url: String,
    /// URL of the SQS queue for input that cannot be read; empty for none. A queue of its own: it is for people, and would
    /// hold up the sweeps of the other.
    pub refusals_queue_url: String,
    /// Letters about unreadable input that one task writes in a minute at most.
    pub refusals_per_minute: u32,
    /// How often the queue is swept.
    pub sweep_every: SignedDuration,
    /// Letters that one sweep takes at most.
    pub sweep_max: usize,
    /// How long a letter that was taken is hidden from other sweepers.
    pub hidden: SignedDuration,
    /// Deadline of one attempt of a call.
    pub timeout: SignedDuration,
}

/// What lies in the queue.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Letter {
    /// An announcement that nobody took.
    Announcement {
        /// What was to be announced.
        announcement: Announcement,
        /// About which anomaly.
        anomaly: Box<Anomaly>,
        /// Why it was not.
        cause: String,
    },
    /// An anomaly that can never be recorded; it was not announced either.
    Unrecorded {
        /// What was to be recorded.
        anomaly: Box<Anomaly>,
        /// Why it never can be.
        cause: String,
    },
    /// A reason for silence that can never be kept.
    Unkept {
        /// What was to be kept.
        silence: Box<Silence>,
        /// Why it never can be.
        cause: String,
    },
    /// Input that could not be read. The payload is not kept: flow logs do not belong into queues.
    Refusal {
        /// The shard it came from.
        shard: ShardId,
        /// Where and why.
        refusal: Refusal,
    },
}

impl Letter {
    /// Why it was written.
    pub fn cause(&self) -> &str {
        match self {
            Letter::Announcement { cause, .. } | Letter::Unrecorded { cause, .. } | Letter::Unkept { cause, .. } => {
                cause
            }
            Letter::Refusal { refusal, .. } => &refusal.reason,
        }
    }

    /// As metrics name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Letter::Announcement { .. } => "announcement",
            Letter::Unrecorded { .. } => "unrecorded",
            Letter::Unkept { .. } => "unkept",
            Letter::Refusal { .. } => "refusal",
        }
    }
}

/// A dead-letter queue.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    client: Client,
    settings: Settings,
    metrics: Option<Arc<Metrics>>,
}

impl DeadLetters {
    /// A queue that exists.
    pub fn new(aws: &SdkConfig, settings: &Settings) -> DeadLetters {
        let config = aws_sdk_sqs::config::Builder::from(aws).timeout_config(deadlines(settings.timeout)).build();
        DeadLetters { client: Client::from_conf(config), settings: settings.clone(), metrics: None }
    }

    /// Counts letters from here on.
    #[must_use]
    pub fn counting(mut self, metrics: Arc<Metrics>) -> DeadLetters {
        self.metrics = Some(metrics);
        self
    }

    /// The same, with what it puts going to the queue for unreadable input; `None` where the settings name none.
    fn for_refusals(&self) -> Option<DeadLetters> {
        let queue_url = self.settings.refusals_queue_url.clone();
        let named = !queue_url.is_empty();
        named.then(|| DeadLetters { settings: Settings { queue_url, ..self.settings.clone() }, ..self.clone() })
    }

    fn count(&self, kind: &str, outcome: &str, letters: usize) {
        if let Some(metrics) = &self.metrics {
            metrics.add(&telemetry::DEAD_LETTERS, &[kind, outcome], letters as u64);
        }
    }

    /// Puts letters into the queue; answers what became of each.
    pub async fn put(&self, letters: &[Letter]) -> Vec<Result<(), PublishError>> {
        let mut outcomes = Vec::with_capacity(letters.len());
        for letter in letters {
            outcomes.push(serde_json::to_string(letter).map_err(|e| {
                PublishError::blamed(Backend::Sqs, "write a dead letter as JSON", "InvalidMessageContents", e)
            }));
        }
        let bodies: Vec<(usize, String)> = outcomes
            .iter_mut()
            .enumerate()
            .filter_map(|(i, o)| Some((i, o.as_mut().ok().map(std::mem::take)?)))
            .collect();
        let mut results: Vec<Result<(), PublishError>> = outcomes.into_iter().map(|o| o.map(drop)).collect();
        for part in packed(bodies) {
            self.send(part, &mut results).await;
        }
        for (letter, result) in letters.iter().zip(&results) {
            self.count(letter.kind(), if result.is_ok() { "put" } else { "failed" }, 1);
        }
        results
    }

    async fn send(&self, part: Vec<(usize, String)>, results: &mut [Result<(), PublishError>]) {
        const CONTEXT: &str = "put a dead letter into the queue";
        let entry = |(index, body): &(usize, String)| {
            SendMessageBatchRequestEntry::builder().id(index.to_string()).message_body(body).build()
        };
        let entries = match part.iter().map(entry).collect::<Result<Vec<_>, _>>() {
            Ok(entries) => entries,
            Err(error) => {
                for (index, _) in part {
                    results[index] =
                        Err(PublishError::blamed(Backend::Sqs, CONTEXT, "InvalidMessageContents", error.to_string()));
                }
                return;
            }
        };
        let sent =
            self.client.send_message_batch().queue_url(&self.settings.queue_url).set_entries(Some(entries)).send();
        match sent.await {
            Ok(answer) => {
                for failed in answer.failed() {
                    let cause = format!("{}: {}", failed.code(), failed.message().unwrap_or_default());
                    let fault = Fault { code: failed.code().to_owned(), cause, retry: !failed.sender_fault() };
                    if let Some(result) = failed.id().parse::<usize>().ok().and_then(|i| results.get_mut(i)) {
                        *result = Err(PublishError::of(Backend::Sqs, CONTEXT, fault));
                    }
                }
            }
            Err(error) => {
                let fault = Fault::of(&error);
                for (index, _) in part {
                    results[index] = Err(PublishError::of(Backend::Sqs, CONTEXT, fault.clone()));
                }
            }
        }
    }

    async fn receive(&self) -> Result<Vec<(Message, Letter)>, PublishError> {
        let hidden = i32::try_from(self.settings.hidden.as_secs()).unwrap_or(i32::MAX).max(1);
        let answer = self
            .client
            .receive_message()
            .queue_url(&self.settings.queue_url)
            .max_number_of_messages(BATCH as i32)
            .visibility_timeout(hidden)
            .send()
            .await
            .map_err(|e| PublishError::of(Backend::Sqs, "read the dead-letter queue", Fault::of(&e)))?;
        let read = |message: Message| {
            let letter = serde_json::from_str(message.body().unwrap_or_default()).ok()?;
            Some((message, letter))
        };
        Ok(answer.messages.unwrap_or_default().into_iter().filter_map(read).collect())
    }

    async fn delete(&self, messages: &[&Message]) -> Result<(), PublishError> {
        const CONTEXT: &str = "remove dead letters that were announced";
        let entry = |(index, message): (usize, &&Message)| {
            DeleteMessageBatchRequestEntry::builder()
                .id(index.to_string())
                .receipt_handle(message.receipt_handle().unwrap_or_default())
                .build()
        };
        let entries: Vec<_> = messages
            .iter()
            .enumerate()
            .map(entry)
            .collect::<Result<_, _>>()
            .map_err(|e| PublishError::blamed(Backend::Sqs, CONTEXT, "InvalidMessageContents", e))?;
        if entries.is_empty() {
            return Ok(());
        }
        let queue = &self.settings.queue_url;
        // A letter whose removal fails is announced again, which is harmless.
        self.client
            .delete_message_batch()
            .queue_url(queue)
            .set_entries(Some(entries))
            .send()
            .await
            .map_err(|e| PublishError::of(Backend::Sqs, CONTEXT, Fault::of(&e)))?;
        Ok(())
    }
}

/// Messages of one request (SQS API reference, `SendMessageBatch` and `ReceiveMessage`).
const BATCH: usize = 10;

/// Bytes of one request: under the older limit of 256 KiB, which some regions and emulators still keep.
const BATCH_BYTES: usize = 250 * 1024;

fn packed(bodies: Vec<(usize, String)>) -> Vec<Vec<(usize, String)>> {
    let mut parts: Vec<Vec<(usize, String)>> = Vec::new();
    let mut bytes = 0;
    for (index, body) in bodies {
        match parts.last_mut() {
            Some(part) if part.len() < BATCH && bytes + body.len() <= BATCH_BYTES => {
                bytes += body.len();
                part.push((index, body));
            }
            _ => {
                bytes = body.len();
                parts.push(vec![(index, body)]);
            }
        }
    }
    parts
}

/// Refusals that wait to be written as letters; what comes on top is counted and dropped.
const REFUSALS_WAITING: usize = 256;

/// How long refusals are gathered for one request.
const GATHER: Duration = Duration::from_millis(500);

/// Where refused input is told to, in samples; sending never waits.
pub type Refusals = mpsc::Sender<(ShardId, Refusal)>;

/// Writes a letter about each refusal that is told, as many a minute as the settings allow, for as long as the process
/// runs. Nothing waits for it: where the queue is away, the refusals are only counted, as all are.
pub fn keep_refusals(letters: &DeadLetters) -> Option<Refusals> {
    let letters = letters.for_refusals()?;
    let (send, mut refusals) = mpsc::channel::<(ShardId, Refusal)>(REFUSALS_WAITING);
    tokio::spawn(async move {
        let allowed = letters.settings.refusals_per_minute as usize;
        let (mut minute, mut written) = (Instant::now(), 0);
        while let Some(first) = refusals.recv().await {
            tokio::time::sleep(GATHER).await;
            let mut gathered = vec![first];
            while let Ok(next) = refusals.try_recv() {
                gathered.push(next);
            }
            if minute.elapsed() >= Duration::from_secs(60) {
                (minute, written) = (Instant::now(), 0);
            }
            let room = allowed.saturating_sub(written);
            letters.count("refusal", "over the limit", gathered.len().saturating_sub(room));
            let batch: Vec<Letter> = gathered.into_iter().take(room).map(|(shard, r)| refusal(shard, r)).collect();
            written += batch.len();
            if let Some(Err(error)) = letters.put(&batch).await.into_iter().find(Result::is_err) {
                warn!(%error, "letters about unreadable input are lost");
            }
        }
    });
    Some(send)
}

/// The letter about a refusal: what the reason quotes of the input is left out.
fn refusal(shard: ShardId, refusal: Refusal) -> Letter {
    let quoted = refusal.reason.split('`').enumerate();
    let reason: Vec<&str> = quoted.map(|(index, part)| if index % 2 == 1 { "…" } else { part }).collect();
    Letter::Refusal { shard, refusal: Refusal { reason: reason.join("`"), ..refusal } }
}

/// Where letters are kept that have no other place: the queue, where there is one, and a file for what that never takes.
#[derive(Debug)]
pub struct Letters {
    queue: Option<DeadLetters>,
    file: LetterFile,
    metrics: Option<Arc<Metrics>>,
}

impl Letters {
    /// In a file alone.
    pub fn in_file(path: impl Into<PathBuf>) -> Letters {
        Letters { queue: None, file: LetterFile::new(path), metrics: None }
    }

    /// In a queue first.
    #[must_use]
    pub fn before(self, queue: DeadLetters) -> Letters {
        Letters { queue: Some(queue), ..self }
    }

    /// Counts letters in the file from here on.
    #[must_use]
    pub fn counting(self, metrics: Arc<Metrics>) -> Letters {
        Letters { metrics: Some(metrics), ..self }
    }

    /// Keeps letters; answers what became of each. What cannot be kept at the moment is to be held.
    pub async fn put(&self, letters: &[Letter]) -> Vec<Result<(), PublishError>> {
        let mut results = match &self.queue {
            Some(queue) => queue.put(letters).await,
            None => letters.iter().map(|_| Err(PublishError::in_no_queue())).collect(),
        };
        for (letter, result) in letters.iter().zip(&mut results) {
            if let Err(PublishError::Fatal { .. }) = result {
                *result = self.file.put(letter).await;
                if let Some(metrics) = &self.metrics {
                    let outcome = if result.is_ok() { "put" } else { "failed" };
                    metrics.add(&telemetry::DEAD_LETTERS, &[letter.kind(), outcome], 1);
                }
            }
        }
        results
    }
}

impl PublishError {
    fn in_no_queue() -> PublishError {
        PublishError::Fatal {
            context: "put a dead letter into the queue".to_owned(),
            cause: "there is none".to_owned(),
        }
    }
}

/// An announcer whose failures are kept as dead letters.
pub struct WithDeadLetters {
    inner: Arc<dyn Announcer>,
    /// What is swept.
    queue: DeadLetters,
    letters: Arc<Letters>,
    health: Arc<Health>,
}

/// The part that is away, as health names it, while announcements go to the queue.
const PART: &str = "announcer";

impl WithDeadLetters {
    /// Puts what `inner` gives back into `letters`, and announces what lies in their `queue`.
    pub fn new(
        inner: Arc<dyn Announcer>,
        queue: DeadLetters,
        letters: Arc<Letters>,
        health: Arc<Health>,
    ) -> WithDeadLetters {
        WithDeadLetters { inner, queue, letters, health }
    }

    /// Says how the announcer is, from what became of a batch.
    fn tell(&self, outcomes: &[Result<(), PublishError>]) {
        let away = outcomes.iter().find_map(|outcome| match outcome {
            Err(error @ PublishError::Retry { .. }) => Some(error),
            _ => None,
        });
        match away {
            Some(error) => {
                let reason = format!("{error}; announcements wait in the dead-letter queue");
                if self.health.degrade(PART, reason) {
                    warn!(%error, "announcements wait in the dead-letter queue");
                }
            }
            None if outcomes.iter().any(Result::is_ok) && self.health.restore(PART) => {
                info!("announcements are taken again");
            }
            None => {}
        }
    }

    /// Announces what lies in the queue; answers how many letters were announced. Letters that are no announcements, and
    /// those that are not taken this time either, stay.
    pub async fn sweep(&self) -> Result<usize, PublishError> {
        let mut announced = 0;
        let mut seen = 0;
        while seen < self.queue.settings.sweep_max {
            let received = self.queue.receive().await?;
            if received.is_empty() {
                break;
            }
            seen += received.len();
            let mut due = Vec::new();
            let mut batch = Vec::new();
            for (message, letter) in &received {
                if let Letter::Announcement { announcement, anomaly, .. } = letter {
                    due.push(message);
                    batch.push((*announcement, (**anomaly).clone()));
                }
            }
            let outcomes = self.inner.announce(&batch).await;
            self.tell(&outcomes);
            let done: Vec<&Message> =
                due.into_iter().zip(&outcomes).filter(|(_, o)| o.is_ok()).map(|(m, _)| m).collect();
            self.queue.delete(&done).await?;
            self.queue.count("announcement", "announced", done.len());
            announced += done.len();
            if outcomes.iter().any(|o| matches!(o, Err(PublishError::Retry { .. }))) {
                break;
            }
        }
        Ok(announced)
    }
}

#[async_trait]
impl Announcer for WithDeadLetters {
    async fn notify(&self, notice: &Notice) -> Result<(), PublishError> {
        self.inner.notify(notice).await
    }

    async fn announce(&self, batch: &[(Announcement, Anomaly)]) -> Vec<Result<(), PublishError>> {
        let mut results = self.inner.announce(batch).await;
        self.tell(&results);
        let mut letters = Vec::new();
        let mut failed = Vec::new();
        for (index, (result, (announcement, anomaly))) in results.iter().zip(batch).enumerate() {
            // Where nobody is left to be told, that is for the caller to say.
            if let Err(error @ (PublishError::Retry { .. } | PublishError::Fatal { .. })) = result {
                failed.push(index);
                let (anomaly, cause) = (Box::new(anomaly.clone()), error.to_string());
                letters.push(Letter::Announcement { announcement: *announcement, anomaly, cause });
            }
        }
        for (index, outcome) in failed.into_iter().zip(self.letters.put(&letters).await) {
            match outcome {
                Ok(()) => {
                    if let Err(error) = &results[index] {
                        warn!(anomaly = %batch[index].1.anomaly_id, error = %error, "announcement kept as a dead letter");
                    }
                    results[index] = Ok(());
                }
                // The queue is away too: the announcer's own error says whether to hold or to give up.
                Err(error) => warn!(error = %error, "keep a dead letter"),
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_about_unreadable_input_quotes_nothing_of_it() {
        let reason = "`secret stuff` is not a number from 0 to 65535".to_owned();
        let told = Refusal { source: "shard-0 123".to_owned(), line: 7, field: Some("srcport".to_owned()), reason };
        let letter = serde_json::to_string(&refusal(ShardId("shard-0".into()), told)).unwrap();
        assert!(letter.contains("`…` is not a number") && letter.contains("shard-0 123"), "{letter}");
        assert!(!letter.contains("secret"), "{letter}");
    }
}
