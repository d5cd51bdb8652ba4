//! The anomaly store in DynamoDB.
//!
//! One table holds all that is kept about anomalies, by hash `anomaly_id` and range `detection_timestamp`:
//!
//! | row | `anomaly_id` | `detection_timestamp` |
//! | --- | --- | --- |
//! | an anomaly | its id | RFC 3339, as it was first recorded |
//! | an analyst's verdict | the anomaly's id | `feedback#` and the analyst |
//! | a silence | `silence#` and the id | `silence` |
//! | a rule of people | `rules` | `rule#` and its name |
//! | an entry of the audit trail | `audit` | its moment in microseconds, `#` and its id |
//! | the days that have anomalies | `days` | `days` |
//! | the told episodes of a key | `episodes#` and the key | `episodes` |
//!
//! `anomaly` holds the whole as JSON; what stands beside it serves conditions, indexes and filters. Every write is
//! conditional on the revision it replaces, so writing twice, or an old revision after a newer one, changes nothing. No
//! query scans: `by_day`, `by_actor`, `by_threat` and `by_status` are hashed by what they are named after and ordered by
//! `sort` (time of detection, then id), and `by_pending` holds only what has not been announced yet.
//!
//! `by_change` is the feed of changes: every write of an anomaly, and every verdict on it, dates it anew (`changed`: the wall
//! clock in microseconds, then the id). Tasks write side by side and indexes follow late, so the latest changes may not be
//! in order yet. A change is therefore given out once it is older than one attempt of a call may take, plus `SETTLING`; clocks
//! that differ by more than that, or a call that takes effect later, could hide a change from a reader.
//!
//! Indexes follow the table within a fraction of a second; whoever asks by id reads what was last written.

use std::cmp::Reverse;
use std::collections::HashMap;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};
use jiff::SignedDuration;
use serde::Deserialize;
use uuid::Uuid;

use crate::anomaly::{Anomaly, Status};
use crate::aws::{Fault, deadlines};
use crate::blame::Backend;
use crate::flow::{Address, EventTime};
use crate::publish::episodes::{Claim, Claimed, Episodes};
use crate::publish::{
    AnomalyStore, BAD_CHANGED_SINCE, BAD_CURSOR, FIRST_CHANGE, Feedback, MISSING_INDEX, Page, PublishError, Query,
    Recorded, Silence, unreadable,
};

mod audit;
mod rules;
pub mod schema;

type Row = HashMap<String, AttributeValue>;

/// Settings of the backend, `[publish.dynamodb]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of the table of anomalies.
    pub table: String,
    /// Name of the table of model settings.
    pub models_table: String,
    /// How long a row is kept after it was last written.
    pub retention: SignedDuration,
    /// Deadline of one attempt of a call.
    pub timeout: SignedDuration,
}

/// Anomalies in DynamoDB.
#[derive(Clone, Debug)]
pub struct DynamoStore {
    client: Client,
    settings: Settings,
}

/// How often a conditional put is tried. The SDK's own retries are off for it: a put whose answer was lost finds itself
/// in the table, and only we can tell that from somebody else's.
const PUT_ATTEMPTS: u32 = 3;

impl DynamoStore {
    /// A store on a table that exists; see [`schema`] and `flowvigil migrate`.
    pub fn new(aws: &SdkConfig, settings: &Settings) -> DynamoStore {
        let config = aws_sdk_dynamodb::config::Builder::from(aws).timeout_config(deadlines(settings.timeout)).build();
        DynamoStore { client: Client::from_conf(config), settings: settings.clone() }
    }

    /// The row of an anomaly as it was last written.
    async fn row(&self, id: Uuid) -> Result<Option<Row>, PublishError> {
        let answer = self
            .client
            .query()
            .table_name(&self.settings.table)
            .consistent_read(true)
            // Moments begin with a digit; the rows of feedback do not.
            .key_condition_expression("anomaly_id = :id AND detection_timestamp BETWEEN :from AND :to")
            .expression_attribute_values(":id", text(id.to_string()))
            .expression_attribute_values(":from", text("0"))
            .expression_attribute_values(":to", text(":"))
            .send()
            .await
            .map_err(|e| PublishError::of(Backend::DynamoDb, "look up an anomaly", Fault::of(&e)))?;
        Ok(answer.items.unwrap_or_default().into_iter().max_by_key(|row| word(row, "rev").unwrap_or_default()))
    }

