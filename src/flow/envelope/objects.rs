//! What a JSON object holds: lines, records, or other objects around them.
//!
//! | has | is |
//! | --- | --- |
//! | `logEvents`, `events` | the event of a CloudWatch Logs subscription (a CONTROL_MESSAGE is a probe of the destination and is passed over); what `aws logs filter-log-events` and `get-log-events` print |
//! | `message`, `@message`, `_raw`, `log`, `line`, `event.original` | a line: Firehose, Insights, Splunk, Fluent Bit, Vector, Docker, Loki, Elastic |
//! | `awslogs.data` | the event as Lambda gets it |
//! | `Records`, `records` | what `aws kinesis get-records` prints, and what Kinesis, SQS, SNS and Firehose hand to Lambda: their data in base64, or text |
//! | `results` | what `aws logs get-query-results` prints (Insights): lists of `field` and `value` |
//! | `ResultSet` | what `aws athena get-query-results` prints: a table |
//! | `hits`, `_source`, `result`, `data`, `values`, … | answers of Elasticsearch, Splunk, Loki, Datadog |
//! | names of fields, nested or not | a record: of flow logs, of OCSF (Security Lake), of ECS (Elastic) |

use std::borrow::Cow;

use base64::Engine;
use serde_json::{Map, Value};

use super::{Envelope, Kind};
use crate::flow::interfaces::Interfaces;
use crate::flow::names::{self, Column};
use crate::flow::text::{Decoded, Field, Lines, decode_loosely};
use crate::flow::{foreign, kpl};

/// Keys of lists, and of objects, that hold what is looked for.
const AROUND: [&str; 20] = [
    "results",
    "Records",
    "records",
    "Messages",
    "hits",
    "_source",
    "result",
    "data",
    "values",
    "value",
    "rows",
    "logs",
    "items",
    "entries",
    "kinesis",
    "Sns",
    "event",
    "attributes",
    "content",
    "payload",
];

/// Keys of text that may be a line or an object again.
const TEXTS: [&str; 6] = ["body", "Body", "Message", "event", "text", "msg"];

/// Words that a text has at least when it is a line.
const WORDS_OF_LINE: usize = 10;

const NOTHING: &str = "is a JSON object with neither `message`, `logEvents` nor the fields of a flow log";

/// Takes objects apart.
pub(super) struct Reader<'a> {
    pub(super) envelope: &'a mut Envelope,
    pub(super) lines: &'a mut Lines,
    pub(super) interfaces: &'a mut Interfaces,
    pub(super) out: &'a mut Decoded,
}

