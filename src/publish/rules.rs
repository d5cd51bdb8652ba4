//! Rules that people make while the service runs, kept beside the anomalies so that all tasks go by them.
//!
//! What a rule says is for its maker and for validation to understand; here it is a name with JSON behind it.

use async_trait::async_trait;

use super::PublishError;

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Its name, unique.
    pub name: String,
    /// What it says, as JSON.
    pub body: String,
}

/// Where rules are kept.
#[async_trait]
pub trait Rules: Send + Sync {
    /// Keeps a rule, in place of one of the same name.
    async fn put_rule(&self, rule: &Rule) -> Result<(), PublishError>;

    /// Forgets a rule; false where there is none of that name.
    async fn remove_rule(&self, name: &str) -> Result<bool, PublishError>;

    /// All rules, by name.
    async fn rules(&self) -> Result<Vec<Rule>, PublishError>;
}