    /// Puts a row unless it holds this or a later `rev`; answers what it held before, or `None` for "unchanged".
    async fn put_newer(&self, mut row: Row, context: &str) -> Result<Option<Row>, PublishError> {
        let rev = row["rev"].clone();
        let mut fault = None;
        for _ in 0..PUT_ATTEMPTS {
            // Each attempt is a change of its own moment: readers wait no longer than one attempt takes.
            if row.contains_key("feed") {
                row.insert("changed".to_owned(), text(changed_now(&word(&row, "anomaly_id").unwrap_or_default())));
            }
            let put = self
                .client
                .put_item()
                .table_name(&self.settings.table)
                .set_item(Some(row.clone()))
                .condition_expression("attribute_not_exists(anomaly_id) OR rev < :rev")
                .expression_attribute_values(":rev", rev.clone())
                .return_values(ReturnValue::AllOld)
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
                .customize()
                .config_override(aws_sdk_dynamodb::config::Builder::new().retry_config(RetryConfig::disabled()))
                .send()
                .await;
            let error = match put {
                Ok(done) => return Ok(Some(done.attributes.unwrap_or_default())),
                Err(error) => error,
            };
            if let Some(PutItemError::ConditionalCheckFailedException(failed)) = error.as_service_error() {
                // Our own put may have arrived although its answer did not. What it replaced is not known any more, but
                // that it was ours is: the first attempt would have been told of anybody else's.
                let ours = fault.is_some() && failed.item().and_then(|old| old.get("rev")) == Some(&rev);
                return Ok(ours.then(Row::new));
            }
            let told = Fault::of(&error);
            if !told.retry {
                return Err(PublishError::of(Backend::DynamoDb, context, told));
            }
            tokio::time::sleep(PUT_PAUSE).await;
            fault = Some(told);
        }
        Err(PublishError::of(Backend::DynamoDb, context, fault.expect("an attempt without a fault has returned")))
    }

    fn expires(&self) -> AttributeValue {
        number(now() + self.settings.retention.as_secs())
    }

    fn anomaly_row(&self, anomaly: &Anomaly, key: &str, detected: &str) -> Result<Row, PublishError> {
        let body = serde_json::to_string(anomaly)
            .map_err(|e| PublishError::blamed(Backend::DynamoDb, "write an anomaly as JSON", "conversion", e))?;
        let mut row = Row::from([
            ("anomaly_id".to_owned(), text(anomaly.anomaly_id.to_string())),
            ("detection_timestamp".to_owned(), text(key)),
            ("kind".to_owned(), text("anomaly")),
            ("rev".to_owned(), text(revision(anomaly))),
            ("anomaly".to_owned(), text(body)),
            ("threat".to_owned(), text(anomaly.threat.name())),
            ("status".to_owned(), text(status(anomaly.status))),
            ("severity".to_owned(), number(anomaly.severity as i64)),
            ("actor".to_owned(), text(anomaly.actor.to_string())),
            ("first_seen".to_owned(), number(i64::from(anomaly.first_seen.0))),
            ("last_seen".to_owned(), number(i64::from(anomaly.last_seen.0))),
            ("day".to_owned(), text(day(detected))),
            ("sort".to_owned(), text(sort(detected, anomaly.anomaly_id))),
            ("pending".to_owned(), text("announcement")),
            ("feed".to_owned(), text(FEED)),
            ("expires".to_owned(), self.expires()),
        ]);
        // The name is older than the other labels. What was written before these is found by its addresses alone.
        let labels = super::labels(anomaly);
        if !labels.is_empty() {
            row.insert("addresses".to_owned(), AttributeValue::Ss(labels.into_iter().collect()));
        }
        Ok(row)
    }

