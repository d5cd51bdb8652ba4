//! The lease table in DynamoDB, row by row as the Kinesis Client Library 2 and 3 writes it.
//!
//! Source of names and conditions: `DynamoDBLeaseSerializer.java` and `DynamoDBLeaseRefresher.java` of
//! `awslabs/amazon-kinesis-client` 3.5.1. Attributes that this program does not know are left as they are, and rows that
//! are not leases (`entityType`) are stepped over.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ReturnValuesOnConditionCheckFailure,
    ScalarAttributeType, TableStatus,
};
use jiff::SignedDuration;

use crate::aws::{Fault, deadlines};
use crate::ingest::lease::{Checkpoint, Lease};

type Row = HashMap<String, AttributeValue>;

/// What a conditional write did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Written {
    /// It was done; the lease's counter is one higher.
    Done,
    /// Somebody else wrote since.
    Lost,
    /// The lease is still ours, but its next owner waits for us to let go.
    AskedFor,
}

/// The lease table of one application.
#[derive(Clone, Debug)]
pub struct LeaseTable {
    client: Client,
    name: String,
}

impl LeaseTable {
    /// The table named after the application.
    pub fn new(aws: &SdkConfig, application: &str, timeout: SignedDuration) -> LeaseTable {
        let config = aws_sdk_dynamodb::config::Builder::from(aws).timeout_config(deadlines(timeout)).build();
        LeaseTable { client: Client::from_conf(config), name: application.to_owned() }
    }

    /// Makes the table where there is none, and waits until it can be used.
    pub async fn ensure(&self) -> Result<(), Fault> {
        let definition = AttributeDefinition::builder()
            .attribute_name("leaseKey")
            .attribute_type(ScalarAttributeType::S)
            .build()
            .expect("name and type are set");
        let key = KeySchemaElement::builder()
            .attribute_name("leaseKey")
            .key_type(KeyType::Hash)
            .build()
            .expect("name and type are set");
        let made = self
            .client
            .create_table()
            .table_name(&self.name)
            .attribute_definitions(definition)
            .key_schema(key)
            .billing_mode(BillingMode::PayPerRequest)
            .send()
            .await;
        match made {
            Ok(_) => {}
            Err(error) if error.as_service_error().is_some_and(|e| e.is_resource_in_use_exception()) => {}
            Err(error) => return Err(Fault::of(&error)),
        }
        for _ in 0..TABLE_POLLS {
            match self.client.describe_table().table_name(&self.name).send().await {
                Ok(told) => {
                    let status = told.table().and_then(|t| t.table_status());
                    if matches!(status, Some(TableStatus::Active | TableStatus::Updating)) {
                        return Ok(());
                    }
                }
                // A table that was made a moment ago may not be seen everywhere yet.
                Err(error) if error.as_service_error().is_some_and(|e| e.is_resource_not_found_exception()) => {}
                Err(error) => return Err(Fault::of(&error)),
            }
            tokio::time::sleep(TABLE_POLL).await;
        }
        Err(Fault { code: String::new(), cause: format!("table {} does not become active", self.name), retry: true })
    }

    /// All leases.
    pub async fn scan(&self) -> Result<Vec<Lease>, Fault> {
        let mut leases = Vec::new();
        let mut from = None;
        loop {
            let scan = self.client.scan().table_name(&self.name).consistent_read(true).set_exclusive_start_key(from);
            let page = scan.send().await.map_err(|e| Fault::of(&e))?;
            leases.extend(page.items().iter().filter_map(read));
            from = page.last_evaluated_key;
            if from.is_none() {
                return Ok(leases);
            }
        }
    }

    /// Adds a lease unless there is one.
    pub async fn create(&self, lease: &Lease) -> Result<(), Fault> {
        let put = self
            .client
            .put_item()
            .table_name(&self.name)
            .set_item(Some(write(lease)))
            .condition_expression("attribute_not_exists(leaseKey)")
            .send()
            .await;
        match put {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => Ok(()),
            Err(error) => Err(Fault::of(&error)),
        }
    }

    /// Raises the counter. With `handing_off`, even while the next owner waits.
    pub async fn renew(&self, lease: &Lease, handing_off: bool) -> Result<Written, Fault> {
        let condition = if handing_off {
            "leaseCounter = :c"
        } else {
            "leaseCounter = :c AND attribute_not_exists(checkpointOwner)"
        };
        let update = self.update(lease, "SET leaseCounter = :n", condition);
        self.send(update, lease, |_| true).await
    }

