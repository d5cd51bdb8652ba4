//! Rules as rows of one partition, `rules`, of the table of anomalies. They do not expire by themselves.

use async_trait::async_trait;
use aws_sdk_dynamodb::types::ReturnValue;

use super::{DynamoStore, Row, text, word};
use crate::aws::Fault;
use crate::blame::Backend;
use crate::publish::PublishError;
use crate::publish::rules::{Rule, Rules};

/// The partition, and what the range key of a rule begins with.
const PARTITION: &str = "rules";

#[async_trait]
impl Rules for DynamoStore {
    async fn put_rule(&self, rule: &Rule) -> Result<(), PublishError> {
        self.client
            .put_item()
            .table_name(&self.settings.table)
            .item("anomaly_id", text(PARTITION))
            .item("detection_timestamp", text(range(&rule.name)))
            .item("kind", text("rule"))
            .item("name", text(&rule.name))
            .item("rule", text(&rule.body))
            .send()
            .await
            .map_err(|e| PublishError::of(Backend::DynamoDb, "keep a rule", Fault::of(&e)))?;
        Ok(())
    }

    async fn remove_rule(&self, name: &str) -> Result<bool, PublishError> {
        let gone = self
            .client
            .delete_item()
            .table_name(&self.settings.table)
            .key("anomaly_id", text(PARTITION))
            .key("detection_timestamp", text(range(name)))
            .return_values(ReturnValue::AllOld)
            .send()
            .await
            .map_err(|e| PublishError::of(Backend::DynamoDb, "forget a rule", Fault::of(&e)))?;
        Ok(gone.attributes.is_some_and(|row| !row.is_empty()))
    }

    async fn rules(&self) -> Result<Vec<Rule>, PublishError> {
        let mut rules = Vec::new();
        let mut after: Option<Row> = None;
        loop {
            let page = self
                .client
                .query()
                .table_name(&self.settings.table)
                .consistent_read(true)
                .key_condition_expression("anomaly_id = :rules")
                .expression_attribute_values(":rules", text(PARTITION))
                .set_exclusive_start_key(after)
                .send()
                .await
                .map_err(|e| PublishError::of(Backend::DynamoDb, "list the rules", Fault::of(&e)))?;
            let read = |row: &Row| Some(Rule { name: word(row, "name")?, body: word(row, "rule")? });
            rules.extend(page.items().iter().filter_map(read));
            after = page.last_evaluated_key;
            if after.is_none() {
                return Ok(rules);
            }
        }
    }
}

fn range(name: &str) -> String {
    format!("rule#{name}")
}