    /// Dates an anomaly as changed now; what is not there has not changed. As with puts, each attempt has a moment of its own.
    async fn note_change(&self, id: Uuid) -> Result<(), PublishError> {
        let Some(known) = self.row(id).await? else { return Ok(()) };
        let key = word(&known, "detection_timestamp").unwrap_or_default();
        let mut fault = None;
        for _ in 0..PUT_ATTEMPTS {
            let noted = self
                .client
                .update_item()
                .table_name(&self.settings.table)
                .key("anomaly_id", text(id.to_string()))
                .key("detection_timestamp", text(&key))
                .update_expression("SET #feed = :feed, #changed = :changed")
                .condition_expression("attribute_exists(anomaly_id)")
                .expression_attribute_names("#feed", "feed")
                .expression_attribute_names("#changed", "changed")
                .expression_attribute_values(":feed", text(FEED))
                .expression_attribute_values(":changed", text(changed_now(&id.to_string())))
                .customize()
                .config_override(aws_sdk_dynamodb::config::Builder::new().retry_config(RetryConfig::disabled()))
                .send()
                .await;
            let Err(error) = noted else { return Ok(()) };
            if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) {
                // It has expired meanwhile.
                return Ok(());
            }
            let failed = Fault::of(&error);
            let retry = failed.retry;
            fault = Some(failed);
            if !retry {
                break;
            }
            tokio::time::sleep(PUT_PAUSE).await;
        }
        let fault = fault.expect("an attempt without a fault has returned");
        Err(PublishError::of(Backend::DynamoDb, "note a change of an anomaly", fault))
    }

    /// The moment before which all changes are in the index, as a place among them.
    fn settled(&self) -> String {
        let settling = self.settings.timeout + SETTLING;
        let settled = i128::from(now_micros()) - settling.as_micros();
        place(u64::try_from(settled).unwrap_or_default())
    }

    /// A page of what has changed since a place, the oldest change first.
    async fn changes(&self, query: &Query, since: &str, wanted: usize) -> Result<Page, PublishError> {
        let since = read_place(since)?;
        let until = self.settled();
        if since >= until {
            return Ok(Page { changed_until: since, ..Page::default() });
        }
        // No place is equal to this one, and none lies between it and `since`.
        let index = Index::changes(format!("{since}!"), until.clone());
        let mut rows = self.indexed(&index, &Filter::of(query), wanted + 1).await?;
        let more = rows.len() > wanted;
        rows.truncate(wanted);
        let last = rows.last().filter(|_| more).and_then(|row| word(row, "changed"));
        let changed_until = last.unwrap_or(until);
        let next = more.then(|| changed_until.clone());
        Ok(page(&rows, next, changed_until))
    }

    async fn note_day(&self, detected: &str) -> Result<(), PublishError> {
        self.client
            .update_item()
            .table_name(&self.settings.table)
            .key("anomaly_id", text("days"))
            .key("detection_timestamp", text("days"))
            .update_expression("ADD #days :day")
            .expression_attribute_names("#days", "days")
            .expression_attribute_values(":day", AttributeValue::Ss(vec![day(detected).to_owned()]))
            .send()
            .await
            .map_err(|e| PublishError::of(Backend::DynamoDb, "note the day of an anomaly", Fault::of(&e)))?;
        Ok(())
    }

    /// Days that have anomalies, newest first.
    async fn days(&self) -> Result<Vec<String>, PublishError> {
        let answer = self
            .client
            .get_item()
            .table_name(&self.settings.table)
            .key("anomaly_id", text("days"))
            .key("detection_timestamp", text("days"))
            .send()
            .await
            .map_err(|e| PublishError::of(Backend::DynamoDb, "look up the days that have anomalies", Fault::of(&e)))?;
        let mut days: Vec<String> =
            answer.item.as_ref().and_then(|row| row.get("days")?.as_ss().ok()).cloned().unwrap_or_default();
        days.sort_unstable_by_key(|day| Reverse(day.clone()));
        Ok(days)
    }

    /// Rows of one hash of an index, newest first, at most `limit` of those that pass.
    async fn indexed(&self, index: &Index, filter: &Filter, limit: usize) -> Result<Vec<Row>, PublishError> {
        let mut rows = Vec::new();
        let mut from = None;
        while rows.len() < limit {
            let condition = match (&index.before, &index.between) {
                (Some(_), _) => "#hash = :hash AND #sort < :before",
                (None, Some(_)) => "#hash = :hash AND #changed BETWEEN :from AND :to",
                (None, None) => "#hash = :hash",
            };
            let mut query = self
                .client
                .query()
                .table_name(&self.settings.table)
                .index_name(index.name)
                .key_condition_expression(condition)
                .expression_attribute_names("#hash", index.hash)
                .expression_attribute_values(":hash", text(&index.value))
                .scan_index_forward(index.oldest_first)
                .set_exclusive_start_key(from);
            if let Some(before) = &index.before {
                query = query
                    .expression_attribute_names("#sort", "sort")
                    .expression_attribute_values(":before", text(before));
            }
            if let Some((from, to)) = &index.between {
                query = query
                    .expression_attribute_names("#changed", "changed")
                    .expression_attribute_values(":from", text(from))
                    .expression_attribute_values(":to", text(to));
            }
            query = match filter.expression() {
                Some(expression) => query.filter_expression(expression).limit(FILTERED_PAGE),
                None => query.limit(i32::try_from(limit - rows.len()).unwrap_or(i32::MAX)),
            };
            for (name, attribute) in &filter.names {
                query = query.expression_attribute_names(*name, *attribute);
            }
            for (name, value) in &filter.values {
                query = query.expression_attribute_values(*name, value.clone());
            }
            let page = query.send().await.map_err(|e| refused_query(index, Fault::of(&e)))?;
            rows.extend(page.items.unwrap_or_default());
            from = page.last_evaluated_key;
            if from.is_none() {
                break;
            }
        }
        rows.truncate(limit);
        Ok(rows)
    }
}