    /// Makes `me` the owner.
    pub async fn take(&self, lease: &Lease, me: &str) -> Result<Written, Fault> {
        let changes = lease.owner.as_deref().is_some_and(|o| o != me);
        let add = if changes { " ADD ownerSwitchesSinceCheckpoint :one" } else { "" };
        let expression = format!("SET leaseCounter = :n, leaseOwner = :me REMOVE checkpointOwner{add}");
        let mut update = self
            .update(lease, &expression, "leaseCounter = :c")
            .expression_attribute_values(":me", AttributeValue::S(me.to_owned()));
        if changes {
            update = update.expression_attribute_values(":one", number(1));
        }
        let taken = Lease { owner: Some(me.to_owned()), ..lease.clone() };
        self.send(update, &taken, |_| true).await
    }

    /// Moves the checkpoint; with [`Checkpoint::ShardEnd`], also says which shards go on.
    pub async fn checkpoint(&self, lease: &Lease, to: &Checkpoint) -> Result<Written, Fault> {
        let children = if lease.children.is_empty() { "" } else { ", childShardIds = :children" };
        let expression = format!(
            "SET leaseCounter = :n, #checkpoint = :to, checkpointSubSequenceNumber = :sub, \
             ownerSwitchesSinceCheckpoint = :zero{children} \
             REMOVE pendingCheckpoint, pendingCheckpointSubSequenceNumber, pendingCheckpointState"
        );
        let mut update = self
            .update(lease, &expression, "leaseCounter = :c")
            .expression_attribute_names("#checkpoint", "checkpoint")
            .expression_attribute_values(":to", AttributeValue::S(to.to_string()))
            .expression_attribute_values(":sub", number(to.sub()))
            .expression_attribute_values(":zero", number(0));
        if !lease.children.is_empty() {
            let children = lease.children.iter().cloned().collect();
            update = update.expression_attribute_values(":children", AttributeValue::Ss(children));
        }
        self.send(update, lease, |row| text(row, "checkpoint").as_deref() == Some(&to.to_string())).await
    }

    /// Lets the lease go: its next owner, where one waits, may start; else anybody may take it.
    pub async fn evict(&self, lease: &Lease) -> Result<Written, Fault> {
        let expression = match lease.hands_off {
            Some(_) => "SET leaseCounter = :n REMOVE checkpointOwner",
            None => "SET leaseCounter = :n REMOVE leaseOwner",
        };
        let update = self.update(lease, expression, "leaseCounter = :c");
        self.send(update, lease, |_| true).await
    }

    /// Removes a lease that nobody has written since it was read.
    pub async fn delete(&self, lease: &Lease) -> Result<(), Fault> {
        let delete = self
            .client
            .delete_item()
            .table_name(&self.name)
            .key("leaseKey", AttributeValue::S(lease.key.clone()))
            .condition_expression("leaseCounter = :c")
            .expression_attribute_values(":c", number(lease.counter))
            .send()
            .await;
        match delete {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => Ok(()),
            Err(error) => Err(Fault::of(&error)),
        }
    }

    fn update(&self, lease: &Lease, expression: &str, condition: &str) -> UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(&self.name)
            .key("leaseKey", AttributeValue::S(lease.key.clone()))
            .update_expression(expression)
            .condition_expression(condition)
            .expression_attribute_values(":c", number(lease.counter))
            .expression_attribute_values(":n", number(lease.counter + 1))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
    }

    /// Sends a write. Where the condition fails because an earlier attempt of this very write had arrived (its answer
    /// was lost on the way), the row has our owner and the next counter, and `same` says yes: that is a success.
    async fn send(
        &self,
        update: UpdateItemFluentBuilder,
        lease: &Lease,
        same: impl Fn(&Row) -> bool,
    ) -> Result<Written, Fault> {
        let error: SdkError<UpdateItemError> = match update.send().await {
            Ok(_) => return Ok(Written::Done),
            Err(error) => error,
        };
        let Some(UpdateItemError::ConditionalCheckFailedException(failed)) = error.as_service_error() else {
            return Err(Fault::of(&error));
        };
        let Some(row) = failed.item() else { return Ok(Written::Lost) };
        let ours = text(row, "leaseOwner") == lease.owner;
        let counter = count(row, "leaseCounter");
        if text(row, "checkpointOwner").is_some_and(|o| Some(o) == lease.owner) && counter == lease.counter {
            return Ok(Written::AskedFor);
        }
        Ok(if ours && counter == lease.counter + 1 && same(row) { Written::Done } else { Written::Lost })
    }
}

