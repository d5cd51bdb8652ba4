//! Snapshots in an S3 bucket: an object each, which S3 keeps whole or not at all.

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use jiff::SignedDuration;
use serde::Deserialize;
use tracing::warn;

use super::{KEPT, Snapshot, SnapshotError, SnapshotStore};
use crate::aws::{Fault, deadlines};

/// Settings `[ingest.snapshot.s3]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of the bucket.
    pub bucket: String,
    /// What the keys begin with, with its slash.
    pub prefix: String,
    /// Whether the bucket's name is put into the path instead of the host name; some servers other than AWS need it.
    pub path_style: bool,
    /// Deadline of one attempt of a call.
    pub timeout: SignedDuration,
}

/// What the key of a snapshot ends with.
const EXTENSION: &str = ".snapshot";

/// Snapshots in a bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    client: Client,
    settings: Settings,
}

impl Bucket {
    /// Uses a bucket that exists.
    pub fn new(aws: &SdkConfig, settings: &Settings) -> Bucket {
        let config = aws_sdk_s3::config::Builder::from(aws)
            .timeout_config(deadlines(settings.timeout))
            .force_path_style(settings.path_style)
            .build();
        Bucket { client: Client::from_conf(config), settings: settings.clone() }
    }

    /// Keys sort as their numbers do. What is not a plain letter in a name is written as its bytes, so that no two names
    /// share a folder.
    fn folder(&self, name: &str) -> String {
        let mut folder = self.settings.prefix.clone();
        for byte in name.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => folder.push(char::from(byte)),
                _ => folder.push_str(&format!("_{byte:02x}")),
            }
        }
        folder + "/"
    }

    fn key(&self, name: &str, number: u64) -> String {
        format!("{}{number:020}{EXTENSION}", self.folder(name))
    }

    fn failed(&self, verb: &str, key: &str, fault: Fault) -> SnapshotError {
        let context = format!("{verb} s3://{}/{key}", self.settings.bucket);
        SnapshotError::Backend { context, cause: fault.cause }
    }
}

#[async_trait]
impl SnapshotStore for Bucket {
    async fn save(&self, snapshot: Snapshot) -> Result<(), SnapshotError> {
        let key = self.key(&snapshot.name, snapshot.number);
        self.client
            .put_object()
            .bucket(&self.settings.bucket)
            .key(&key)
            .body(ByteStream::from(snapshot.encode()))
            .send()
            .await
            .map_err(|e| self.failed("write snapshot", &key, Fault::of(&e)))?;
        for old in self.numbers(&snapshot.name).await?.into_iter().skip(KEPT) {
            let key = self.key(&snapshot.name, old);
            if let Err(error) = self.client.delete_object().bucket(&self.settings.bucket).key(&key).send().await {
                // It is in nobody's way; the next snapshot tries again.
                warn!(key, error = Fault::of(&error).cause, "remove an old snapshot");
            }
        }
        Ok(())
    }

    async fn numbers(&self, name: &str) -> Result<Vec<u64>, SnapshotError> {
        let folder = self.folder(name);
        let mut numbers = Vec::new();
        let mut from = None;
        loop {
            let page = self
                .client
                .list_objects_v2()
                .bucket(&self.settings.bucket)
                .prefix(&folder)
                .set_continuation_token(from)
                .send()
                .await
                .map_err(|e| self.failed("list snapshots in", &folder, Fault::of(&e)))?;
            let number = |key: &str| key.strip_prefix(&folder)?.strip_suffix(EXTENSION)?.parse::<u64>().ok();
            numbers.extend(page.contents().iter().filter_map(|object| number(object.key()?)));
            from = page.next_continuation_token;
            if from.is_none() {
                break;
            }
        }
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        Ok(numbers)
    }

    async fn load(&self, name: &str, number: u64) -> Result<Snapshot, SnapshotError> {
        let key = self.key(name, number);
        let object = self.client.get_object().bucket(&self.settings.bucket).key(&key).send().await;
        let object = object.map_err(|e| self.failed("read snapshot", &key, Fault::of(&e)))?;
        let bytes = object.body.collect().await.map_err(|e| SnapshotError::Backend {
            context: format!("read snapshot s3://{}/{key}", self.settings.bucket),
            cause: e.to_string(),
        })?;
        Snapshot::decode(&bytes.into_bytes()).map_err(|cause| SnapshotError::Unreadable { place: key, cause })
    }
}