/// Anomalies on a page that does not say how many it wants, and the most it gets; the same as in the local store.
const PAGE: usize = 100;
const PAGE_MAX: usize = 1000;

/// Pause before a put is tried again.
const PUT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Rows that one request looks at where most may be filtered out; 1 MB is the page's own limit.
const FILTERED_PAGE: i32 = 300;

/// Which part of which index is read.
struct Index {
    name: &'static str,
    hash: &'static str,
    value: String,
    before: Option<String>,
    /// The first and the last place among the changes.
    between: Option<(String, String)>,
    oldest_first: bool,
}

impl Index {
    fn new(name: &'static str, hash: &'static str, value: impl Into<String>, before: Option<String>) -> Index {
        Index { name, hash, value: value.into(), before, between: None, oldest_first: false }
    }

    fn changes(from: String, to: String) -> Index {
        Index { between: Some((from, to)), oldest_first: true, ..Index::new("by_change", "feed", FEED, None) }
    }
}

/// Conditions on rows that an index alone does not decide.
#[derive(Default)]
struct Filter {
    clauses: Vec<&'static str>,
    names: Vec<(&'static str, &'static str)>,
    values: Vec<(&'static str, AttributeValue)>,
}

impl Filter {
    fn of(query: &Query) -> Filter {
        let mut filter = Filter::default();
        if let Some(threat) = query.threat {
            filter.require("threat = :threat", ":threat", text(threat.name()));
        }
        if let Some(severity) = query.min_severity {
            filter.require("severity >= :severity", ":severity", number(severity as i64));
        }
        if let Some(wanted) = query.status {
            filter.require("#status = :status", ":status", text(status(wanted)));
            filter.names.push(("#status", "status"));
        }
        if let Some(actor) = query.actor {
            filter.require("actor = :actor", ":actor", text(actor.to_string()));
        }
        if let Some(since) = query.since {
            filter.require("last_seen >= :since", ":since", number(i64::from(since.0)));
        }
        if let Some(until) = query.until {
            filter.require("first_seen < :until", ":until", number(i64::from(until.0)));
        }
        if let Some(target) = query.target {
            filter.require("actor <> :target", ":target", text(target.to_string()));
        }
        for (label, (clause, name)) in query.labels().into_iter().zip(LABELLED) {
            filter.require(clause, name, text(label));
        }
        filter
    }

    fn on(&mut self, address: Option<Address>) {
        if let Some(address) = address {
            self.require("contains(addresses, :address)", ":address", text(address.to_string()));
        }
    }

    fn require(&mut self, clause: &'static str, name: &'static str, value: AttributeValue) {
        self.clauses.push(clause);
        self.values.push((name, value));
    }

