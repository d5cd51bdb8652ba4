//! The audit trail as rows of one partition, `audit`, of the table of anomalies, in the order of their moments.

use async_trait::async_trait;

use super::{DynamoStore, json, place, text, understood, word};
use crate::aws::Fault;
use crate::blame::Backend;
use crate::publish::audit::{Audit, Entry};
use crate::publish::{BAD_CURSOR, PublishError};

/// The partition.
const PARTITION: &str = "audit";

#[async_trait]
impl Audit for DynamoStore {
    async fn note(&self, entry: &Entry) -> Result<(), PublishError> {
        let micros = u64::try_from(entry.at.as_microsecond()).unwrap_or_default();
        self.client
            .put_item()
            .table_name(&self.settings.table)
            .item("anomaly_id", text(PARTITION))
            .item("detection_timestamp", text(format!("{}#{}", place(micros), entry.id)))
            .item("kind", text("audit"))
            .item("audit", json(entry)?)
            .item("expires", self.expires())
            .send()
            .await
            .map_err(|e| PublishError::of(Backend::DynamoDb, "keep an entry of the audit trail", Fault::of(&e)))?;
        Ok(())
    }

    async fn trail(&self, limit: usize, cursor: Option<&str>) -> Result<(Vec<Entry>, Option<String>), PublishError> {
        if cursor.is_some_and(|cursor| !cursor.contains('#')) {
            let cause = "this store has not given it".to_owned();
            return Err(PublishError::Fatal { context: BAD_CURSOR.to_owned(), cause });
        }
        let limit = limit.clamp(1, super::PAGE_MAX);
        let mut rows = Vec::new();
        let mut after = None;
        // A page of the table ends after 1 MB, however many rows that is.
        while rows.len() <= limit {
            let page = self
                .client
                .query()
                .table_name(&self.settings.table)
                .consistent_read(true)
                .key_condition_expression("anomaly_id = :audit AND detection_timestamp < :before")
                .expression_attribute_values(":audit", text(PARTITION))
                // Behind every moment, where there is no cursor.
                .expression_attribute_values(":before", text(cursor.unwrap_or(":")))
                .scan_index_forward(false)
                .limit(i32::try_from(limit + 1 - rows.len()).unwrap_or(i32::MAX))
                .set_exclusive_start_key(after)
                .send()
                .await
                .map_err(|e| PublishError::of(Backend::DynamoDb, "list the audit trail", Fault::of(&e)))?;
            rows.extend(page.items.unwrap_or_default());
            after = page.last_evaluated_key;
            if after.is_none() {
                break;
            }
        }
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).and_then(|row| word(row, "detection_timestamp"));
        Ok((rows.iter().filter_map(|row| understood(row, "audit")).collect(), next))
    }
}
