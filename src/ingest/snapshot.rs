//! Snapshots: detector state at a position of a shard, kept so that a restart continues.
//!
//! A snapshot and its position are one unit. Whoever restores a snapshot reads on from *its* position; the checkpoint of
//! the stream says the same a moment later, and is only what a task without snapshots starts from. So a crash between the
//! two costs nothing.
//!
//! [`Snapshot::encode`] is the form in which every backend keeps one: told by its first bytes, compressed, and sealed with
//! SHA-256, so that a torn or rotten file is recognised before a single byte of it is believed. Backends keep the last
//! [`KEPT`] of each name, and whoever cannot use the newest falls back to the one before.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Position;

pub mod local;
pub mod s3;

/// Settings `[ingest.snapshot]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A bucket; what is used when it is configured.
    pub s3: Option<s3::Settings>,
    /// A folder; what is used when nothing else is configured.
    pub local: local::Settings,
}

/// How many snapshots of a name are kept: the newest, and the one before for when the newest cannot be read.
pub const KEPT: usize = 2;

/// What an encoded snapshot begins with; the digit is the version of the form.
const MAGIC: &[u8; 8] = b"FVSNAP1\n";

/// Length of SHA-256, bytes.
const SEAL: usize = 32;

/// zstd's fastest ordinary level: snapshots are written every minute and read once.
const LEVEL: i32 = 1;

/// State at a position.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// What it is the state of: a shard, or the judgement of a task.
    pub name: String,
    /// Ascending per name; later is newer.
    pub number: u64,
    /// Where the shard stood; `None` where the state belongs to no shard.
    pub position: Option<Position>,
    /// The state, as its owner wrote it.
    pub state: Vec<u8>,
}

/// Why there is no snapshot, or why it was not kept.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It is there, and is damaged or of another version.
    #[error("read snapshot {place}: {cause}")]
    Unreadable {
        /// Which one.
        place: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The backend did not do what it was asked.
    #[error("{context}: {cause}")]
    Backend {
        /// What was being done, as a verb phrase.
        context: String,
        /// What came back.
        cause: String,
    },
}

/// Where snapshots are kept.
#[async_trait]
pub trait SnapshotStore: Send + Sync {
    /// Keeps a snapshot, whole or not at all, and lets go of all but the last [`KEPT`] of its name.
    async fn save(&self, snapshot: Snapshot) -> Result<(), SnapshotError>;

    /// The numbers of the kept snapshots of a name, newest first.
    async fn numbers(&self, name: &str) -> Result<Vec<u64>, SnapshotError>;

    /// One snapshot.
    async fn load(&self, name: &str, number: u64) -> Result<Snapshot, SnapshotError>;
}

impl Snapshot {
    /// The kept form: magic, seal over the rest, compressed content.
    pub fn encode(&self) -> Vec<u8> {
        let plain =
            postcard::to_stdvec(self).expect("a snapshot is strings and bytes, which postcard can always write");
        let packed = zstd::bulk::compress(&plain, LEVEL).expect("compression into memory has nothing to fail on");
        let mut bytes = Vec::with_capacity(MAGIC.len() + SEAL + packed.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&Sha256::digest(&packed));
        bytes.extend_from_slice(&packed);
        bytes
    }

    /// The snapshot in its kept form, or what is wrong with that, as a fragment.
    pub fn decode(bytes: &[u8]) -> Result<Snapshot, String> {
        let sealed = bytes.strip_prefix(MAGIC).ok_or("not a snapshot of this version")?;
        let (seal, packed) = sealed.split_at_checked(SEAL).ok_or("cut off before its seal ends")?;
        if Sha256::digest(packed).as_slice() != seal {
            return Err("its content does not match its seal".to_owned());
        }
        let plain = zstd::decode_all(packed).map_err(|cause| format!("unpack: {cause}"))?;
        postcard::from_bytes(&plain).map_err(|cause| format!("decode: {cause}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshot() -> Snapshot {
        let position = Some(Position("file.log:17".into()));
        Snapshot { name: "shard".into(), number: 7, position, state: (0..999_u32).map(|i| (i / 10) as u8).collect() }
    }

    #[test]
    fn a_snapshot_reads_back_as_it_was() {
        assert_eq!(Snapshot::decode(&snapshot().encode()), Ok(snapshot()));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let good = snapshot().encode();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(Snapshot::decode(&bad).is_err(), "the bit in byte {at} went unnoticed");
        }
    }

    #[test]
    fn a_cut_anywhere_is_noticed() {
        let good = snapshot().encode();
        for end in 0..good.len() {
            assert!(Snapshot::decode(&good[..end]).is_err(), "the cut at byte {end} went unnoticed");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Snapshot::decode(&bytes);
            let _ = Snapshot::decode(&[MAGIC.as_slice(), &Sha256::digest(&bytes), &bytes].concat());
        }
    }
}
