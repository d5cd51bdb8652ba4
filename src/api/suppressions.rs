//! Reasons to stay quiet that people give while the service runs.
//!
//! They are kept with the anomalies, so that every task goes by them within seconds. Those of the settings stand there and
//! are not listed here.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Context;
use super::problem::Problem;
use crate::flow::EventTime;
use crate::publish::rules::Rule;
use crate::publish::{Query, Verdict};
use crate::validation::matching::Pattern;
use crate::validation::suppression::Suppression;

/// The longest name, owner or reason that is kept, characters.
const TEXT_MAX: usize = 1_000;

/// Suppressions that are kept at most: each is looked at for every incident.
const KEPT_MAX: usize = 1_000;

/// Anomalies on which a suppression is tried before it counts.
const TRIED: usize = 500;

/// A reason to stay quiet, as it is asked for.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Its name, unique; another of the same name is replaced.
    pub name: String,
    /// Who answers for it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// From when on it counts, in the time of the traffic; now unless told.
    pub created: Option<EventTime>,
    /// Until when it counts.
    pub expires: EventTime,
    /// What it covers: any of `threats`, `methods`, `actors`, `targets` (CIDR blocks), `ports`; what is left out fits all.
    #[serde(rename = "match")]
    #[schema(value_type = Object)]
    pub pattern: Pattern,
}

/// A reason to stay quiet, as it is kept.
#[derive(Debug, Serialize, ToSchema)]
pub struct Kept {
    /// As it was asked for.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub suppression: Suppression,
    /// Whether it counts now.
    pub in_force: bool,
}

/// All of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct Suppressions {
    /// By name.
    pub suppressions: Vec<Kept>,
}

/// What was kept, and what it would have hidden of the latest anomalies.
#[derive(Debug, Serialize, ToSchema)]
pub struct Made {
    /// As it is kept.
    pub suppression: Kept,
    /// How many of the latest anomalies it was tried on.
    pub tried: usize,
    /// Which of them it would have hidden.
    pub hidden: Vec<Uuid>,
    /// How many of these an analyst has called true.
    pub hidden_true: usize,
}

/// The reasons to stay quiet that were given over the API
#[utoipa::path(
    get, path = "/v1/suppressions", tag = "suppressions",
    responses((status = 200, body = Suppressions), (status = 503, body = Problem))
)]
pub async fn list(State(context): State<Context>) -> Result<Json<Suppressions>, Problem> {
    let now = now();
    let suppressions = all(&context).await?.into_iter().map(|suppression| kept(suppression, now)).collect();
    Ok(Json(Suppressions { suppressions }))
}

/// Gives a reason to stay quiet; all tasks go by it within seconds, and what it silences is kept and can be asked for
#[utoipa::path(
    post, path = "/v1/suppressions", tag = "suppressions", request_body = Asked,
    responses((status = 201, body = Made), (status = 409, body = Problem), (status = 422, body = Problem))
)]
pub async fn make(
    State(context): State<Context>,
    asked: Result<Json<Asked>, JsonRejection>,
) -> Result<(StatusCode, Json<Made>), Problem> {
    let Json(asked) = asked?;
    let now = now();
    let suppression = check(asked, now)?;
    let known = all(&context).await?;
    if known.len() >= KEPT_MAX && known.iter().all(|other| other.name != suppression.name) {
        let detail = format!("there are {KEPT_MAX} suppressions already");
        return Err(Problem::new(StatusCode::CONFLICT, detail, "remove those that have expired"));
    }
    let latest = context.store.query(&Query { limit: TRIED, ..Query::default() }).await?.anomalies;
    let verdicts = context.store.feedbacks(EventTime(0)).await?;
    let told_true = verdicts.iter().filter(|feedback| feedback.verdict == Verdict::TruePositive);
    let told_true: BTreeSet<Uuid> = told_true.map(|feedback| feedback.anomaly_id).collect();
    let run = suppression.dry_run(&latest, |anomaly| told_true.contains(&anomaly.anomaly_id));
    let body = serde_json::to_string(&suppression).expect("names, moments and blocks can always be written");
    context.store.put_rule(&Rule { name: suppression.name.clone(), body }).await?;
    tracing::info!(name = suppression.name, owner = suppression.owner, "a suppression was made");
    let made = Made {
        suppression: kept(suppression, now),
        tried: run.tried,
        hidden: run.hidden,
        hidden_true: run.hidden_true,
    };
    Ok((StatusCode::CREATED, Json(made)))
}

/// Takes a reason to stay quiet back
#[utoipa::path(
    delete, path = "/v1/suppressions/{name}", tag = "suppressions", params(("name" = String, Path, description = "its name")),
    responses((status = 204), (status = 404, body = Problem))
)]
pub async fn remove(
    State(context): State<Context>,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Problem> {
    let Path(name) = name?;
    if context.store.remove_rule(&name).await? {
        tracing::info!(name, "a suppression was taken back");
        return Ok(StatusCode::NO_CONTENT);
    }
    let detail = format!("there is no suppression `{name}`");
    Err(Problem::new(StatusCode::NOT_FOUND, detail, "GET /v1/suppressions lists those there are"))
}

async fn all(context: &Context) -> Result<Vec<Suppression>, Problem> {
    let rules = context.store.rules().await?;
    Ok(rules.iter().filter_map(|rule| serde_json::from_str(&rule.body).ok()).collect())
}

fn check(asked: Asked, now: EventTime) -> Result<Suppression, Problem> {
    let Asked { name, owner, reason, created, expires, pattern } = asked;
    let refuse = |detail: String, remedy: &str| Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail, remedy));
    if [&name, &owner, &reason].iter().any(|text| text.chars().count() > TEXT_MAX) {
        return refuse(format!("name, owner and reason have at most {TEXT_MAX} characters"), "shorten it");
    }
    if name.contains('/') {
        return refuse("a name is part of a path and has no slash".to_owned(), "take another name");
    }
    let created = created.unwrap_or(now);
    let suppression = Suppression { name, owner, reason, created, expires: Some(expires), pattern };
    match suppression.check() {
        Ok(()) => Ok(suppression),
        Err(error) => refuse(error.to_string(), "GET /openapi.json says what a suppression is made of"),
    }
}

fn kept(suppression: Suppression, now: EventTime) -> Kept {
    Kept { in_force: suppression.is_in_force(now), suppression }
}

fn now() -> EventTime {
    EventTime(u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX))
}