    fn expression(&self) -> Option<String> {
        (!self.clauses.is_empty()).then(|| self.clauses.join(" AND "))
    }
}

/// That a row has a label, for as many as a query has.
const LABELLED: [(&str, &str); 5] = [
    ("contains(addresses, :label1)", ":label1"),
    ("contains(addresses, :label2)", ":label2"),
    ("contains(addresses, :label3)", ":label3"),
    ("contains(addresses, :label4)", ":label4"),
    ("contains(addresses, :label5)", ":label5"),
];

/// How often a claim is made again because another task claimed an episode of the same key meanwhile.
const CLAIM_ATTEMPTS: u32 = 20;

impl DynamoStore {
    /// The told episodes of a key, and the version of their row.
    async fn episodes(&self, key: &str) -> Result<(Episodes, Option<String>), PublishError> {
        let answer = self
            .client
            .get_item()
            .table_name(&self.settings.table)
            .consistent_read(true)
            .key("anomaly_id", text(key))
            .key("detection_timestamp", text("episodes"))
            .send()
            .await
            .map_err(|e| PublishError::of(Backend::DynamoDb, "look up the told episodes of a key", Fault::of(&e)))?;
        match &answer.item {
            // What cannot be read is written anew: an id is made of content, and stays the same.
            Some(row) => Ok((understood(row, "episodes").unwrap_or_default(), word(row, "rev"))),
            None => Ok((Episodes::default(), None)),
        }
    }

    /// Puts the told episodes of a key in place of the version they were made from; false where another was faster. An
    /// answer that was lost counts as that, too: looking again finds what was written.
    async fn put_episodes(&self, key: &str, episodes: &Episodes, before: Option<&str>) -> Result<bool, PublishError> {
        let next = before.and_then(|rev| rev.parse::<u64>().ok()).map_or(1, |rev| rev + 1);
        let put = self
            .client
            .put_item()
            .table_name(&self.settings.table)
            .item("anomaly_id", text(key))
            .item("detection_timestamp", text("episodes"))
            .item("kind", text("episodes"))
            .item("rev", text(next.to_string()))
            .item("episodes", json(episodes)?)
            .item("expires", self.expires());
        let put = match before {
            Some(rev) => put.condition_expression("rev = :rev").expression_attribute_values(":rev", text(rev)),
            None => put.condition_expression("attribute_not_exists(anomaly_id)"),
        };
        match put.send().await {
            Ok(_) => Ok(true),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => {
                Ok(false)
            }
            Err(error) => Err(PublishError::of(Backend::DynamoDb, "claim an episode", Fault::of(&error))),
        }
    }
}

#[async_trait]
impl AnomalyStore for DynamoStore {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, PublishError> {
        let key = format!("episodes#{}", claim.key);
        for attempt in 0..CLAIM_ATTEMPTS {
            let (before, rev) = self.episodes(&key).await?;
            let mut after = before.clone();
            let claimed = after.claim(claim);
            if after == before || self.put_episodes(&key, &after, rev.as_deref()).await? {
                return Ok(claimed);
            }
            // Ids differ, so that those who lost do not step back alike.
            let step = claim.id.as_u128() as u64 % (5 + 5 * u64::from(attempt));
            tokio::time::sleep(std::time::Duration::from_millis(step)).await;
        }
        let cause = format!("other tasks were faster {CLAIM_ATTEMPTS} times");
        Err(PublishError::Retry { context: "claim an episode".to_owned(), cause })
    }

    async fn record(&self, anomaly: &Anomaly) -> Result<Recorded, PublishError> {
        let known = self.row(anomaly.anomaly_id).await?;
        // An id has one row, which keeps its key; what is detected again later was detected when it first was.
        let first = match &known {
            Some(row) => match understood::<Anomaly>(row, "anomaly") {
                Some(known) => known.detection_timestamp.min(anomaly.detection_timestamp),
                None => anomaly.detection_timestamp,
            },
            None => anomaly.detection_timestamp,
        };
        let anomaly = Anomaly { detection_timestamp: first, ..anomaly.clone() };
        let detected = first.to_string();
        let key = known.as_ref().and_then(|row| word(row, "detection_timestamp")).unwrap_or_else(|| detected.clone());
        if known.as_ref().and_then(|row| word(row, "day")).as_deref() != Some(day(&detected)) {
            self.note_day(&detected).await?;
        }
        let row = self.anomaly_row(&anomaly, &key, &detected)?;
        Ok(match self.put_newer(row, "record an anomaly").await? {
            None => Recorded::Unchanged,
            // Another task may have been faster.
            Some(before) if known.is_none() && before.is_empty() => Recorded::New,
            Some(_) => Recorded::Updated,
        })
    }

