//! Announcing on an EventBridge bus.
//!
//! Events go out in batches that respect both limits of `PutEvents`, entries and bytes. The answer tells of each entry
//! whether it was taken; only those that were not are sent again, and only if their code says that it may help. Events
//! carry the anomaly's id, so one that went out twice is the same news.

use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use jiff::SignedDuration;
use serde::Deserialize;

use crate::anomaly::Anomaly;
use crate::aws::{Fault, deadlines};
use crate::blame::Backend;
use crate::publish::{Announcement, Announcer, Notice, PublishError};
use crate::telemetry::trace;
use crate::wait::{backoff, positive};

/// Settings of the backend, `[publish.eventbridge]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name or ARN of the bus.
    pub bus: String,
    /// The `source` of the events.
    pub source: String,
    /// Entries of one request; EventBridge takes at most 10.
    pub entries_max: usize,
    /// Bytes of one request.
    pub bytes_max: usize,
    /// How often an event is tried before it is given back.
    pub attempts: u32,
    /// Pause before the second try; it doubles with each.
    pub backoff: SignedDuration,
    /// Deadline of one attempt of a call.
    pub timeout: SignedDuration,
}

/// An EventBridge bus.
#[derive(Clone, Debug)]
pub struct EventBridge {
    client: Client,
    settings: Settings,
}

impl EventBridge {
    /// Announces on a bus that exists.
    pub fn new(aws: &SdkConfig, settings: &Settings) -> EventBridge {
        let config =
            aws_sdk_eventbridge::config::Builder::from(aws).timeout_config(deadlines(settings.timeout)).build();
        EventBridge { client: Client::from_conf(config), settings: settings.clone() }
    }

    fn entry(&self, announcement: Announcement, anomaly: &Anomaly) -> Result<PutEventsRequestEntry, PublishError> {
        let detail = serde_json::to_string(anomaly).map_err(|e| {
            PublishError::blamed(Backend::EventBridge, "write an anomaly as JSON", "MalformedDetail", e)
        })?;
        Ok(PutEventsRequestEntry::builder()
            .event_bus_name(&self.settings.bus)
            .source(&self.settings.source)
            .detail_type(detail_type(announcement))
            .detail(detail)
            .set_trace_header(trace::header())
            .build())
    }

    /// Sends one request; answers what became of each entry.
    async fn put(&self, entries: Vec<PutEventsRequestEntry>) -> Vec<Result<(), Fault>> {
        let count = entries.len();
        let answer = match self.client.put_events().set_entries(Some(entries)).send().await {
            Ok(answer) => answer,
            Err(error) => return vec![Err(Fault::of(&error)); count],
        };
        let mut outcomes: Vec<Result<(), Fault>> = answer
            .entries()
            .iter()
            .map(|entry| match entry.error_code() {
                None => Ok(()),
                Some(code) => Err(Fault {
                    code: code.to_owned(),
                    cause: format!("{code}: {}", entry.error_message().unwrap_or_default()),
                    retry: may_be_taken_later(code),
                }),
            })
            .collect();
        // An answer that says nothing of an entry says nothing good of it.
        outcomes.resize(
            count,
            Err(Fault { code: String::new(), cause: "the answer has too few entries".to_owned(), retry: true }),
        );
        outcomes
    }
}

#[async_trait]
impl Announcer for EventBridge {
    async fn notify(&self, notice: &Notice) -> Result<(), PublishError> {
        let entry = PutEventsRequestEntry::builder()
            .event_bus_name(&self.settings.bus)
            .source(&self.settings.source)
            .detail_type(notice.detail_type)
            .detail(notice.detail.to_string())
            .build();
        let outcome = self.put(vec![entry]).await.pop().unwrap_or(Ok(()));
        outcome.map_err(|fault| {
            PublishError::of(Backend::EventBridge, format!("announce `{}`", notice.detail_type), fault)
        })
    }

