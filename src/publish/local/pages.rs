//! Which anomalies stand on a page, found in indexes alone.
//!
//! A page is ordered by detection, newest first, and filters are of other columns: an index that serves one order and one
//! filter walks past everything that the other filters refuse. Here every combination walks past little:
//!
//! | filters | index | walks |
//! | --- | --- | --- |
//! | none | `anomalies_newest` | what it answers |
//! | `status` alone | `anomalies_of_status` | what it answers |
//! | `actor`, with any others | `anomalies_of_actor` | the actor's own |
//! | `address`, `block`, `target`, `interface`, `account`, with any others | `addresses` | what has the label, of several the first in this order |
//! | `since`, `until` alone | `anomalies_of_time` | 5 streams |
//! | `changed_since`, with any others | `anomalies_changed` | what has changed since, in the index alone |
//! | any others | `anomalies_of_kind` | a stream for each threat, severity, status and reach that is wanted, 240 at most |
//!
//! A stream is the part of an index in which all filtered columns are equal, so it is ordered by detection; streams are merged as
//! far as the page goes. Times are not equal to anything: but an anomaly's first and last moments lie within its
//! `reach` of its detection, so that within a class of reach they bound the detection, and only what lies within the reach
//! of a bound is looked at in vain.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::{rank, status_name};
use crate::anomaly::Status;
use crate::finding::{Severity, Threat};
use crate::publish::Query;

/// How far the classes of `reach` reach, s; as in the schema. The last has no bound.
const REACHES: [Option<i64>; 5] = [Some(3_600), Some(28_800), Some(230_400), Some(1_843_200), None];

/// Keys that a stream fetches first, where there are several; most contribute little to a page.
const FIRST: usize = 8;

/// Where an anomaly stands in the order of pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Key {
    /// When it was detected, s.
    pub detected: i64,
    /// Its id.
    pub id: String,
}

/// The keys that a query finds behind a place, in order, at most `limit`.
pub(super) fn keys(
    connection: &Connection,
    query: &Query,
    from: Option<Key>,
    limit: usize,
) -> rusqlite::Result<Vec<Key>> {
    let mut streams = streams(query);
    let alone = streams.len() == 1;
    for stream in &mut streams {
        stream.from.clone_from(&from);
        stream.chunk = if alone { limit } else { FIRST.min(limit) };
    }
    let mut heads = BinaryHeap::with_capacity(streams.len());
    for (index, stream) in streams.iter_mut().enumerate() {
        if let Some(key) = stream.next(connection, limit)? {
            heads.push(Reverse((Reverse(key.detected), key.id, index)));
        }
    }
    let mut found = Vec::with_capacity(limit.min(64));
    while found.len() < limit {
        let Some(Reverse((Reverse(detected), id, index))) = heads.pop() else { break };
        found.push(Key { detected, id });
        if let Some(key) = streams[index].next(connection, limit)? {
            heads.push(Reverse((Reverse(key.detected), key.id, index)));
        }
    }
    Ok(found)
}

