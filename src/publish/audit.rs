//! The audit trail: who changed what, and when, with how it was before and after.
//!
//! An entry is kept before the change is made, so that no change is without one; an entry whose change then failed stays.

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::PublishError;

/// One change.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = AuditEntry)]
pub struct Entry {
    /// Its id.
    pub id: Uuid,
    /// When (wall clock).
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Who: as verdicts and suppressions name them.
    pub by: String,
    /// What was done.
    pub action: Action,
    /// On what: the id of an anomaly, or the name of a suppression.
    pub subject: String,
    /// How it was before; null where it was not there.
    pub before: Option<Value>,
    /// How it is afterwards; null where it is gone.
    pub after: Option<Value>,
}

/// What is done over the API.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A verdict on an anomaly.
    GiveFeedback,
    /// A suppression, new or in place of one of the same name.
    MakeSuppression,
    /// A suppression is gone.
    RemoveSuppression,
}

/// Where the trail is kept.
#[async_trait]
pub trait Audit: Send + Sync {
    /// Keeps an entry. It is kept for as long as the store keeps anything.
    async fn note(&self, entry: &Entry) -> Result<(), PublishError>;

    /// Entries, the newest first, those after a cursor; and the cursor of the next page, if there is one. Refuses a cursor that it has
    /// not given ([`super::BAD_CURSOR`]).
    async fn trail(&self, limit: usize, cursor: Option<&str>) -> Result<(Vec<Entry>, Option<String>), PublishError>;
}
