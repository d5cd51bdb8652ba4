//! Aggregated records: many small records in one, as the Kinesis Producer Library packs them.
//!
//! An aggregate is four magic bytes, a Protocol Buffers message, and the MD5 of that message:
//!
//! ```proto
//! message AggregatedRecord { repeated string partition_key_table = 1; repeated string explicit_hash_key_table = 2;
//!                            repeated Record records = 3; }
//! message Record { required uint64 partition_key_index = 1; optional uint64 explicit_hash_key_index = 2;
//!                  required bytes data = 3; repeated Tag tags = 4; }
//! ```
//!
//! Whatever does not fit this exactly is not an aggregate and is handed on as it is: that is the rule of the Kinesis
//! Client Library (`retrieval/AggregatorUtil.java`), since any record may begin with the magic bytes by chance. The two
//! messages are read by hand: they are frozen, and a code generator would weigh more than these lines.

use md5::{Digest, Md5};

const MAGIC: [u8; 4] = [0xf3, 0x89, 0x9a, 0xc2];
const DIGEST: usize = 16;

/// The records of an aggregate, in order; `None` when the payload is none.
///
/// The client library drops records whose partition hash lies outside the shard, since after a split the producer library
/// sends them again. They are kept here: other producers do not send again, and one flow counted twice right after a split
/// does less harm than one that is lost.
pub fn parts(payload: &[u8]) -> Option<Vec<&[u8]>> {
    let body = payload.strip_prefix(&MAGIC)?;
    let (message, digest) = body.split_at_checked(body.len().checked_sub(DIGEST)?)?;
    if Md5::digest(message).as_slice() != digest {
        return None;
    }
    let (mut keys, mut records) = (0_u64, Vec::new());
    let mut fields = Fields(message);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Bytes(_)) => keys += 1,
            (3, Value::Bytes(record)) => records.push(record),
            _ => {}
        }
    }
    records.into_iter().map(|record| data(record, keys)).collect()
}

fn data(record: &[u8], keys: u64) -> Option<&[u8]> {
    let (mut key, mut data) = (None, None);
    let mut fields = Fields(record);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Number(index)) => key = Some(index),
            (3, Value::Bytes(bytes)) => data = Some(bytes),
            _ => {}
        }
    }
    // A key that is not in the table says that these bytes only look like a message.
    data.filter(|_| key.is_some_and(|k| k < keys))
}

/// Fields of a Protocol Buffers message, as far as these messages have kinds of them.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    /// `Some(None)` at the end, `None` where the bytes are no message.
    #[allow(clippy::type_complexity)]
    fn next(&mut self) -> Option<Option<(u64, Value<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            2 => {
                let length = usize::try_from(self.number()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            1 => Value::Bytes(self.take(8)?),
            5 => Value::Bytes(self.take(4)?),
            _ => return None,
        };
        Some(Some((tag >> 3, value)))
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Made by `aws-kinesis-agg` 1.2.3, the aggregator that AWS Labs publish for Python: `one` under the key `eni-1`,
    /// `two` under `eni-2` with an explicit hash key.
    const AGGREGATE: &[u8] =
        b"\xf3\x89\x9a\xc2\x0a\x05eni-1\x0a\x05eni-2\x12\x0242\x1a\x07\x08\x00\x1a\x03one\x1a\x09\x08\x01\
        \x10\x00\x1a\x03two \xe7\xcf\xc9\x0cW\xe77\x16\xda\x85@\xaa*\x13r";

    fn sealed(message: &[u8]) -> Vec<u8> {
        [&MAGIC[..], message, &Md5::digest(message)[..]].concat()
    }

    #[test]
    fn an_aggregate_comes_apart_in_order() {
        assert_eq!(parts(AGGREGATE), Some(vec![&b"one"[..], b"two"]));
    }

    #[test]
    fn what_only_begins_like_an_aggregate_is_none() {
        let mut damaged = AGGREGATE.to_vec();
        damaged[6] ^= 1;
        for payload in [&damaged[..], &AGGREGATE[..AGGREGATE.len() - 1], &MAGIC[..], b"2 123456789012 eni-1"] {
            assert_eq!(parts(payload), None);
        }
        assert_eq!(parts(&sealed(b"\x1a\x07\x08\x00\x1a\x03one")), None, "a key that is not in the table");
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(message: Vec<u8>) {
            let _ = parts(&sealed(&message));
        }
    }
}
