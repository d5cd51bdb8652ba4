//! What goes over the wire between a client and a model server: the three spellings of rows that SageMaker's own
//! algorithms take, and the reply of its Random Cut Forest, with what we know besides under further keys.
//!
//! ```text
//! application/json       {"instances":[{"features":[…]},{"data":{"features":{"values":[…]}}}]}, or a bare [[…],[…]]
//! application/jsonlines  {"features":[…]} a line
//! text/csv               one row a line, no header
//! ```
//!
//! An instance may also carry `class` (of the host) and `sequence` (its latest windows, the judged one last).

use serde::{Deserialize, Serialize};

use super::features::{NAMES, SCHEMA};
use super::lstm::INPUTS;
use super::model::{Model, Part, SEQUENCE_MAX};

/// Most bytes of a request: what all pages of SageMaker name.
pub const BYTES_MAX: usize = 6 << 20;

/// One window to be scored.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Instance {
    /// In the order of the schema, unscaled.
    pub features: Vec<f32>,
    /// The latest windows of the host, oldest first, the one that is judged last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<Vec<Vec<f32>>>,
    /// The class of the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub class: String,
}

/// A request of our own client.
#[derive(Debug, Serialize)]
pub struct Request<'a> {
    /// [`SCHEMA`].
    pub schema: &'a str,
    /// The windows.
    pub instances: Vec<Row<'a>>,
}

/// A window on its way out: [`Instance`] by reference.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Row<'a> {
    /// As in [`Instance`].
    pub features: &'a [f32],
    /// As in [`Instance`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<&'a [Vec<f32>]>,
    /// As in [`Instance`].
    #[serde(skip_serializing_if = "str::is_empty")]
    pub class: &'a str,
}

impl Instance {
    /// As it is sent. The forest needs no sequences, and they are nine tenths of the bytes.
    pub fn row(&self, with_sequence: bool) -> Row<'_> {
        let sequence = self.sequence.as_deref().filter(|_| with_sequence);
        Row { features: &self.features, sequence, class: &self.class }
    }
}

/// A reply.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// One for each instance, in order.
    pub scores: Vec<Entry>,
    /// Which model answered.
    #[serde(default)]
    pub model_version: String,
    /// Which features it expects.
    #[serde(default)]
    pub schema: String,
    /// See [`Model::calibrated`].
    #[serde(default)]
    pub calibrated: u64,
}

/// What is said of one window.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The forest's score as in the paper, 0 to 1: the one key that clients of a Random Cut Forest read.
    pub score: f64,
    /// All scorers joined.
    #[serde(default)]
    pub p_value: Option<f64>,
    /// By scorer.
    #[serde(default)]
    pub top3_z: Option<Said>,
    /// By scorer.
    #[serde(default)]
    pub forest: Option<Said>,
    /// By scorer.
    #[serde(default)]
    pub lstm: Option<Said>,
}

/// What one scorer said.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Said {
    /// Its raw score.
    pub score: f64,
    /// What it means.
    pub p_value: f64,
    /// The features that made it so, largest first; empty for what is usual.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attribution: Vec<(String, f32)>,
}

impl Entry {
    /// What one scorer said.
    pub fn of(&self, part: Part) -> Option<&Said> {
        match part {
            Part::Top3Z => self.top3_z.as_ref(),
            Part::Forest => self.forest.as_ref(),
            Part::Lstm => self.lstm.as_ref(),
        }
    }
}

/// How a request is spelt, and its reply wished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spelling {
    /// `application/json`.
    Json,
    /// `application/jsonlines`.
    Lines,
    /// `text/csv`.
    Csv,
}

/// Why a request is refused, with its HTTP status.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// 400 malformed, 413 too large, 415 an unknown spelling, 422 rows of another width.
    pub status: u16,
    /// Why.
    pub reason: String,
}

fn refuse(status: u16, reason: impl Into<String>) -> Refusal {
    Refusal { status, reason: reason.into() }
}

impl Spelling {
    /// From a content type; parameters after `;` do not matter, none at all is JSON.
    pub fn of(content_type: Option<&str>) -> Result<Spelling, Refusal> {
        let name = content_type.unwrap_or("application/json").split(';').next().unwrap_or_default().trim();
        match name.to_ascii_lowercase().as_str() {
            "application/json" | "*/*" | "" => Ok(Spelling::Json),
            "application/jsonlines" | "application/x-jsonlines" => Ok(Spelling::Lines),
            "text/csv" => Ok(Spelling::Csv),
            other => Err(refuse(
                415,
                format!("content type `{other}` is not application/json, application/jsonlines or text/csv"),
            )),
        }
    }

    /// The content type of a reply.
    pub const fn name(self) -> &'static str {
        match self {
            Spelling::Json => "application/json",
            Spelling::Lines => "application/jsonlines",
            Spelling::Csv => "text/csv",
        }
    }
}

/// Rows that were read, and whether the reply is to be a bare list as the request was.
#[derive(Clone, PartialEq, Debug)]
pub struct Rows {
    /// The windows.
    pub instances: Vec<Instance>,
    /// Whether the request was a bare array of rows.
    pub bare: bool,
}