impl Reader<'_> {
    /// An object; an error when there is nothing in it.
    pub(super) fn document(&mut self, map: &Map<String, Value>, layers: u32) -> Result<(), String> {
        if map.get("messageType").and_then(Value::as_str) == Some("CONTROL_MESSAGE") {
            return Ok(());
        }
        if let Some(Value::Array(events)) = map.get("logEvents").or_else(|| map.get("events")) {
            for event in events {
                match event.get("message").unwrap_or(event) {
                    Value::String(message) => self.envelope.add_line(message.as_bytes()),
                    _ => self.refuse("is a log event without a `message`".into()),
                }
            }
            return Ok(());
        }
        if let Some(Value::String(message)) = map.get("message") {
            return self.text(message, layers);
        }
        self.flush();
        if let Some(Value::String(data)) = map.get("awslogs").and_then(|logs| logs.get("data")) {
            return self.base64(data, layers).map_err(|error| format!("`awslogs.data` is not base64: {error}"));
        }
        if let Some(foreign) = foreign::of_object(map) {
            return Err(foreign.to_string());
        }
        if let (Some(Value::String(field)), Some(value), 2) = (map.get("field"), map.get("value"), map.len()) {
            return self.cell(field, value, layers);
        }
        if let Some(rows) = map.get("ResultSet").unwrap_or(&Value::Null).get("Rows").or_else(|| map.get("Rows")) {
            return self.table(rows);
        }
        let flat = flatten(map);
        if let Some(line) = flat.iter().find_map(|(name, value)| whole_line(name, value)) {
            return self.text(line, layers);
        }
        if self.record(&flat) {
            return Ok(());
        }
        self.inside(map, layers)
    }

    /// What an object that is none of a flow log has around one.
    fn inside(&mut self, map: &Map<String, Value>, layers: u32) -> Result<(), String> {
        if layers == 0 {
            return Err(NOTHING.into());
        }
        for key in ["Data", "data"] {
            if let Some(Value::String(data)) = map.get(key) {
                return self.base64(data, layers).map_err(|error| format!("`{key}` is not base64: {error}"));
            }
        }
        for key in AROUND {
            match map.get(key) {
                Some(Value::Object(inner)) => return self.document(inner, layers),
                Some(Value::Array(items)) => {
                    for item in items {
                        self.or_refuse(|this| this.item(item, layers));
                    }
                    return Ok(());
                }
                _ => {}
            }
        }
        for key in TEXTS {
            if let Some(Value::String(text)) = map.get(key) {
                return self.text(text, layers);
            }
        }
        let named = map.iter().find(|(name, _)| matches!(names::known(name), Some((Column::Message, _))));
        match named {
            Some((_, Value::String(text))) => self.text(text, layers),
            _ => Err(NOTHING.into()),
        }
    }

    /// One of a list.
    fn item(&mut self, item: &Value, layers: u32) -> Result<(), String> {
        match item {
            Value::Object(map) => self.document(map, layers),
            Value::String(text) => self.text(text, layers),
            Value::Array(cells) => self.row(cells, layers),
            _ => Err("is neither an object nor text".into()),
        }
    }

    /// A list within a list: a row of Insights, or a line of Loki behind its time.
    fn row(&mut self, cells: &[Value], layers: u32) -> Result<(), String> {
        let pair = |cell: &Value| Some((cell.get("field")?.as_str()?.to_owned(), cell.get("value")?.clone()));
        if let Some(map) = cells.iter().map(pair).collect::<Option<Map<String, Value>>>() {
            let message = map.get("@message").and_then(Value::as_str);
            return match message {
                Some(message) => self.text(message, layers),
                None => self.document(&map, layers),
            };
        }
        if cells.iter().all(|cell| !cell.is_object() && !cell.is_array()) {
            let line = cells.iter().filter_map(Value::as_str).find(|text| is_line(text));
            return line.map_or(Err("is a list without a line of a flow log".into()), |line| self.text(line, layers));
        }
        for cell in cells {
            self.or_refuse(|this| this.item(cell, layers));
        }
        Ok(())
    }

    /// A cell of a row of Insights that came without its row.
    fn cell(&mut self, field: &str, value: &Value, layers: u32) -> Result<(), String> {
        match (names::known(field).map(|(column, _)| column), value) {
            (Some(Column::Message), Value::String(text)) => self.text(text, layers),
            (Some(Column::Field(_)), _) => {
                Err("is a cell without its row: keep the whole answer of get-query-results".into())
            }
            _ => Ok(()),
        }
    }

    /// A table of Athena: its rows become those of a CSV file, whose first one names the columns.
    fn table(&mut self, rows: &Value) -> Result<(), String> {
        let rows = rows.as_array().ok_or("has `Rows` that are no list")?;
        let mut text = String::new();
        for row in rows {
            let cells = row.get("Data").and_then(Value::as_array).ok_or("has a row without `Data`")?;
            for (index, cell) in cells.iter().enumerate() {
                let value = cell.get("VarCharValue").and_then(Value::as_str).unwrap_or_default();
                let comma = if index > 0 { "," } else { "" };
                text.push_str(&format!("{comma}\"{}\"", value.replace(['"', '\n'], " ")));
            }
            text.push('\n');
        }
        self.envelope.fast.decode(text.as_bytes(), self.lines, self.interfaces, self.out);
        Ok(())
    }

    /// A line, an object within text, or a packed payload in base64.
    pub(super) fn text(&mut self, text: &str, layers: u32) -> Result<(), String> {
        if layers > 0 && text.starts_with("H4sI") && !text.contains(' ') {
            return self.base64(text, layers).map_err(|error| format!("begins as gzip in base64, and is not: {error}"));
        }
        // Agents that ship JSON lines put a whole object into `message`.
        if layers > 0 && Kind::of(text.as_bytes()) == Kind::Json {
            self.flush();
            self.envelope.decode_layer(text.as_bytes(), self.lines, layers - 1, self.interfaces, self.out);
        } else {
            self.envelope.add_line(text.as_bytes());
        }
        Ok(())
    }

    /// A payload in base64, or several that the Kinesis Producer Library has put together.
    fn base64(&mut self, text: &str, layers: u32) -> Result<(), base64::DecodeError> {
        self.flush();
        if layers == 0 {
            self.refuse("is packed in more layers than anything known".into());
            return Ok(());
        }
        let data = base64::engine::general_purpose::STANDARD.decode(text.trim())?;
        for part in kpl::parts(&data).unwrap_or_else(|| vec![&data]) {
            self.envelope.decode_layer(part, self.lines, layers - 1, self.interfaces, self.out);
        }
        Ok(())
    }

    /// A record whose keys are the names of its fields; false when they are not.
    fn record(&mut self, flat: &[(String, &Value)]) -> bool {
        let mut fields: [Option<(usize, Cow<'_, str>)>; crate::flow::text::FIELDS.len()] =
            std::array::from_fn(|_| None);
        let mut stamp = None;
        for (name, value) in flat {
            let Some((column, rank)) = names::known(name) else { continue };
            let text: Cow<'_, str> = match value {
                Value::String(text) => text.into(),
                Value::Number(number) => number.to_string().into(),
                _ => continue,
            };
            match column {
                Column::Field(field) => {
                    let known = &mut fields[field as usize];
                    let empty = text.is_empty() || text == "-";
                    // A worse name gives way, unless it has the only value.
                    let better = known
                        .as_ref()
                        .is_none_or(|(other, said)| rank < *other && !empty || said == "-" || said.is_empty());
                    if better {
                        *known = Some((rank, text));
                    }
                }
                Column::Stamp => stamp = stamp.or(Some(text)),
                Column::Message => {}
            }
        }
        let has = |field: Field| fields[field as usize].is_some();
        let blind = fields[Field::Status as usize].as_ref().is_some_and(|(rank, text)| {
            *rank == 0 || text.eq_ignore_ascii_case("NODATA") || text.eq_ignore_ascii_case("SKIPDATA")
        });
        if !(has(Field::Source) || has(Field::PacketSource) || blind) {
            return false;
        }
        let timed = has(Field::Start) || has(Field::End);
        let has_status = has(Field::Status);
        let text = |wanted: Field| {
            let text = match (&fields[wanted as usize], wanted, &stamp) {
                (Some((_, text)), ..) => text,
                (None, Field::Start, Some(stamp)) if !timed => stamp,
                _ => return None,
            };
            Some(text.as_bytes()).filter(|text| *text != b"-" && !text.is_empty())
        };
        self.lines.count_fast();
        decode_loosely(&text, has_status, self.lines.number(), self.interfaces, self.out);
        true
    }

    fn flush(&mut self) {
        self.envelope.flush(self.lines, self.interfaces, self.out);
    }

    fn refuse(&mut self, reason: String) {
        self.flush();
        self.lines.refuse_event(None, || reason, self.out);
    }

    fn or_refuse(&mut self, body: impl FnOnce(&mut Self) -> Result<(), String>) {
        if let Err(reason) = body(self) {
            self.refuse(reason);
        }
    }
}

fn is_line(text: &str) -> bool {
    text.split_ascii_whitespace().nth(WORDS_OF_LINE - 1).is_some()
}

/// The text of a column that is named as one of lines, if it is one.
fn whole_line<'a>(name: &str, value: &'a Value) -> Option<&'a str> {
    let text = value.as_str().filter(|text| is_line(text))?;
    matches!(names::known(name), Some((Column::Message, _))).then_some(text)
}

/// Names with dots for what is nested, as far as there are objects; of a list of values, the first.
fn flatten(map: &Map<String, Value>) -> Vec<(String, &Value)> {
    fn walk<'a>(prefix: &str, map: &'a Map<String, Value>, to: &mut Vec<(String, &'a Value)>) {
        for (key, value) in map {
            let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Object(inner) => walk(&name, inner, to),
                Value::Array(items) => {
                    to.extend(items.first().filter(|first| !first.is_object()).map(|first| (name, first)));
                }
                _ => to.push((name, value)),
            }
        }
    }
    let mut flat = Vec::new();
    walk("", map, &mut flat);
    flat
}