    async fn announced(&self, anomaly: &Anomaly) -> Result<(), PublishError> {
        let Some(known) = self.row(anomaly.anomaly_id).await? else { return Ok(()) };
        let detected = word(&known, "detection_timestamp").unwrap_or_default();
        let marked = self
            .client
            .update_item()
            .table_name(&self.settings.table)
            .key("anomaly_id", text(anomaly.anomaly_id.to_string()))
            .key("detection_timestamp", text(detected))
            .update_expression("REMOVE #pending")
            .condition_expression("rev = :rev")
            .expression_attribute_names("#pending", "pending")
            .expression_attribute_values(":rev", text(revision(anomaly)))
            .send()
            .await;
        match marked {
            Ok(_) => Ok(()),
            // A later revision was recorded meanwhile; it is announced on its own.
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => Ok(()),
            Err(error) => Err(PublishError::of(Backend::DynamoDb, "mark an anomaly as announced", Fault::of(&error))),
        }
    }

    async fn unannounced(&self, limit: usize) -> Result<Vec<Anomaly>, PublishError> {
        let index = Index { oldest_first: true, ..Index::new("by_pending", "pending", "announcement", None) };
        let rows = self.indexed(&index, &Filter::default(), limit).await?;
        Ok(rows.iter().filter_map(|row| understood(row, "anomaly")).collect())
    }

    async fn revised(&self, id: Uuid) -> Result<Option<(Anomaly, String)>, PublishError> {
        let row = self.row(id).await?;
        row.as_ref().map(|row| Ok((parse(row, "anomaly")?, revision_of(row)))).transpose()
    }

    async fn query(&self, query: &Query) -> Result<Page, PublishError> {
        let filter = Filter::of(query);
        let cursor = query.cursor.clone();
        if cursor.as_deref().is_some_and(|c| !c.contains('#')) {
            let cause = "this store has not given it".to_owned();
            return Err(PublishError::Fatal { context: BAD_CURSOR.to_owned(), cause });
        }
        // One more than asked for says whether there is another page.
        let wanted = if query.limit == 0 { PAGE } else { query.limit.min(PAGE_MAX) };
        if let Some(since) = &query.changed_since {
            return self.changes(query, since, wanted).await;
        }
        // What changes while the list is read is given again.
        let changed_until = self.settled();
        let limit = wanted + 1;
        let mut rows = if let Some(actor) = query.actor {
            self.indexed(&Index::new("by_actor", "actor", actor.to_string(), cursor), &filter.without("actor"), limit)
                .await?
        } else if let Some(state) = query.status {
            let index = Index::new("by_status", "status", status(state), cursor);
            self.indexed(&index, &filter.without("#status"), limit).await?
        } else if let Some(threat) = query.threat {
            let index = Index::new("by_threat", "threat", threat.name(), cursor);
            self.indexed(&index, &filter.without("threat"), limit).await?
        } else {
            let mut rows = Vec::new();
            for day in self.days().await? {
                if rows.len() >= limit {
                    break;
                }
                if cursor.as_deref().is_some_and(|before| *day > *before) {
                    continue;
                }
                let index = Index::new("by_day", "day", day, cursor.clone());
                rows.extend(self.indexed(&index, &filter, limit - rows.len()).await?);
            }
            rows
        };
        let more = rows.len() > wanted;
        rows.truncate(wanted);
        let next = rows.last().filter(|_| more).and_then(|row| word(row, "sort"));
        Ok(page(&rows, next, changed_until))
    }