    async fn announce(&self, batch: &[(Announcement, Anomaly)]) -> Vec<Result<(), PublishError>> {
        let mut results: Vec<Result<(), PublishError>> = Vec::with_capacity(batch.len());
        let mut waiting = Vec::new();
        for (index, (announcement, anomaly)) in batch.iter().enumerate() {
            match self.entry(*announcement, anomaly) {
                Ok(entry) => {
                    waiting.push((index, entry));
                    results.push(Ok(()));
                }
                Err(error) => results.push(Err(error)),
            }
        }
        for attempt in 0..self.settings.attempts.max(1) {
            if attempt > 0 {
                tokio::time::sleep(backoff(positive(self.settings.backoff), PAUSE_MAX, attempt - 1)).await;
            }
            let mut again = Vec::new();
            for part in batches(waiting, self.settings.entries_max, self.settings.bytes_max) {
                let outcomes = self.put(part.iter().map(|(_, entry)| entry.clone()).collect()).await;
                for ((index, entry), outcome) in part.into_iter().zip(outcomes) {
                    results[index] =
                        outcome.map_err(|fault| PublishError::of(Backend::EventBridge, "announce an anomaly", fault));
                    if matches!(results[index], Err(PublishError::Retry { .. })) {
                        again.push((index, entry));
                    }
                }
            }
            waiting = again;
            if waiting.is_empty() {
                break;
            }
        }
        results
    }
}

/// However many attempts the settings ask for, none waits longer than this.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The name of an announcement on the bus.
pub const fn detail_type(announcement: Announcement) -> &'static str {
    match announcement {
        Announcement::Detected => "Anomaly Detected",
        Announcement::Updated => "Anomaly Updated",
        Announcement::Closed => "Anomaly Closed",
    }
}

/// Of the codes of one entry, these two are the service's own trouble; all others are the entry's
/// (`PutEventsResultEntry`, EventBridge API reference).
fn may_be_taken_later(code: &str) -> bool {
    matches!(code, "InternalFailure" | "InternalException" | "ThrottlingException")
}

/// What an entry weighs against the limit (EventBridge user guide, "Calculating PutEvents event entry size").
fn size(entry: &PutEventsRequestEntry) -> usize {
    let length = |text: Option<&str>| text.map_or(0, str::len);
    let resources: usize = entry.resources().iter().map(String::len).sum();
    entry.time().map_or(0, |_| 14)
        + length(entry.source())
        + length(entry.detail_type())
        + length(entry.detail())
        + resources
}

/// Packs entries in order; one that is too large by itself goes alone, so that only it is refused.
fn batches(
    entries: Vec<(usize, PutEventsRequestEntry)>,
    entries_max: usize,
    bytes_max: usize,
) -> Vec<Vec<(usize, PutEventsRequestEntry)>> {
    let mut packed: Vec<Vec<(usize, PutEventsRequestEntry)>> = Vec::new();
    let mut bytes = 0;
    for (index, entry) in entries {
        let weight = size(&entry);
        match packed.last_mut() {
            Some(last) if last.len() < entries_max.max(1) && bytes + weight <= bytes_max => {
                bytes += weight;
                last.push((index, entry));
            }
            _ => {
                bytes = weight;
                packed.push(vec![(index, entry)]);
            }
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(bytes: usize) -> PutEventsRequestEntry {
        PutEventsRequestEntry::builder().detail("x".repeat(bytes)).build()
    }

    proptest! {
        #[test]
        fn batches_respect_both_limits_and_keep_the_order(sizes in prop::collection::vec(0_usize..500, 0..60)) {
            let entries = sizes.iter().map(|&s| entry(s)).enumerate().collect();
            let packed = batches(entries, 10, 400);
            for batch in &packed {
                prop_assert!(batch.len() <= 10);
                prop_assert!(batch.len() == 1 || batch.iter().map(|(_, e)| size(e)).sum::<usize>() <= 400);
            }
            let order: Vec<usize> = packed.into_iter().flatten().map(|(index, _)| index).collect();
            prop_assert_eq!(order, (0..sizes.len()).collect::<Vec<_>>());
        }
    }
}
