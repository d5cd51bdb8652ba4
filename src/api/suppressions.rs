//! Reasons to stay quiet that people give while the service runs.
//!
//! They are kept with the anomalies, so that every task goes by them within seconds. Those of the settings stand there and
//! are not listed here. Before one is kept it is tried on the stored past: what would hide nearly everything, or a large share of
//! what was told, is refused unless whoever asks insists.
//!
//! `created` and `expires` are moments of the traffic; see [`crate::validation::suppression`].

use std::collections::BTreeSet;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json as Answer};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Context;
use super::audit;
use super::auth::Principal;
use super::extract::{Json, Nothing, Path, Query};
use super::problem::Problem;
use super::roles::Role;
use crate::flow::EventTime;
use crate::publish::audit::Action;
use crate::publish::rules::Rule;
use crate::publish::{self, Verdict};
use crate::validation::breadth::hidden_threats;
use crate::validation::matching::Pattern;
use crate::validation::suppression::{DryRun, Suppression, SuppressionError};

/// Settings `[api.suppressions]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The longest life of one that is given over the API.
    pub life_max: SignedDuration,
    /// The share of what was told that one may hide without being insisted on, above 0 and at most 1.
    pub share_max: f64,
}

/// What a new suppression is held against, besides those that are kept.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// As in the settings.
    pub settings: Settings,
    /// Which networks are ours.
    pub internal: Vec<IpNet>,
    /// The suppressions of the settings.
    pub configured: Vec<Suppression>,
}

/// The longest name, owner or reason that is kept, characters.
const TEXT_MAX: usize = 1_000;

/// Suppressions that are kept at most: each is looked at for every incident.
const KEPT_MAX: usize = 1_000;

/// Anomalies on which a suppression is tried at most, the latest.
const TRIED_MAX: usize = 20_000;

/// Anomalies that are read at once for it.
const PAGE: usize = 500;

/// Of fewer anomalies a share says nothing.
const SHARE_OF_MIN: usize = 10;

/// Ids of hidden anomalies that are named.
const NAMED_MAX: usize = 500;

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
    /// From when on it counts, in the time of the traffic; unless told from how far the traffic is now.
    pub created: Option<EventTime>,
    /// Until when it counts, in the time of the traffic.
    pub expires: EventTime,
    /// What it covers: any of `threats`, `methods`, `actors`, `targets` (CIDR blocks), `ports`; what is left out fits all.
    #[serde(rename = "match")]
    pub pattern: Pattern,
    /// Whether it is meant although it hides nearly everything, or a large share of what was told.
    #[serde(default)]
    pub force: bool,
}

/// How it is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct How {
    /// Whether it is only tried, and not kept.
    #[serde(default)]
    pub dry_run: bool,
}

/// A reason to stay quiet, as it is kept.
#[derive(Debug, Serialize, ToSchema)]
pub struct Kept {
    /// Its name, unique.
    pub name: String,
    /// Who answers for it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// From when on it counts, in the time of the traffic.
    pub created: EventTime,
    /// Until when it counts, in the time of the traffic; null for as long as it stands.
    pub expires: Option<EventTime>,
    /// What it covers.
    #[serde(rename = "match")]
    pub pattern: Pattern,
    /// Whether it is meant although it hides nearly everything, or a large share of what was reported.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Who was authenticated when it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_by: Option<String>,
    /// When it was made (wall clock, s).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_at: Option<EventTime>,
    /// Whether it counts at the moment that the traffic has come to.
    pub in_force: bool,
}

/// All of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct Suppressions {
    /// By name.
    pub suppressions: Vec<Kept>,
}

/// What it is, and what it would have hidden of the stored past, whatever its dates.
#[derive(Debug, Serialize, ToSchema)]
pub struct Made {
    /// As it is kept, or would be.
    pub suppression: Kept,
    /// Whether it was only tried.
    pub dry_run: bool,
    /// In words: `would hide 41 of 300, of which 2 confirmed by feedback`.
    pub summary: String,
    /// How many of the latest anomalies it was tried on.
    pub tried: usize,
    /// Whether these are all that are stored.
    pub whole: bool,
    /// Which of them it would have hidden: the latest 500.
    pub hidden: Vec<Uuid>,
    /// How many it would have hidden.
    pub hidden_count: usize,
    /// How many of these analysts have called true.
    pub hidden_true: usize,
    /// The share that it would have hidden, 0 to 1.
    pub share: f64,
    /// Why it is refused without `"force": true`; null where it is not.
    pub needs_force: Option<String>,
}