    async fn silence(&self, silence: &Silence) -> Result<(), PublishError> {
        let detected = silence.last_seen.to_string();
        let mut row = Row::from([
            ("anomaly_id".to_owned(), text(format!("silence#{}", silence.anomaly_id))),
            ("detection_timestamp".to_owned(), text("silence")),
            ("kind".to_owned(), text("silence")),
            ("rev".to_owned(), text(format!("{:010}", silence.last_seen.0))),
            ("silence".to_owned(), json(silence)?),
            ("day".to_owned(), text("silence")),
            ("sort".to_owned(), text(sort(&detected, silence.anomaly_id))),
            ("expires".to_owned(), self.expires()),
        ]);
        if let crate::finding::Actor::One(actor) = silence.actor {
            row.insert("addresses".to_owned(), AttributeValue::Ss(vec![actor.to_string()]));
        }
        self.put_newer(row, "keep a silence").await?;
        Ok(())
    }

    async fn silences(&self, address: Option<Address>, limit: usize) -> Result<Vec<Silence>, PublishError> {
        let mut filter = Filter::default();
        filter.on(address);
        let rows = self.indexed(&Index::new("by_day", "day", "silence", None), &filter, limit).await?;
        Ok(rows.iter().filter_map(|row| understood(row, "silence")).collect())
    }

    async fn feedback(&self, feedback: &Feedback) -> Result<(), PublishError> {
        let row = Row::from([
            ("anomaly_id".to_owned(), text(feedback.anomaly_id.to_string())),
            ("detection_timestamp".to_owned(), text(format!("feedback#{}", feedback.by))),
            ("kind".to_owned(), text("feedback")),
            ("rev".to_owned(), text(format!("{:010}", feedback.at.0))),
            ("feedback".to_owned(), json(feedback)?),
            ("day".to_owned(), text("feedback")),
            ("sort".to_owned(), text(sort(&feedback.at.to_string(), feedback.anomaly_id))),
            ("expires".to_owned(), self.expires()),
        ]);
        self.put_newer(row, "keep feedback").await?;
        // Also where the verdict was there already: it may be the second try of one whose change was not noted.
        self.note_change(feedback.anomaly_id).await
    }

    async fn verdict(&self, id: Uuid, by: &str) -> Result<Option<Feedback>, PublishError> {
        let answer = self
            .client
            .get_item()
            .table_name(&self.settings.table)
            .consistent_read(true)
            .key("anomaly_id", text(id.to_string()))
            .key("detection_timestamp", text(format!("feedback#{by}")))
            .send()
            .await
            .map_err(|e| PublishError::of(Backend::DynamoDb, "get a verdict", Fault::of(&e)))?;
        Ok(answer.item.as_ref().and_then(|row| understood(row, "feedback")))
    }