/// How long a new table may take: a minute, as AWS needs seconds for one that is paid per request.
const TABLE_POLLS: u32 = 300;
const TABLE_POLL: Duration = Duration::from_millis(200);

fn number(value: u64) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

fn text(row: &Row, name: &str) -> Option<String> {
    row.get(name).and_then(|v| v.as_s().ok()).cloned()
}

fn count(row: &Row, name: &str) -> u64 {
    row.get(name).and_then(|v| v.as_n().ok()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn names(row: &Row, name: &str) -> BTreeSet<String> {
    row.get(name).and_then(|v| v.as_ss().ok()).into_iter().flatten().cloned().collect()
}

fn read(row: &Row) -> Option<Lease> {
    if text(row, "entityType").is_some_and(|t| t != "LEASE") {
        return None;
    }
    let hash = |name| text(row, name).and_then(|h| h.parse::<u128>().ok());
    Some(Lease {
        key: text(row, "leaseKey")?,
        owner: text(row, "leaseOwner"),
        counter: count(row, "leaseCounter"),
        checkpoint: Checkpoint::parse(&text(row, "checkpoint")?, count(row, "checkpointSubSequenceNumber")),
        switches: count(row, "ownerSwitchesSinceCheckpoint"),
        parents: names(row, "parentShardId"),
        children: names(row, "childShardIds"),
        hashes: hash("startingHashKey").zip(hash("endingHashKey")),
        hands_off: text(row, "checkpointOwner"),
    })
}

fn write(lease: &Lease) -> Row {
    let mut row = Row::from([
        ("leaseKey".to_owned(), AttributeValue::S(lease.key.clone())),
        ("leaseCounter".to_owned(), number(lease.counter)),
        ("checkpoint".to_owned(), AttributeValue::S(lease.checkpoint.to_string())),
        ("checkpointSubSequenceNumber".to_owned(), number(lease.checkpoint.sub())),
        ("ownerSwitchesSinceCheckpoint".to_owned(), number(lease.switches)),
        ("entityType".to_owned(), AttributeValue::S("LEASE".to_owned())),
    ]);
    let mut set = |name: &str, value: AttributeValue| row.insert(name.to_owned(), value);
    if let Some(owner) = &lease.owner {
        set("leaseOwner", AttributeValue::S(owner.clone()));
    }
    // An empty set is not a value in DynamoDB.
    if !lease.parents.is_empty() {
        set("parentShardId", AttributeValue::Ss(lease.parents.iter().cloned().collect()));
    }
    if !lease.children.is_empty() {
        set("childShardIds", AttributeValue::Ss(lease.children.iter().cloned().collect()));
    }
    if let Some((low, high)) = lease.hashes {
        set("startingHashKey", AttributeValue::S(low.to_string()));
        set("endingHashKey", AttributeValue::S(high.to_string()));
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::lease::ShardInfo;

    fn lease() -> Lease {
        let parents = BTreeSet::from(["shardId-000000000000".to_owned()]);
        let shard = ShardInfo { id: "shardId-000000000001".to_owned(), parents, hashes: (0, u128::MAX), open: true };
        let checkpoint = Checkpoint::Sequence { number: "4968".to_owned(), sub: 3 };
        Lease { owner: Some("worker".to_owned()), counter: 12, ..Lease::new(&shard, checkpoint) }
    }

    #[test]
    fn a_row_reads_as_it_was_written() {
        assert_eq!(read(&write(&lease())), Some(lease()));
    }

    #[test]
    fn rows_that_are_not_leases_are_stepped_over() {
        let mut row = write(&lease());
        row.insert("entityType".to_owned(), AttributeValue::S("WORKER_METRIC_STATS".to_owned()));
        assert_eq!(read(&row), None);
        row.remove("entityType");
        assert!(read(&row).is_some(), "rows of the library before 3.5 have no type");
    }
}
