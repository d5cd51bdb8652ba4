//! The tables in DynamoDB: what they should be, what they lack, and how they come to have it.
//!
//! [`Schema::plan`] compares; [`Schema::apply`] does what was planned, one step after the other, and waits for each. A step that was done
//! before is not planned again, so applying is idempotent, also after it was interrupted half-way.

use std::fmt;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::BuildError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, CreateGlobalSecondaryIndexAction, GlobalSecondaryIndex,
    GlobalSecondaryIndexUpdate, IndexStatus, KeySchemaElement, KeyType, Projection, ProjectionType,
    ScalarAttributeType, TableDescription, TableStatus, TimeToLiveSpecification, TimeToLiveStatus,
};

use super::Settings;
use crate::aws::{Fault, deadlines};
use crate::blame::Backend;
use crate::publish::PublishError;

/// A table as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Hash and range key; all keys are strings.
    pub keys: (&'static str, &'static str),
    /// Name, hash and range of each index.
    pub indexes: Vec<(&'static str, &'static str, &'static str)>,
    /// The attribute by which rows expire.
    pub expires: Option<&'static str>,
}

/// The tables that the service needs.
pub fn tables(settings: &Settings) -> Vec<Table> {
    let anomalies = Table {
        name: settings.table.clone(),
        keys: ("anomaly_id", "detection_timestamp"),
        indexes: vec![
            ("by_day", "day", "sort"),
            ("by_actor", "actor", "sort"),
            ("by_threat", "threat", "sort"),
            ("by_status", "status", "sort"),
            ("by_pending", "pending", "sort"),
            ("by_change", "feed", "changed"),
        ],
        expires: Some("expires"),
    };
    let models = Table {
        name: settings.models_table.clone(),
        keys: ("model_type", "version"),
        indexes: Vec::new(),
        expires: None,
    };
    vec![anomalies, models]
}

/// One thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Make a table with all its indexes.
    CreateTable(Table),
    /// Add an index to a table that has rows; DynamoDB fills it.
    AddIndex(Table, &'static str),
    /// Let rows expire.
    ExpireBy(Table, &'static str),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::CreateTable(table) => {
                let (hash, range) = table.keys;
                write!(f, "create table {} ({hash}, {range})", table.name)?;
                table.indexes.iter().try_for_each(|(name, hash, range)| write!(f, ", index {name} ({hash}, {range})"))
            }
            Step::AddIndex(table, index) => write!(f, "add index {index} to table {}", table.name),
            Step::ExpireBy(table, attribute) => write!(f, "let rows of table {} expire by {attribute}", table.name),
        }
    }
}

/// Makes and upgrades the tables.
#[derive(Clone, Debug)]
pub struct Schema {
    client: Client,
    tables: Vec<Table>,
}

impl Schema {
    /// For the tables that the settings name.
    pub fn new(aws: &SdkConfig, settings: &Settings) -> Schema {
        let config = aws_sdk_dynamodb::config::Builder::from(aws).timeout_config(deadlines(settings.timeout)).build();
        Schema { client: Client::from_conf(config), tables: tables(settings) }
    }

    /// What is to be done; empty when everything is as it should be. Fails where a table has other keys than it should:
    /// that cannot be changed, and its rows are somebody else's.
    pub async fn plan(&self) -> Result<Vec<Step>, PublishError> {
        let mut steps = Vec::new();
        for table in &self.tables {
            let Some(found) = self.describe(&table.name).await? else {
                steps.push(Step::CreateTable(table.clone()));
                steps.extend(table.expires.map(|attribute| Step::ExpireBy(table.clone(), attribute)));
                continue;
            };
            refuse_other_keys(table, &found)?;
            for (index, _, _) in &table.indexes {
                let there = found.global_secondary_indexes().iter().any(|i| i.index_name() == Some(index));
                if !there {
                    steps.push(Step::AddIndex(table.clone(), index));
                }
            }
            if let Some(attribute) = table.expires
                && !self.expires(&table.name).await?
            {
                steps.push(Step::ExpireBy(table.clone(), attribute));
            }
        }
        Ok(steps)
    }

