//! A sweep that succeeds: a host of ours that suddenly uses an administrative port with many others.
//!
//! Lateral movement does not fail: the remote shells, shares and databases that it looks for are there (MITRE ATT&CK T1021).
//! What tells it from configuration management, backup and monitoring is that these did the same before. So a sweep is
//! judged by what its host did earlier with the port; where the log is too young to know that, it is held back until it
//! was repeated, as jobs are, or the time for that is over.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use super::Settings;
use crate::finding::{Actor, Evidence, Finding, Merge, Severity, Subject, Target, Threat};
use crate::flow::{Address, EventTime, InterfaceId};
use crate::statistical::conversation::{Conversation, Place};
use crate::statistical::explain::Judgement;
use crate::statistical::table::Entry;

/// A host of ours, and an administrative port that it uses with others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sweeper {
    /// The host.
    pub source: Address,
    /// The port.
    pub port: u16,
    targets: BTreeMap<Address, Use>,
    /// When the sweep under way began; zero for none.
    began: EventTime,
    /// Whether it comes back to its targets, as jobs do: it is known for that.
    habit: bool,
    /// Whether the sweep under way was reported.
    reported: bool,
    /// Whether it was reported as a scan that fails, which needs no second report.
    scans: bool,
    last_seen: EventTime,
    latest: Place,
    interface: InterfaceId,
}

/// What was seen of one target.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Use {
    first: EventTime,
    last: EventTime,
    /// When the visit under way began; one that comes [`VISIT_SECONDS`] later is another.
    visit: EventTime,
    visits: u8,
    answered: bool,
}

/// Contacts within so many seconds of a visit's begin are part of it: a job's retries, a session's pieces.
const VISIT_SECONDS: u32 = 20 * 60;

/// What a visit must be to make a habit: the third one, or the second a day after the first (as nightly jobs come).
const DAY_SECONDS: std::ops::RangeInclusive<u32> = 20 * 3_600..=28 * 3_600;

impl Entry for Sweeper {
    type Key = (Address, u16);

    fn key(&self) -> (Address, u16) {
        (self.source, self.port)
    }

    fn last_seen(&self) -> EventTime {
        self.last_seen
    }
}

impl Sweeper {
    /// More targets than this are not told apart: 512 × 56 B.
    const TARGETS_MAX: usize = 512;

    /// A host that has not used the port yet.
    pub fn new(source: Address, port: u16, at: EventTime) -> Sweeper {
        Sweeper {
            source,
            port,
            targets: BTreeMap::new(),
            began: EventTime(0),
            habit: false,
            reported: false,
            scans: false,
            last_seen: at,
            latest: Place::default(),
            interface: InterfaceId(0),
        }
    }

    /// Notes that it used the port, answered or not.
    pub fn note(&mut self, c: &Conversation) {
        let (start, end) = (c.start(), c.end());
        self.last_seen = self.last_seen.max(end);
        if c.place() > self.latest {
            (self.latest, self.interface) = (c.place(), c.interface);
        }
        if self.targets.len() >= Self::TARGETS_MAX && !self.targets.contains_key(&c.responder) {
            return;
        }
        let fresh = Use { first: start, last: end, visit: start, visits: 1, answered: false };
        let target = self.targets.entry(c.responder).or_insert(fresh);
        let pause = start.since(target.visit);
        if pause >= VISIT_SECONDS {
            let daily = DAY_SECONDS.contains(&pause);
            target.visits = target.visits.saturating_add(if daily { 2 } else { 1 });
            target.visit = start;
        }
        target.first = target.first.min(start);
        target.last = target.last.max(end);
        target.answered |= !c.failed();
    }

    /// Takes over what another engine knows of the same host and port.
    pub fn join(&mut self, other: Sweeper) {
        for (address, theirs) in other.targets {
            let room = self.targets.len() < Self::TARGETS_MAX;
            match self.targets.get_mut(&address) {
                Some(known) => {
                    known.first = known.first.min(theirs.first);
                    known.last = known.last.max(theirs.last);
                    known.visit = known.visit.max(theirs.visit);
                    known.visits = known.visits.max(theirs.visits);
                    known.answered |= theirs.answered;
                }
                None if room => {
                    self.targets.insert(address, theirs);
                }
                None => {}
            }
        }
        self.habit |= other.habit;
        self.reported |= other.reported;
        self.scans |= other.scans;
        self.began = self.began.max(other.began);
        self.last_seen = self.last_seen.max(other.last_seen);
        if other.latest > self.latest {
            (self.latest, self.interface) = (other.latest, other.interface);
        }
    }

    /// Gives the interface another number.
    pub fn rename(&mut self, rename: impl Fn(InterfaceId) -> InterfaceId) {
        self.interface = rename(self.interface);
    }

    /// Who saw it.
    pub fn interface(&self) -> InterfaceId {
        self.interface
    }

    /// Whether a sweep is held back, so that it must be judged again although nothing new is seen of it.
    pub fn is_held(&self) -> bool {
        self.began != EventTime(0) && !self.reported && !self.habit && !self.scans
    }

