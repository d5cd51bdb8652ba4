//! Artifacts in S3: `s3://bucket/key`.

use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use jiff::SignedDuration;

use super::artifact::{self, ArtifactError, BYTES_MAX};
use super::model::Model;
use crate::aws::{Fault, deadlines};

/// Deadline of one attempt of a call; an artifact is a few hundred kB.
const TIMEOUT: SignedDuration = SignedDuration::from_secs(20);

/// Reads and writes artifacts.
#[derive(Clone, Debug)]
pub struct Artifacts {
    client: Client,
}

/// Bucket and key of `s3://bucket/key`; `None` for what is no such address.
pub fn address(place: &str) -> Option<(&str, &str)> {
    let (bucket, key) = place.strip_prefix("s3://")?.split_once('/')?;
    (!bucket.is_empty() && !key.is_empty()).then_some((bucket, key))
}

/// A model from S3, with the mark by which a later one is told from it.
pub type Fetched = (Model, String);

impl Artifacts {
    /// With `path_style` the bucket's name goes into the path instead of the host name; some servers other than AWS need it.
    pub fn new(aws: &SdkConfig, path_style: bool) -> Artifacts {
        let config = aws_sdk_s3::config::Builder::from(aws)
            .timeout_config(deadlines(TIMEOUT))
            .force_path_style(path_style)
            .build();
        Artifacts { client: Client::from_conf(config) }
    }

    /// Reads and checks the artifact at a place, unless its mark is still `known`.
    pub async fn read(&self, place: &str, known: Option<&str>) -> Result<Option<Fetched>, ArtifactError> {
        let unreadable = |cause: String| ArtifactError::Unreadable { place: place.to_owned(), cause };
        let (bucket, key) = address(place).ok_or_else(|| unreadable("it is not s3://bucket/key".to_owned()))?;
        let head = self.client.head_object().bucket(bucket).key(key).send().await;
        let head = head.map_err(|e| unreadable(Fault::of(&e).cause))?;
        let mark = head.e_tag().unwrap_or_default();
        if known.is_some_and(|known| known == mark && !mark.is_empty()) {
            return Ok(None);
        }
        if head.content_length().is_some_and(|length| length as u64 > BYTES_MAX) {
            return Err(ArtifactError::TooLarge { file: place.to_owned() });
        }
        let object = self.client.get_object().bucket(bucket).key(key).send().await;
        let object = object.map_err(|e| unreadable(Fault::of(&e).cause))?;
        let mark = object.e_tag().unwrap_or_default().to_owned();
        let bytes = object.body.collect().await.map_err(|e| unreadable(e.to_string()))?;
        Ok(Some((artifact::unpack(&bytes.into_bytes())?, mark)))
    }

    /// Writes an artifact; S3 shows it whole or not at all.
    pub async fn write(&self, place: &str, bytes: Vec<u8>) -> Result<(), ArtifactError> {
        let failed = |cause: String| ArtifactError::Unwritable { place: place.to_owned(), cause };
        let (bucket, key) = address(place).ok_or_else(|| failed("it is not s3://bucket/key".to_owned()))?;
        let put = self.client.put_object().bucket(bucket).key(key).body(ByteStream::from(bytes)).send().await;
        put.map(|_| ()).map_err(|e| failed(Fault::of(&e).cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_bucket_and_a_key() {
        assert_eq!(address("s3://models/2026/model.tar.gz"), Some(("models", "2026/model.tar.gz")));
        for wrong in ["models/x", "s3://models", "s3://models/", "s3:///key", "/s3://a/b"] {
            assert_eq!(address(wrong), None, "{wrong}");
        }
    }
}