/// The revisions and ids of what has changed after a revision, the oldest change first, at most `limit`.
pub(super) fn changes(
    connection: &Connection,
    query: &Query,
    since: i64,
    limit: usize,
) -> rusqlite::Result<Vec<(i64, String)>> {
    let (sql, mut values) = changes_sql(query, since);
    values.push((limit as i64).into());
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params_from_iter(values), |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

fn changes_sql(query: &Query, since: i64) -> (String, Vec<Value>) {
    let mut conditions = Conditions::default();
    conditions.also("revision > ?", since);
    if let Some(actor) = query.actor {
        conditions.also("actor = ?", actor.to_string());
    }
    conditions.kind(query);
    conditions.times(query);
    if let Some(target) = query.target {
        conditions.also("actor != ?", target.to_string());
    }
    for label in query.labels() {
        conditions.also(OF_LABEL, label);
    }
    let source = format!("FROM anomalies INDEXED BY anomalies_changed WHERE {}", conditions.text.join(" AND "));
    (format!("SELECT revision, id {source} ORDER BY revision LIMIT ?"), conditions.values)
}

/// That an anomaly has a label.
const OF_LABEL: &str = "EXISTS (SELECT 1 FROM addresses x WHERE x.address = ? AND x.detected = anomalies.detected AND x.id = anomalies.id)";

/// That an anomaly which was found by one label has another as well.
const ALSO_OF_LABEL: &str = "EXISTS (SELECT 1 FROM addresses x WHERE x.address = ? AND x.detected = addresses.detected AND x.id = addresses.id)";

/// That an anomaly which was found by a label is not by an address.
const NOT_BY: &str = "EXISTS (SELECT 1 FROM anomalies a WHERE a.id = addresses.id AND a.actor != ?)";

/// A part of an index that is ordered as pages are.
#[derive(Debug)]
struct Stream {
    /// `FROM … WHERE …`, without the bounds of detection.
    source: String,
    values: Vec<Value>,
    /// The least moment of detection that can fit.
    least: Option<i64>,
    /// The moment of detection from which on nothing can fit.
    end: Option<i64>,
    /// Behind which key it goes on.
    from: Option<Key>,
    chunk: usize,
    fetched: VecDeque<Key>,
    done: bool,
}

impl Stream {
    fn new(source: String, values: Vec<Value>) -> Stream {
        let fetched = VecDeque::new();
        Stream { source, values, least: None, end: None, from: None, chunk: FIRST, fetched, done: false }
    }

    fn next(&mut self, connection: &Connection, most: usize) -> rusqlite::Result<Option<Key>> {
        if self.fetched.is_empty() && !self.done {
            self.fetch(connection)?;
            self.chunk = (self.chunk * 4).min(most);
        }
        Ok(self.fetched.pop_front())
    }

    fn fetch(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let from = self.from.clone().filter(|key| self.end.is_none_or(|end| key.detected < end));
        // The same moment and a later id, then earlier moments: two stretches, each of which the index bounds.
        if let Some(key) = &from {
            let bounds = [(" AND detected = ?", key.detected.into()), (" AND id > ?", key.id.clone().into())];
            self.stretch(connection, &bounds, "id")?;
        }
        if self.fetched.len() < self.chunk {
            let end = from.map(|key| key.detected).into_iter().chain(self.end).min();
            let mut bounds: Vec<(&str, Value)> = Vec::new();
            bounds.extend(end.map(|end| (" AND detected < ?", end.into())));
            bounds.extend(self.least.map(|least| (" AND detected >= ?", least.into())));
            self.stretch(connection, &bounds, "detected DESC, id")?;
        }
        self.done = self.fetched.len() < self.chunk;
        self.from = self.fetched.back().cloned();
        Ok(())
    }

    fn stretch(&mut self, connection: &Connection, bounds: &[(&str, Value)], order: &str) -> rusqlite::Result<()> {
        let conditions: String = bounds.iter().map(|(condition, _)| *condition).collect();
        let sql = format!("SELECT detected, id {}{conditions} ORDER BY {order} LIMIT ?", self.source);
        let room = (self.chunk - self.fetched.len()) as i64;
        let values = self.values.iter().chain(bounds.iter().map(|(_, value)| value)).cloned();
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values.chain([room.into()])))?;
        while let Some(row) = rows.next()? {
            self.fetched.push_back(Key { detected: row.get(0)?, id: row.get(1)? });
        }
        Ok(())
    }
}

/// Conditions with their values.
#[derive(Clone, Default)]
struct Conditions {
    text: Vec<&'static str>,
    values: Vec<Value>,
}

impl Conditions {
    fn also(&mut self, condition: &'static str, value: impl Into<Value>) {
        self.text.push(condition);
        self.values.push(value.into());
    }

    fn kind(&mut self, query: &Query) {
        if let Some(threat) = query.threat {
            self.also("threat = ?", threat.name().to_owned());
        }
        if let Some(severity) = query.min_severity {
            self.also("severity >= ?", rank(severity));
        }
        if let Some(status) = query.status {
            self.also("status = ?", status_name(status).to_owned());
        }
    }

    fn times(&mut self, query: &Query) {
        if let Some(since) = query.since {
            self.also("last_seen >= ?", i64::from(since.0));
        }
        if let Some(until) = query.until {
            self.also("first_seen < ?", i64::from(until.0));
        }
    }