    /// Until when it is held back at most; `None` where nothing is.
    pub fn held_until(&self, hold: SignedDuration) -> Option<EventTime> {
        self.is_held().then(|| self.began.plus(hold.as_secs() as u32))
    }

    /// Notes that the sweep under way was told as a scan that fails.
    pub fn note_scan(&mut self) {
        self.scans = self.began != EventTime(0);
    }

    /// Judges the host at the end of a window, or of the log. `watched_since` is when the log began.
    pub fn judge(&mut self, settings: &Settings, watched_since: EventTime, now: EventTime, ended: bool) -> Judgement {
        let span = settings.sweep_span.as_secs() as u32;
        let since = now.minus(span);
        if self.began != EventTime(0) && (self.reported || self.scans) && self.last_seen < since {
            (self.began, self.reported, self.scans) = (EventTime(0), false, false);
        }
        let new = self.targets.values().filter(|target| target.first >= since).count() as u32;
        if self.began == EventTime(0) && new >= settings.hosts {
            let recent = self.targets.values().map(|target| target.first).filter(|first| *first >= since);
            self.began = recent.min().unwrap_or(since);
        }
        let began = if self.began == EventTime(0) { since } else { self.began };
        let swept: Vec<&Use> = self.targets.values().filter(|target| target.first >= began).collect();
        let before = (self.targets.len() - swept.len()) as f64;
        let hosts = swept.len() as f64;
        let again = swept.iter().filter(|target| target.visits >= 3).count() as f64;
        self.habit |= hosts > 0.0 && again >= 0.5 * f64::from(settings.hosts).min(hosts) && self.began != EventTime(0);
        // A host that is known for it is so for as many more hosts as it knows.
        let habit_limit = before * 4.0;
        let watch = began.since(watched_since);
        let wanted = settings.sweep_watch.as_secs() as u32;
        let hold = settings.sweep_hold.as_secs() as u32;
        let decided = watch >= wanted || ended || now.since(began) >= hold;
        let answered = swept.iter().filter(|target| target.answered).count() as f64;
        let evidence = vec![
            Evidence::at_least("distinct_hosts", hosts, settings.hosts.into(), "hosts", Merge::Max),
            Evidence::at_most("hosts_before", before, hosts / 4.0, "hosts", Merge::Latest),
            Evidence::told("hosts_that_answered", answered, "hosts", Merge::Max),
            Evidence::told("hosts_visited_again", again, "hosts", Merge::Latest),
            Evidence::told("watched_before", watch.into(), "s", Merge::Latest),
        ];
        let passed = self.began != EventTime(0)
            && hosts >= f64::from(settings.hosts)
            && !self.habit
            && !self.scans
            && hosts > habit_limit
            && decided;
        Judgement { method: "sweep".to_owned(), passed, evidence, ratio: hosts / f64::from(settings.hosts) }
    }

    /// The statement, once [`Sweeper::judge`] has passed.
    pub fn finding(
        &mut self,
        judgement: &Judgement,
        settings: &Settings,
        window: EventTime,
        window_seconds: u32,
    ) -> Finding {
        self.reported = true;
        let swept = || self.targets.iter().filter(|(_, target)| target.first >= self.began);
        let number = |name: &str| judgement.evidence.iter().find(|e| e.name == name).map_or(0.0, |e| e.value);
        let watched = number("watched_before") >= settings.sweep_watch.as_secs() as f64;
        let first = swept().map(|(_, target)| target.first).min().unwrap_or(window);
        let begins = swept().map(|(_, target)| target.first).max().unwrap_or(first);
        let last = swept().map(|(_, target)| target.last).max().unwrap_or(first);
        let count = swept().count() as u32;
        let targets = swept()
            .take(Finding::TARGETS_MAX)
            .map(|(&address, _)| Target { address, ports: vec![self.port], port_count: 1 })
            .collect();
        let past = if watched {
            "it did not use that port before"
        } else {
            "whether it always does that, this log is too young to tell"
        };
        let reason = match watched {
            true => "it looks like a way from host to host, and was never seen here before",
            false => "it looks like a way from host to host, and the log is too young to know whether that is new",
        };
        Finding {
            threat: Threat::PortScan,
            method: judgement.method.clone(),
            actor: Actor::One(self.source),
            subject: Subject::Actor(self.source),
            targets,
            target_count: count,
            sources: Vec::new(),
            severity_reason: reason.to_owned(),
            learned: Vec::new(),
            first_seen: first,
            last_seen: last,
            window,
            window_seconds,
            score: if watched { 1.0 - 0.3 / judgement.ratio.max(1.0) } else { 0.65 },
            severity: if watched { Severity::High } else { Severity::Medium },
            evidence: judgement.evidence.clone(),
            summary: format!(
                "{} opened port {} on {{targets}} hosts in {} s, {{hosts_that_answered}} of which answered; {past}",
                self.source,
                self.port,
                begins.since(first)
            ),
            interfaces: Vec::new(),
            account: String::new(),
            provisional: false,
            ml: None,
            alternatives: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
