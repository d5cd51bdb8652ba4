//! Versions in DynamoDB: the table of hash `model_type` and range `version` that `flowvigil migrate` makes.
//!
//! `body` holds the whole as JSON; `state` stands beside it for conditions. A change of state is one transaction that holds the
//! states it was decided on, so that two operators at once do not leave two primaries.

use std::collections::HashMap;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem};
use jiff::SignedDuration;

use super::{MODEL_TYPE, Registry, RegistryError, State, Version, newest_first};
use crate::aws::{Fault, deadlines};
use crate::flow::EventTime;

/// Versions in one table.
#[derive(Clone, Debug)]
pub struct DynamoRegistry {
    client: Client,
    table: String,
}

impl DynamoRegistry {
    /// A registry on a table that exists; `timeout` bounds one attempt of a call.
    pub fn new(aws: &SdkConfig, table: &str, timeout: SignedDuration) -> DynamoRegistry {
        let config = aws_sdk_dynamodb::config::Builder::from(aws).timeout_config(deadlines(timeout)).build();
        DynamoRegistry { client: Client::from_conf(config), table: table.to_owned() }
    }
}

fn failed(context: &str, cause: impl std::fmt::Display) -> RegistryError {
    RegistryError::Backend { context: context.to_owned(), cause: cause.to_string() }
}

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn row(version: &Version) -> Result<HashMap<String, AttributeValue>, RegistryError> {
    let body = serde_json::to_string(version).map_err(|e| failed("write a model version as JSON", e))?;
    Ok(HashMap::from([
        ("model_type".to_owned(), text(MODEL_TYPE)),
        ("version".to_owned(), text(&version.version)),
        ("state".to_owned(), text(version.state.name())),
        ("place".to_owned(), text(&version.place)),
        ("body".to_owned(), text(body)),
    ]))
}

#[async_trait]
impl Registry for DynamoRegistry {
    async fn put(&self, version: &Version) -> Result<(), RegistryError> {
        let put = self.client.put_item().table_name(&self.table).set_item(Some(row(version)?)).send().await;
        put.map(|_| ()).map_err(|e| failed("keep a model version", Fault::of(&e).cause))
    }

    async fn list(&self) -> Result<Vec<Version>, RegistryError> {
        let context = "list model versions";
        let mut versions = Vec::new();
        let mut from = None;
        loop {
            let page = self
                .client
                .query()
                .table_name(&self.table)
                .consistent_read(true)
                .key_condition_expression("model_type = :type")
                .expression_attribute_values(":type", text(MODEL_TYPE))
                .set_exclusive_start_key(from)
                .send()
                .await
                .map_err(|e| failed(context, Fault::of(&e).cause))?;
            for row in page.items() {
                let body = row.get("body").and_then(|body| body.as_s().ok()).map(String::as_str).unwrap_or_default();
                versions.push(serde_json::from_str(body).map_err(|e| failed(context, e))?);
            }
            from = page.last_evaluated_key;
            if from.is_none() {
                return Ok(newest_first(versions));
            }
        }
    }

    async fn set(&self, version: &str, state: State, now: EventTime) -> Result<(), RegistryError> {
        let context = "change the state of a model";
        let versions = self.list().await?;
        if !versions.iter().any(|known| known.version == version) {
            return Err(RegistryError::Unknown(version.to_owned()));
        }
        let mut changes = Vec::new();
        for known in versions {
            let gives_way = state == State::Primary && known.state == State::Primary;
            let next = match known.version == version {
                true => state,
                false if gives_way => State::Retired,
                false => continue,
            };
            let changed = Version { state: next, changed: now, ..known.clone() };
            let put = Put::builder()
                .table_name(&self.table)
                .set_item(Some(row(&changed)?))
                .condition_expression("#state = :before")
                .expression_attribute_names("#state", "state")
                .expression_attribute_values(":before", text(known.state.name()))
                .build()
                .map_err(|e| failed(context, e))?;
            changes.push(TransactWriteItem::builder().put(put).build());
        }
        let written = self.client.transact_write_items().set_transact_items(Some(changes)).send().await;
        written.map(|_| ()).map_err(|e| failed(context, Fault::of(&e).cause))
    }
}