    fn stream(self, from: &str) -> Stream {
        Stream::new(format!("FROM {from} WHERE {}", self.text.join(" AND ")), self.values)
    }
}

/// The streams in which all that a query wants is.
fn streams(query: &Query) -> Vec<Stream> {
    let mut conditions = Conditions::default();
    let labels = query.labels();
    if let Some(actor) = query.actor {
        conditions.also("actor = ?", actor.to_string());
        conditions.kind(query);
        conditions.times(query);
        if let Some(target) = query.target {
            conditions.also("actor != ?", target.to_string());
        }
        for label in labels {
            conditions.also(OF_LABEL, label);
        }
        return vec![conditions.stream("anomalies INDEXED BY anomalies_of_actor")];
    }
    let mut labels = labels.into_iter();
    if let Some(first) = labels.next() {
        conditions.also("address = ?", first);
        conditions.kind(query);
        for label in labels {
            conditions.also(ALSO_OF_LABEL, label);
        }
        if let Some(target) = query.target {
            conditions.also(NOT_BY, target.to_string());
        }
        let mut times = Conditions::default();
        times.times(query);
        if !times.text.is_empty() {
            // The addresses do not know the moments, which change with every update.
            let of = match (query.since, query.until) {
                (Some(_), Some(_)) => {
                    "EXISTS (SELECT 1 FROM anomalies a WHERE a.id = addresses.id AND last_seen >= ? AND first_seen < ?)"
                }
                (Some(_), None) => "EXISTS (SELECT 1 FROM anomalies a WHERE a.id = addresses.id AND last_seen >= ?)",
                _ => "EXISTS (SELECT 1 FROM anomalies a WHERE a.id = addresses.id AND first_seen < ?)",
            };
            conditions.text.push(of);
            conditions.values.extend(times.values);
        }
        return vec![conditions.stream("addresses")];
    }
    let timed = query.since.is_some() || query.until.is_some();
    let kinds = query.threat.is_some() || query.min_severity.is_some();
    match (kinds, query.status, timed) {
        (false, None, false) => {
            return vec![Stream::new("FROM anomalies INDEXED BY anomalies_newest WHERE 1".to_owned(), Vec::new())];
        }
        (false, Some(status), false) => {
            conditions.also("status = ?", status_name(status).to_owned());
            return vec![conditions.stream("anomalies INDEXED BY anomalies_of_status")];
        }
        (false, None, true) => return by_reach(query, &conditions, "anomalies INDEXED BY anomalies_of_time"),
        _ => {}
    }
    let mut streams = Vec::new();
    for threat in Threat::ALL.into_iter().filter(|threat| query.threat.is_none_or(|wanted| wanted == *threat)) {
        for severity in
            SEVERITIES.into_iter().filter(|severity| query.min_severity.is_none_or(|least| *severity >= least))
        {
            for status in STATUSES.into_iter().filter(|status| query.status.is_none_or(|wanted| wanted == *status)) {
                let mut conditions = Conditions::default();
                conditions.also("threat = ?", threat.name().to_owned());
                conditions.also("severity = ?", rank(severity));
                conditions.also("status = ?", status_name(status).to_owned());
                streams.extend(by_reach(query, &conditions, "anomalies INDEXED BY anomalies_of_kind"));
            }
        }
    }
    streams
}

const SEVERITIES: [Severity; 4] = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical];
const STATUSES: [Status; 2] = [Status::Open, Status::Closed];

/// A stream for each class of reach, bounded by what the times say of the detection.
fn by_reach(query: &Query, conditions: &Conditions, from: &str) -> Vec<Stream> {
    let classes = REACHES.iter().enumerate().map(|(class, reach)| {
        let mut conditions = conditions.clone();
        conditions.also("reach = ?", class as i64);
        conditions.times(query);
        let mut stream = conditions.stream(from);
        if let Some(reach) = reach {
            stream.least = query.since.map(|since| i64::from(since.0) - reach);
            stream.end = query.until.map(|until| i64::from(until.0) + reach);
        }
        stream
    });
    classes.collect()
}

#[cfg(test)]
mod tests;