/// The reasons to stay quiet that were given over the API
#[utoipa::path(
    get, path = "/v1/suppressions", operation_id = "list_suppressions", tag = "suppressions",
    responses(
        (status = 200, body = Suppressions, description = "by name")
    )
)]
pub async fn list(
    State(context): State<Context>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Answer<Suppressions>, Problem> {
    let now = context.health.event_time();
    let suppressions = all(&context).await?.into_iter().map(|suppression| kept(suppression, now)).collect();
    Ok(Answer(Suppressions { suppressions }))
}

/// Gives a reason to stay quiet, or tries what it would hide
///
/// With `dry_run=true` nothing is made. All tasks go by what is made within seconds; what it silences is kept and can be asked
/// for, and is counted on `/v1/status`.
#[utoipa::path(
    post, path = "/v1/suppressions", operation_id = "make_suppression", tag = "suppressions", request_body = Asked, params(How),
    responses(
        (status = 200, body = Made, description = "it was only tried"),
        (status = 201, body = Made, description = "it counts"),
        (status = 400, body = Problem, description = "it cannot be read, or has a field that nobody knows"),
        (status = 409, body = Problem, description = "there are too many already"),
        (status = 422, body = Problem, description = "it is not right, or hides so much that it must be forced")
    )
)]
pub async fn make(
    State(context): State<Context>,
    Extension(principal): Extension<Principal>,
    Query(How { dry_run }): Query<How>,
    Json(asked): Json<Asked>,
) -> Result<Response, Problem> {
    if !dry_run {
        principal.require(Role::Analyst)?;
    }
    let now = context.health.event_time();
    let suppression = check(asked, now, &context.bounds.settings, &principal)?;
    let known = all(&context).await?;
    if known.len() >= KEPT_MAX && known.iter().all(|other| other.name != suppression.name) {
        let detail = format!("there are {KEPT_MAX} suppressions already");
        return Err(Problem::new(StatusCode::CONFLICT, detail, "remove those that have expired"));
    }
    let (run, whole) = try_on_the_past(&context, &suppression).await?;
    let share = if run.tried == 0 { 0.0 } else { run.hidden.len() as f64 / run.tried as f64 };
    let needs_force = too_much(&context.bounds, &suppression, &known, now, &run, share);
    let summary =
        format!("would hide {} of {}, of which {} confirmed by feedback", run.hidden.len(), run.tried, run.hidden_true);
    if let Some(reason) = needs_force.as_ref().filter(|_| !suppression.force && !dry_run) {
        let remedy = "name fewer threats, actors, targets or ports; try it with ?dry_run=true; or send \"force\": true";
        return Err(Problem {
            field: Some("match".to_owned()),
            tried: Some(run.tried),
            hidden: Some(run.hidden.len()),
            hidden_true: Some(run.hidden_true),
            share: Some(share),
            ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{reason}; it {summary}"), remedy)
        });
    }
    if !dry_run {
        let before = known.iter().find(|other| other.name == suppression.name);
        let action = Action::MakeSuppression;
        audit::note(&context, &principal, action, &suppression.name, before, Some(&suppression)).await?;
        let body = serde_json::to_string(&suppression).expect("names, moments and blocks can always be written");
        context.store.put_rule(&Rule { name: suppression.name.clone(), body }).await?;
        let Suppression { name, owner, made_by, force, .. } = &suppression;
        tracing::info!(name, owner, by = made_by, forced = force, hidden = run.hidden.len(), "a suppression was made");
    }
    let made = Made {
        suppression: kept(suppression, now),
        dry_run,
        summary,
        tried: run.tried,
        whole,
        hidden_count: run.hidden.len(),
        hidden: run.hidden.into_iter().take(NAMED_MAX).collect(),
        hidden_true: run.hidden_true,
        share,
        needs_force,
    };
    let status = if dry_run { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Answer(made)).into_response())
}