    async fn feedbacks(&self, since: EventTime) -> Result<Vec<Feedback>, PublishError> {
        let mut filter = Filter::default();
        filter.require("rev >= :since", ":since", text(format!("{:010}", since.0)));
        let index = Index { oldest_first: true, ..Index::new("by_day", "day", "feedback", None) };
        let rows = self.indexed(&index, &filter, usize::MAX).await?;
        Ok(rows.iter().filter_map(|row| understood(row, "feedback")).collect())
    }
}

impl Filter {
    /// Without the clause on an attribute that the index decides already (DynamoDB refuses a filter on a key).
    fn without(self, attribute: &str) -> Filter {
        let keep = |clause: &str| clause.split(' ').next() != Some(attribute);
        let value = format!(":{}", attribute.trim_start_matches('#'));
        Filter {
            clauses: self.clauses.into_iter().filter(|c| keep(c)).collect(),
            names: self.names.into_iter().filter(|(name, _)| *name != attribute).collect(),
            values: self.values.into_iter().filter(|(name, _)| *name != value).collect(),
        }
    }
}

/// The hash of all changes in their index. One partition takes 1,000 writes of 1 kB a second; anomalies are far fewer.
const FEED: &str = "anomalies";

/// How much longer than one attempt of a call a change waits until it is given out: for indexes that follow, and clocks that
/// differ.
const SETTLING: SignedDuration = SignedDuration::from_secs(2);

/// What a query of an index that was not answered comes to. Tables of before there was a feed of changes lack its index.
fn refused_query(index: &Index, fault: Fault) -> PublishError {
    // DynamoDB calls it invalid, other servers not found.
    let lacking = matches!(fault.code.as_str(), "ValidationException" | "ResourceNotFoundException");
    if index.between.is_some() && lacking && fault.cause.contains("index") {
        return PublishError::Fatal { context: MISSING_INDEX.to_owned(), cause: fault.cause };
    }
    PublishError::of(Backend::DynamoDb, "query anomalies", fault)
}

/// The page that rows make.
fn page(rows: &[Row], next: Option<String>, changed_until: String) -> Page {
    let read = |row: &Row| Some((understood(row, "anomaly")?, revision_of(row)));
    let (anomalies, revisions) = rows.iter().filter_map(read).unzip();
    Page { anomalies, revisions, next, changed_until }
}

/// The revision of an anomaly's row. Rows of before there was a feed of changes have theirs alone.
fn revision_of(row: &Row) -> String {
    word(row, "changed").or_else(|| word(row, "rev")).unwrap_or_default()
}

/// A place among the changes; those of one moment follow each other by id.
fn place(micros: u64) -> String {
    format!("{micros:0width$}", width = PLACE_DIGITS)
}

/// Digits of a place: microseconds since 1970, until the year 2286.
const PLACE_DIGITS: usize = 16;

fn changed_now(id: &str) -> String {
    format!("{}#{id}", place(now_micros()))
}

fn read_place(since: &str) -> Result<String, PublishError> {
    if since == FIRST_CHANGE {
        return Ok(place(0));
    }
    let (moment, id) = since.split_once('#').map_or((since, None), |(moment, id)| (moment, Some(id)));
    let known = moment.len() == PLACE_DIGITS
        && moment.bytes().all(|digit| digit.is_ascii_digit())
        && id.is_none_or(|id| id.parse::<Uuid>().is_ok());
    // Of another store, or of a clock that was far ahead: nothing would be found for a long time.
    let ahead = moment.parse().is_ok_and(|moment: u64| moment > now_micros());
    if known && !ahead {
        return Ok(since.to_owned());
    }
    let cause = if known { "it lies in the future" } else { "this store has not given it" };
    Err(PublishError::Fatal { context: BAD_CHANGED_SINCE.to_owned(), cause: format!("`{since}`: {cause}") })
}

/// Orders the revisions of one anomaly as text: updates, then last moment, then closed after open.
fn revision(anomaly: &Anomaly) -> String {
    format!("{:010}.{:010}.{}", anomaly.updates, anomaly.last_seen.0, anomaly.status as u8)
}

/// Orders anomalies by detection and, read backwards, those of one moment by ascending id: the id's complement follows.
fn sort(detected: &str, id: Uuid) -> String {
    format!("{detected}#{:032x}", !id.as_u128())
}

fn day(detected: &str) -> &str {
    detected.split('T').next().unwrap_or(detected)
}

const fn status(status: Status) -> &'static str {
    match status {
        Status::Open => "open",
        Status::Closed => "closed",
    }
}

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn number(value: i64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn word(row: &Row, name: &str) -> Option<String> {
    row.get(name).and_then(|v| v.as_s().ok()).cloned()
}

fn json<T: serde::Serialize>(value: &T) -> Result<AttributeValue, PublishError> {
    serde_json::to_string(value)
        .map(AttributeValue::S)
        .map_err(|e| PublishError::blamed(Backend::DynamoDb, "write a row as JSON", "conversion", e))
}

fn parse<T: serde::de::DeserializeOwned>(row: &Row, name: &str) -> Result<T, PublishError> {
    let body = word(row, name).unwrap_or_default();
    serde_json::from_str(&body).map_err(|e| {
        let id = word(row, "anomaly_id").unwrap_or_default();
        PublishError::blamed(Backend::DynamoDb, format!("read the {name} of a row"), "conversion", unreadable(&id, &e))
    })
}

/// What a row stands for; one that cannot be read is named in the log and stepped over.
fn understood<T: serde::de::DeserializeOwned>(row: &Row, name: &str) -> Option<T> {
    parse(row, name).ok()
}

/// Rows expire by the wall clock: an old log that is replayed today is not to vanish tomorrow.
fn now() -> i64 {
    i64::try_from(now_micros() / 1_000_000).unwrap_or(i64::MAX)
}

/// Microseconds since 1970 by the wall clock.
#[allow(clippy::disallowed_methods)]
fn now_micros() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
