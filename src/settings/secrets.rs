//! Secrets by ARN: wherever a setting is text, the ARN of a secret of Secrets Manager stands for what it holds.
//!
//! `arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME` is the whole secret; with `:KEY` behind it, the value of that key of
//! a secret that is a JSON object; `:KEY:STAGE:VERSION` as ECS writes it. Secrets are read once, at the start.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use aws_config::SdkConfig;
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::aws::json::{JsonClient, SECRETS};

/// Deadline of one attempt of a call, s; it is needed before there are settings.
const TIMEOUT: i64 = 5;

/// Why a secret is not known.
#[derive(Debug, thiserror::Error)]
#[error("read secret {arn}: {cause}")]
pub struct SecretError {
    /// Which.
    pub arn: String,
    /// Why; never what it holds.
    pub cause: String,
}

/// Whether text is the ARN of a secret.
pub fn is_secret(text: &str) -> bool {
    text.starts_with("arn:") && text.split(':').nth(2) == Some("secretsmanager")
}

/// Reads secrets, by ARN.
///
/// # Errors
/// The first that cannot be read.
pub async fn read(
    aws: &SdkConfig,
    arns: impl IntoIterator<Item = String>,
) -> Result<BTreeMap<String, String>, SecretError> {
    let mut known = BTreeMap::new();
    for arn in arns {
        if let Entry::Vacant(place) = known.entry(arn) {
            let read = read_one(aws, place.key()).await;
            let secret = read.map_err(|cause| SecretError { arn: place.key().clone(), cause })?;
            place.insert(secret);
        }
    }
    Ok(known)
}

async fn read_one(aws: &SdkConfig, arn: &str) -> Result<String, String> {
    let name = Name::parse(arn)?;
    let client = JsonClient::new(aws, SECRETS, SignedDuration::from_secs(TIMEOUT)).in_region(&name.region);
    let mut input = json!({"SecretId": name.secret});
    for (field, part) in [("VersionStage", &name.stage), ("VersionId", &name.version)] {
        if let Some(part) = part {
            input[field] = json!(part);
        }
    }
    let answer: Answer = client.call("GetSecretValue", &input).await.map_err(|fault| fault.cause)?;
    let text = answer.secret_string.ok_or("it is binary, and settings are text")?;
    let Some(key) = name.key else { return Ok(text) };
    let object: Value = serde_json::from_str(&text).map_err(|_| format!("it is no JSON object with a key {key}"))?;
    match object.get(&key) {
        Some(Value::String(value)) => Ok(value.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        _ => Err(format!("it is no JSON object with a text at {key}")),
    }
}

/// The parts of an ARN, as ECS writes it behind the secret's own.
struct Name {
    region: String,
    secret: String,
    key: Option<String>,
    stage: Option<String>,
    version: Option<String>,
}

impl Name {
    fn parse(arn: &str) -> Result<Name, String> {
        let parts: Vec<&str> = arn.split(':').collect();
        if parts.len() < 7 || parts.len() > 10 {
            return Err("an ARN of a secret is arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME".to_owned());
        }
        let part = |index: usize| parts.get(index).filter(|part| !part.is_empty()).map(|part| (*part).to_owned());
        let secret = parts[..7].join(":");
        Ok(Name { region: parts[3].to_owned(), secret, key: part(7), stage: part(8), version: part(9) })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    secret_string: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_may_name_a_key_a_stage_and_a_version() {
        let arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:redis-AbCdEf";
        assert!(is_secret(arn));
        let whole = Name::parse(arn).unwrap();
        assert_eq!((whole.region.as_str(), whole.secret.as_str(), whole.key), ("eu-west-1", arn, None));
        let keyed = Name::parse(&format!("{arn}:url::v7")).unwrap();
        assert_eq!((keyed.secret.as_str(), keyed.key.as_deref(), keyed.stage), (arn, Some("url"), None));
        assert_eq!(keyed.version.as_deref(), Some("v7"));
        assert!(Name::parse("arn:aws:secretsmanager:eu-west-1").is_err());
        assert!(!is_secret("arn:aws:sns:eu-west-1:123456789012:topic"));
        assert!(!is_secret("redis://secretsmanager"));
    }
}