    /// Does one step and waits until it has taken effect.
    pub async fn apply(&self, step: &Step) -> Result<(), PublishError> {
        let context = step.to_string();
        match step {
            Step::CreateTable(table) => {
                let made = self
                    .client
                    .create_table()
                    .table_name(&table.name)
                    .set_attribute_definitions(Some(built(&context, attributes(table))?))
                    .set_key_schema(Some(built(&context, keys(table.keys.0, table.keys.1))?))
                    .set_global_secondary_indexes(Some(built(&context, indexes(table))?).filter(|i| !i.is_empty()))
                    .billing_mode(BillingMode::PayPerRequest)
                    .send()
                    .await;
                match made {
                    Ok(_) => {}
                    Err(error) if error.as_service_error().is_some_and(|e| e.is_resource_in_use_exception()) => {}
                    Err(error) => return Err(PublishError::of(Backend::DynamoDb, context, Fault::of(&error))),
                }
            }
            Step::AddIndex(table, name) => {
                let index = table.indexes.iter().find(|(n, _, _)| n == name).copied().unwrap_or((name, name, "sort"));
                let update = built(&context, add_index(index))?;
                self.client
                    .update_table()
                    .table_name(&table.name)
                    .set_attribute_definitions(Some(built(&context, attributes(table))?))
                    .global_secondary_index_updates(update)
                    .send()
                    .await
                    .map_err(|e| PublishError::of(Backend::DynamoDb, &context, Fault::of(&e)))?;
            }
            Step::ExpireBy(table, attribute) => {
                let specification = TimeToLiveSpecification::builder().enabled(true).attribute_name(*attribute).build();
                self.client
                    .update_time_to_live()
                    .table_name(&table.name)
                    .time_to_live_specification(built(&context, specification)?)
                    .send()
                    .await
                    .map_err(|e| PublishError::of(Backend::DynamoDb, &context, Fault::of(&e)))?;
            }
        }
        let (Step::CreateTable(table) | Step::AddIndex(table, _) | Step::ExpireBy(table, _)) = step;
        self.settled(&table.name, &context).await
    }

    async fn describe(&self, name: &str) -> Result<Option<TableDescription>, PublishError> {
        match self.client.describe_table().table_name(name).send().await {
            Ok(told) => Ok(told.table),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_resource_not_found_exception()) => Ok(None),
            Err(error) => Err(PublishError::of(Backend::DynamoDb, format!("look at table {name}"), Fault::of(&error))),
        }
    }

    async fn expires(&self, name: &str) -> Result<bool, PublishError> {
        let told = self
            .client
            .describe_time_to_live()
            .table_name(name)
            .send()
            .await
            .map_err(|e| PublishError::of(Backend::DynamoDb, format!("look at table {name}"), Fault::of(&e)))?;
        let status = told.time_to_live_description().and_then(|d| d.time_to_live_status());
        Ok(matches!(status, Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)))
    }

    /// DynamoDB changes one thing of a table at a time; filling an index takes as long as the table is large.
    async fn settled(&self, name: &str, context: &str) -> Result<(), PublishError> {
        for _ in 0..SETTLE_POLLS {
            if let Some(table) = self.describe(name).await? {
                let ready = |i: &aws_sdk_dynamodb::types::GlobalSecondaryIndexDescription| {
                    i.index_status().is_none_or(|s| *s == IndexStatus::Active)
                };
                let active = table.table_status().is_none_or(|s| *s == TableStatus::Active);
                if active && table.global_secondary_indexes().iter().all(ready) {
                    return Ok(());
                }
            }
            tokio::time::sleep(SETTLE_POLL).await;
        }
        Err(PublishError::Retry {
            context: context.to_owned(),
            cause: "it is still under way after an hour".to_owned(),
        })
    }
}

const SETTLE_POLL: Duration = Duration::from_millis(500);
const SETTLE_POLLS: u32 = 7200;

fn refuse_other_keys(table: &Table, found: &TableDescription) -> Result<(), PublishError> {
    let there: Vec<&str> = found.key_schema().iter().map(|k| k.attribute_name()).collect();
    if there == [table.keys.0, table.keys.1] {
        return Ok(());
    }
    Err(PublishError::Fatal {
        context: format!("use table {}", table.name),
        cause: format!("its keys are {there:?} instead of {:?}; name another table in the settings", table.keys),
    })
}

fn built<T>(context: &str, result: Result<T, BuildError>) -> Result<T, PublishError> {
    result.map_err(|e| PublishError::Fatal { context: context.to_owned(), cause: e.to_string() })
}

fn attributes(table: &Table) -> Result<Vec<AttributeDefinition>, BuildError> {
    let mut names = vec![table.keys.0, table.keys.1];
    names.extend(table.indexes.iter().flat_map(|(_, hash, range)| [*hash, *range]));
    names.sort_unstable();
    names.dedup();
    let define =
        |name| AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S).build();
    names.into_iter().map(define).collect()
}

fn keys(hash: &str, range: &str) -> Result<Vec<KeySchemaElement>, BuildError> {
    let key = |name, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
    Ok(vec![key(hash, KeyType::Hash)?, key(range, KeyType::Range)?])
}

fn everything() -> Projection {
    Projection::builder().projection_type(ProjectionType::All).build()
}

fn indexes(table: &Table) -> Result<Vec<GlobalSecondaryIndex>, BuildError> {
    let index = |(name, hash, range): &(&str, &str, &str)| {
        GlobalSecondaryIndex::builder()
            .index_name(*name)
            .set_key_schema(Some(keys(hash, range)?))
            .projection(everything())
            .build()
    };
    table.indexes.iter().map(index).collect()
}

fn add_index((name, hash, range): (&str, &str, &str)) -> Result<GlobalSecondaryIndexUpdate, BuildError> {
    let action = CreateGlobalSecondaryIndexAction::builder()
        .index_name(name)
        .set_key_schema(Some(keys(hash, range)?))
        .projection(everything())
        .build()?;
    Ok(GlobalSecondaryIndexUpdate::builder().create(action).build())
}
