//! The settings in effect, each with where it was written, and without secrets.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::Context;
use super::extract::{Nothing, Query};

/// One setting.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
#[schema(as = EffectiveSetting)]
pub struct Setting {
    /// Its dotted key.
    pub key: String,
    /// Its value; a secret is `(not shown)`, or the ARN that it is read from.
    pub value: Value,
    /// Where it was written: `defaults.toml`, the settings file with the line, `environment`, or the name of a parameter.
    pub from: String,
    /// Whether a change of it applies while the service runs.
    pub changeable: bool,
}

/// The settings, which may change while the service runs.
pub type Effective = Arc<ArcSwap<Vec<Setting>>>;

/// All settings in effect.
#[derive(Debug, Serialize, ToSchema)]
pub struct Settings {
    /// By key.
    pub settings: Vec<Setting>,
}

/// The settings in effect, each with where it was written; secrets are not shown
///
/// It needs the role admin. `flowvigil config` has the reasons.
#[utoipa::path(
    get, path = "/v1/config", operation_id = "get_config", tag = "administration",
    responses((status = 200, body = Settings, description = "by key"))
)]
pub async fn show(State(context): State<Context>, Query(Nothing {}): Query<Nothing>) -> Json<Settings> {
    Json(Settings { settings: context.config.load().as_ref().clone() })
}