/// Reads a request and checks every row.
pub fn read(body: &[u8], spelling: Spelling) -> Result<Rows, Refusal> {
    if body.len() > BYTES_MAX {
        return Err(refuse(413, format!("{} bytes, more than {BYTES_MAX}", body.len())));
    }
    let text = std::str::from_utf8(body).map_err(|e| refuse(400, format!("the body is not UTF-8: {e}")))?;
    let rows = match spelling {
        Spelling::Json => read_json(text)?,
        Spelling::Lines => Rows { instances: read_lines(text)?, bare: false },
        Spelling::Csv => Rows { instances: read_csv(text)?, bare: false },
    };
    if rows.instances.is_empty() {
        return Err(refuse(400, "there are no rows"));
    }
    rows.instances.iter().enumerate().try_for_each(|(at, row)| check(row, at + 1))?;
    Ok(rows)
}

fn check(row: &Instance, number: usize) -> Result<(), Refusal> {
    if row.features.len() != NAMES.len() {
        let found = row.features.len();
        return Err(refuse(422, format!("row {number} has {found} features, {SCHEMA} has {}", NAMES.len())));
    }
    let sequence = row.sequence.as_deref().unwrap_or_default();
    if let Some(window) = sequence.iter().find(|window| window.len() != INPUTS) {
        let found = window.len();
        return Err(refuse(422, format!("row {number} has a sequence of {found} values a window, not {INPUTS}")));
    }
    if row.features.iter().chain(sequence.iter().flatten()).any(|v| !v.is_finite()) {
        return Err(refuse(400, format!("row {number} holds a value that is not finite")));
    }
    Ok(())
}

/// The shapes of a row in JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum Shape {
    Plain(Instance),
    Nested { data: NestedFeatures },
}

#[derive(Deserialize)]
struct NestedFeatures {
    features: NestedValues,
}

#[derive(Deserialize)]
struct NestedValues {
    values: Vec<f32>,
}

/// What [`Request`] writes. The shapes below take the same, but first unfold everything into values of unknown shape, which
/// takes longer than to score it.
#[derive(Deserialize)]
struct Own {
    schema: String,
    instances: Vec<Instance>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Named {
        #[serde(default)]
        schema: Option<String>,
        instances: Vec<Shape>,
    },
    Bare(Vec<Vec<f32>>),
}

fn read_json(text: &str) -> Result<Rows, Refusal> {
    if let Ok(Own { schema, instances }) = serde_json::from_str(text)
        && schema == SCHEMA
    {
        return Ok(Rows { instances, bare: false });
    }
    let document: Document =
        serde_json::from_str(text).map_err(|e| refuse(400, format!("the body is not JSON rows: {e}")))?;
    match document {
        Document::Named { schema: Some(schema), .. } if schema != SCHEMA => {
            Err(refuse(422, format!("features {schema}, this model knows {SCHEMA}")))
        }
        Document::Named { instances, .. } => {
            Ok(Rows { instances: instances.into_iter().map(Instance::from).collect(), bare: false })
        }
        Document::Bare(rows) => Ok(Rows { instances: rows.into_iter().map(plain).collect(), bare: true }),
    }
}

fn read_lines(text: &str) -> Result<Vec<Instance>, Refusal> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let row = |(at, line): (usize, &str)| {
        let shape: Shape = serde_json::from_str(line).map_err(|e| refuse(400, format!("line {}: {e}", at + 1)))?;
        Ok(shape.into())
    };
    lines.map(row).collect()
}

fn read_csv(text: &str) -> Result<Vec<Instance>, Refusal> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let row = |(at, line): (usize, &str)| {
        let number = |field: &str| {
            field
                .trim()
                .parse::<f32>()
                .map_err(|_| refuse(400, format!("line {}: `{:.40}` is no number", at + 1, field)))
        };
        line.split(',').map(number).collect::<Result<Vec<f32>, Refusal>>().map(plain)
    };
    lines.map(row).collect()
}

fn plain(features: Vec<f32>) -> Instance {
    Instance { features, ..Instance::default() }
}

impl From<Shape> for Instance {
    fn from(shape: Shape) -> Instance {
        match shape {
            Shape::Plain(instance) => instance,
            Shape::Nested { data } => plain(data.features.values),
        }
    }
}

/// Scores rows that were checked.
pub fn answer(model: &Model, rows: &[Instance]) -> Reply {
    let values: Vec<f32> = rows.iter().flat_map(|row| &row.features).copied().collect();
    let (paths, score) = (model.forest.paths(&values), model.forest_score());
    let scores = rows.iter().zip(paths).map(|(row, path)| entry(model, row, path, &score)).collect();
    let (model_version, calibrated) = (model.manifest.model_version.clone(), model.calibrated());
    Reply { scores, model_version, schema: SCHEMA.to_owned(), calibrated }
}

