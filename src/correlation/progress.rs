//! How far shards are, for those that wait for each other.

use std::collections::BTreeMap;
use std::fmt;

use crate::flow::EventTime;
use crate::ingest::ShardId;

/// A shard of which nothing has been noted for so long, s, is not waited for.
const SHARD_SILENCE: i64 = 120;

/// How far one shard is, or all of them are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Every finding of windows up to here is known to the task that reads the shard.
    pub received: EventTime,
    /// Every finding of windows up to here is folded, and what came of it is delivered.
    pub folded: EventTime,
}

impl Progress {
    /// The least of both.
    pub(super) fn least(all: impl Iterator<Item = Progress>) -> Option<Progress> {
        all.reduce(|a, b| Progress { received: a.received.min(b.received), folded: a.folded.min(b.folded) })
    }
}

/// How far each shard is.
pub type Progresses = BTreeMap<ShardId, Progress>;

/// For how long, s, it is kept that a shard has ended: whoever expects it still, by a table of leases that is seconds old, does not wait
/// for it again.
const ENDED_KEPT: i64 = 1200;

/// What is noted of a shard: `folded said received`, and `inherited` where its own reader has noted nothing yet, or `ended`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Stand {
    /// How far it is.
    pub progress: Progress,
    /// When that was, by the server's clock, s.
    pub said: i64,
    pub inherited: bool,
    /// Others continue it, and nobody waits for it.
    pub ended: bool,
}

impl Stand {
    /// Nothing where it is no such text. Where `received` is missing an older version wrote it, which folded at once.
    pub(super) fn parse(text: &str) -> Option<Stand> {
        let mut words = text.split(' ');
        let folded = EventTime(words.next()?.parse().ok()?);
        let said = words.next()?.parse().ok()?;
        let received = words.next().and_then(|word| word.parse().ok()).map_or(folded, EventTime);
        let (inherited, ended) = match words.next() {
            Some("ended") => (false, true),
            more => (more.is_some(), false),
        };
        Some(Stand { progress: Progress { received, folded }, said, inherited, ended })
    }

    /// Its reader is so far; a reader that does not know yet changes nothing.
    pub(super) fn move_to(&mut self, progress: Progress, now: i64) {
        if self.ended {
            return;
        }
        let Progress { received, folded } = &mut self.progress;
        *folded = progress.folded.max(*folded);
        *received = progress.received.max(*received).max(*folded);
        self.inherited &= progress == Progress::default();
        self.said = now;
    }

    /// The shard continues another, which has ended.
    pub(super) fn continues(self, ended: Stand, now: i64) -> Stand {
        let begun = self.progress != Progress::default();
        let progress = match (begun, self.inherited) {
            (false, _) => ended.progress,
            (true, true) => Progress::least([self.progress, ended.progress].into_iter()).unwrap_or_default(),
            (true, false) => self.progress,
        };
        Stand { progress, said: now, inherited: self.inherited || !begun, ended: self.ended }
    }

    /// Others continue the shard.
    pub(super) fn end(self, now: i64) -> Stand {
        Stand { said: now, ended: true, ..self }
    }

    pub(super) fn is_alive(&self, now: i64) -> bool {
        !self.ended && now - self.said <= SHARD_SILENCE
    }

    /// Whether nothing of it matters any more.
    pub(super) fn is_gone(&self, now: i64) -> bool {
        now - self.said > if self.ended { ENDED_KEPT } else { SHARD_SILENCE }
    }
}

impl fmt::Display for Stand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stand { progress: Progress { received, folded }, said, inherited, ended } = self;
        let more = match (ended, inherited) {
            (true, _) => " ended",
            (false, true) => " inherited",
            (false, false) => "",
        };
        write!(f, "{} {said} {}{more}", folded.0, received.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand(folded: u32, received: u32) -> Stand {
        let progress = Progress { received: EventTime(received), folded: EventTime(folded) };
        Stand { progress, said: 7, inherited: false, ended: false }
    }

    #[test]
    fn what_is_noted_is_read_again_and_what_an_older_version_noted_too() {
        for stand in [stand(60, 120), Stand { inherited: true, ..stand(0, 0) }, stand(60, 120).end(9)] {
            assert_eq!(Stand::parse(&stand.to_string()), Some(stand));
        }
        assert_eq!(Stand::parse("60 7"), Some(stand(60, 60)));
        assert_eq!(Stand::parse("soon"), None);
    }

    #[test]
    fn a_reader_that_begins_again_takes_nothing_back() {
        let mut known = stand(120, 180);
        known.move_to(Progress::default(), 9);
        known.move_to(stand(60, 240).progress, 9);
        assert_eq!(known, Stand { said: 9, ..stand(120, 240) });
    }

    #[test]
    fn whoever_expects_a_shard_that_has_ended_makes_nobody_wait_for_it() {
        let mut ended = stand(120, 180).end(9);
        ended.move_to(Progress::default(), 10);
        assert_eq!(
            (ended.is_alive(10), ended.is_gone(10 + SHARD_SILENCE), ended.is_gone(10 + ENDED_KEPT)),
            (false, false, true)
        );
    }

    #[test]
    fn one_that_continues_two_begins_where_the_least_of_them_ended_until_it_is_read() {
        let child = Stand::default().continues(stand(120, 180), 8).continues(stand(60, 60), 9);
        assert_eq!(child, Stand { said: 9, inherited: true, ..stand(60, 60) });
        let mut read = child;
        read.move_to(Progress::default(), 10);
        assert!(read.inherited, "it does not know yet how far it is");
        read.move_to(stand(180, 180).progress, 11);
        assert_eq!(read.continues(stand(300, 300), 12), Stand { said: 12, ..stand(180, 180) });
    }
}