/// Takes a reason to stay quiet back
#[utoipa::path(
    delete, path = "/v1/suppressions/{name}", operation_id = "remove_suppression", tag = "suppressions",
    params(("name" = String, Path, description = "its name")),
    responses(
        (status = 204, description = "it counts no longer"),
        (status = 404, body = Problem, description = "there is none of this name")
    )
)]
pub async fn remove(
    State(context): State<Context>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<StatusCode, Problem> {
    let known = all(&context).await?;
    let before = known.iter().find(|suppression| suppression.name == name);
    if before.is_some() {
        audit::note(&context, &principal, Action::RemoveSuppression, &name, before, None::<&Suppression>).await?;
    }
    if context.store.remove_rule(&name).await? {
        tracing::info!(name, by = principal.name, "a suppression was taken back");
        return Ok(StatusCode::NO_CONTENT);
    }
    let detail = format!("there is no suppression `{name}`");
    Err(Problem::new(StatusCode::NOT_FOUND, detail, "GET /v1/suppressions lists those there are"))
}

async fn all(context: &Context) -> Result<Vec<Suppression>, Problem> {
    let rules = context.store.rules().await?;
    Ok(rules.iter().filter_map(|rule| Suppression::stored(&rule.body).ok()).collect())
}

/// What it would have hidden of the latest anomalies, and whether these are all there are. Of a very large store as many are
/// looked at as half of a request's time allows.
async fn try_on_the_past(context: &Context, suppression: &Suppression) -> Result<(DryRun, bool), Problem> {
    // One at a time: the store's readers are there for everybody.
    let _turn = context.trying.acquire().await;
    let verdicts = context.store.feedbacks(EventTime(0)).await?;
    let told_true = verdicts.iter().filter(|feedback| feedback.verdict == Verdict::TruePositive);
    let told_true: BTreeSet<Uuid> = told_true.map(|feedback| feedback.anomaly_id).collect();
    let began = Instant::now();
    let mut run = DryRun::default();
    let mut query = publish::Query { limit: PAGE, ..publish::Query::default() };
    while run.tried < TRIED_MAX && began.elapsed() < context.request_timeout / 2 {
        let page = context.store.query(&query).await?;
        let part = suppression.dry_run(&page.anomalies, |anomaly| told_true.contains(&anomaly.anomaly_id));
        run.tried += part.tried;
        run.hidden.extend(part.hidden);
        run.hidden_true += part.hidden_true;
        query.cursor = page.next;
        if query.cursor.is_none() {
            return Ok((run, true));
        }
    }
    Ok((run, false))
}

/// Why it must be insisted on, if it must.
fn too_much(
    bounds: &Bounds,
    new: &Suppression,
    known: &[Suppression],
    now: EventTime,
    run: &DryRun,
    share: f64,
) -> Option<String> {
    let hides = |patterns: &[&Pattern]| hidden_threats(patterns, &bounds.internal);
    let say = |threats: &[crate::finding::Threat]| {
        let names: Vec<&str> = threats.iter().map(|threat| threat.name()).collect();
        names.join(", ")
    };
    let alone = hides(&[&new.pattern]);
    if !alone.is_empty() {
        return Some(format!("it would silence everything, or nearly, of {}", say(&alone)));
    }
    // What others have insisted on is no reason to refuse this one.
    let counts = |s: &&Suppression| !s.force && s.name != new.name && s.expires.is_none_or(|expires| expires > now);
    let mut others: Vec<&Pattern> =
        known.iter().chain(&bounds.configured).filter(counts).map(|other| &other.pattern).collect();
    let before = hides(&others);
    others.push(&new.pattern);
    let mut together = hides(&others);
    together.retain(|threat| !before.contains(threat));
    if !together.is_empty() {
        return Some(format!("with those that there are it would silence nearly everything of {}", say(&together)));
    }
    let most = bounds.settings.share_max;
    if run.tried >= SHARE_OF_MIN && share > most {
        return Some(format!("it would hide {:.0} % of what was told, more than {:.0} %", 100.0 * share, 100.0 * most));
    }
    None
}

fn check(asked: Asked, now: EventTime, settings: &Settings, principal: &Principal) -> Result<Suppression, Problem> {
    let Asked { name, owner, reason, created, expires, pattern, force } = asked;
    let refuse = |field: &str, detail: String, remedy: &str| {
        Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail, remedy).of_field(field))
    };
    for (field, text) in [("name", &name), ("owner", &owner), ("reason", &reason)] {
        if text.chars().count() > TEXT_MAX {
            return refuse(field, format!("`{field}` has more than {TEXT_MAX} characters"), "shorten it");
        }
    }
    if name.contains('/') || name.chars().any(char::is_control) {
        let detail = "a name is part of a path and has no slash and no control characters".to_owned();
        return refuse("name", detail, "take another name");
    }
    let created = created.unwrap_or(now);
    // Whoever dates it ahead gets no longer life by it.
    let life = i64::from(expires.since(created.min(now)));
    if life > settings.life_max.as_secs() {
        let days = settings.life_max.as_secs() / 86_400;
        let detail = format!("it would count until {expires}, longer than {days} days from {}", created.min(now));
        return refuse("expires", detail, "let it expire earlier, and give it again when it is still right then");
    }
    let made_at = EventTime(u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX));
    let suppression = Suppression {
        name,
        owner,
        reason,
        created,
        expires: Some(expires),
        pattern,
        force,
        made_by: Some(principal.name.clone()),
        made_at: Some(made_at),
    };
    match suppression.check() {
        // That it is empty is one of the ways to hide everything, which is said with what it would hide.
        Ok(()) | Err(SuppressionError::Boundless(_)) => Ok(suppression),
        Err(error) => {
            let field = match &error {
                SuppressionError::Unsigned { field, .. } => field,
                SuppressionError::Inverted(_) | SuppressionError::Boundless(_) => "expires",
            };
            refuse(field, error.to_string(), "GET /openapi.json says what a suppression is made of")
        }
    }
}

fn kept(suppression: Suppression, at: EventTime) -> Kept {
    let in_force = suppression.is_in_force(at);
    let Suppression { name, owner, reason, created, expires, pattern, force, made_by, made_at } = suppression;
    Kept { name, owner, reason, created, expires, pattern, force, made_by, made_at, in_force }
}