fn entry(model: &Model, row: &Instance, path: f32, score: &impl Fn(f64) -> f64) -> Entry {
    let sequence: Option<Vec<[f32; INPUTS]>> = row.sequence.as_ref().map(|windows| {
        let latest = &windows[windows.len().saturating_sub(SEQUENCE_MAX)..];
        latest.iter().map(|window| std::array::from_fn(|i| window[i])).collect()
    });
    let mut judged = model.judge_walked(&row.features, path, sequence.as_deref(), &row.class);
    let mut said = |part: Part| {
        let attribution = std::mem::take(&mut judged.attributions[part as usize]);
        judged.opinions[part as usize].map(|o| Said { score: o.score, p_value: o.p_value, attribution })
    };
    let forest = judged.opinions[Part::Forest as usize].map_or(0.0, |o| score(o.score));
    Entry {
        score: forest,
        p_value: judged.p_value,
        top3_z: said(Part::Top3Z),
        forest: said(Part::Forest),
        lstm: said(Part::Lstm),
    }
}

/// Spells a reply.
pub fn write(reply: &Reply, spelling: Spelling, bare: bool) -> String {
    match spelling {
        Spelling::Json if bare => json(&reply.scores.iter().map(|entry| entry.score).collect::<Vec<f64>>()),
        Spelling::Json => json(reply),
        Spelling::Lines => reply.scores.iter().map(|entry| json(entry) + "\n").collect(),
        Spelling::Csv => reply.scores.iter().map(|entry| format!("{}\n", entry.score)).collect(),
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("finite numbers and names")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ml::model::tests::MODEL;

    const ROW: [f32; 27] = [0.5; 27];

    fn row() -> String {
        serde_json::to_string(&ROW.to_vec()).unwrap()
    }

    #[test]
    fn all_spellings_of_a_row_get_the_same_score() {
        let nested = format!(r#"{{"instances":[{{"data":{{"features":{{"values":{}}}}}}}]}}"#, row());
        let csv = ROW.map(|v| v.to_string()).join(",");
        let spellings = [
            (Spelling::Json, format!(r#"{{"instances":[{{"features":{}}}]}}"#, row())),
            (Spelling::Json, nested),
            (Spelling::Json, format!("[{}]", row())),
            (Spelling::Lines, format!("{{\"features\":{}}}\n\n", row())),
            (Spelling::Csv, format!("{csv}\r\n")),
        ];
        let replies: Vec<Reply> =
            spellings.iter().map(|(s, body)| answer(&MODEL, &read(body.as_bytes(), *s).unwrap().instances)).collect();
        assert!(replies.iter().all(|reply| *reply == replies[0]));
        assert!(replies[0].scores[0].score > 0.0 && replies[0].scores[0].lstm.is_none());
    }

    #[test]
    fn a_bare_request_gets_a_bare_reply() {
        let rows = read(format!("[{0},{0}]", row()).as_bytes(), Spelling::Json).unwrap();
        let reply = answer(&MODEL, &rows.instances);
        let spelt: Vec<f64> = serde_json::from_str(&write(&reply, Spelling::Json, rows.bare)).unwrap();
        assert_eq!(spelt, [reply.scores[0].score; 2]);
        assert_eq!(write(&reply, Spelling::Csv, false).lines().count(), 2);
        assert_eq!(serde_json::from_str::<Reply>(&write(&reply, Spelling::Json, false)).unwrap(), reply);
    }

    #[test]
    fn a_sequence_gives_the_sequence_model_its_say() {
        let instance =
            Instance { features: ROW.to_vec(), sequence: Some(vec![vec![0.1; 10]; 40]), class: "client".into() };
        let body = serde_json::to_string(&Request { schema: SCHEMA, instances: vec![instance.row(true)] }).unwrap();
        let reply = answer(&MODEL, &read(body.as_bytes(), Spelling::Json).unwrap().instances);
        assert!(reply.scores[0].lstm.is_some());
    }

    #[test]
    fn refusals_carry_their_status() {
        let status = |body: &str, spelling| read(body.as_bytes(), spelling).unwrap_err().status;
        assert_eq!(status("{", Spelling::Json), 400);
        assert_eq!(status("", Spelling::Csv), 400);
        assert_eq!(status("1,2,x", Spelling::Csv), 400);
        assert_eq!(status("1,2,3", Spelling::Csv), 422);
        assert_eq!(status(&ROW.map(|_| "nan").join(","), Spelling::Csv), 400);
        assert_eq!(status(r#"{"schema":"hw31","instances":[]}"#, Spelling::Json), 422);
        assert_eq!(read(&vec![b' '; BYTES_MAX + 1], Spelling::Json).unwrap_err().status, 413);
        assert_eq!(Spelling::of(Some("application/x-recordio-protobuf")).unwrap_err().status, 415);
        assert_eq!(Spelling::of(Some("text/csv; label_size=0")), Ok(Spelling::Csv));
    }

    proptest! {
        #[test]
        fn no_body_is_a_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            for spelling in [Spelling::Json, Spelling::Lines, Spelling::Csv] {
                let _ = read(&body, spelling);
            }
        }
    }
}
