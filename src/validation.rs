//! Tier 4: an incident becomes an [`Anomaly`], or a kept reason for silence.
//!
//! Stages stand in a fixed order, each passing or refusing with a reason that is stored and counted; the first refusal
//! ends the matter for now, and more evidence may reopen it:
//!
//! | stage | refuses |
//! | --- | --- |
//! | `evidence` | what carries no number that was held against a threshold |
//! | `allow_list` | what trusted addresses do, or is done with them ([`allow_list`]) |
//! | `suppression` | what somebody named, dated and answers for ([`suppression`]) |
//! | `known_benign` | resolvers, time, health checks and the like ([`known_benign`]) |
//! | `corroboration` | one uncertain judgement that nothing else supports ([`corroboration`]) |
//! | `confidence` | what is less probable than the threat's threshold ([`calibration`]) |
//! | `storm` | the hundredth anomaly of one threat in ten minutes, which is told with the rest as one ([`storm`]) |
//!
//! Pure: time is event time, so a replay judges as the live run did. What was told once stays told: later evidence
//! updates it, and a stage that would refuse it now cannot take it back.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::anomaly::{Anomaly, Episode, SCHEMA, Stage, Status, Tiers, Validation};
use crate::correlation::{Account, Incident};
use crate::finding::{Actor, Evidence, Severity, Subject, Target, Threat, Tier};
use crate::flow::network::Network;
use crate::flow::{Address, EventTime};
use crate::publish::{Feedback, Silence};

pub mod allow_list;
pub mod breadth;
pub mod calibration;
pub mod corroboration;
pub mod known_benign;
pub mod matching;
pub mod mitre;
pub mod storm;
pub mod summary;
pub mod suppression;

use calibration::Calibration;
use storm::Storms;
use suppression::Suppressions;

/// Settings of the tier, `[validation]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How much event time passes between two updates of one anomaly, unless something important changes.
    pub update_interval: SignedDuration,
    /// When an uncertain judgement needs a second one.
    pub corroboration: corroboration::Settings,
    /// From the detectors' scores to probabilities, and the thresholds on these.
    pub calibration: calibration::Settings,
    /// When many are told as one.
    pub storm: storm::Settings,
    /// Trusted addresses.
    pub allow_list: Vec<allow_list::Entry>,
    /// What somebody asked to be quiet about.
    pub suppressions: Vec<suppression::Suppression>,
    /// Services that look like threats and are none.
    pub known_benign: Vec<known_benign::Service>,
}

impl Settings {
    /// What is wrong with reasons to stay quiet, by key: they must be complete, and hide nearly everything only where they
    /// say that they mean it. `internal` are the networks that are ours.
    pub fn check(&self, internal: &[ipnet::IpNet]) -> Vec<(&'static str, String)> {
        const REMEDY: &str = "name fewer threats, addresses or ports, or set force = true";
        let mut found = Vec::new();
        let names = |threats: &[Threat]| threats.iter().map(|threat| threat.name()).collect::<Vec<_>>().join(", ");
        for suppression in &self.suppressions {
            if let Err(error) = suppression.check() {
                found.push(("suppressions", error.to_string()));
            }
        }
        let trusted = self.allow_list.iter().filter(|entry| !entry.force).map(|entry| {
            let (threats, actors) = (entry.threats.clone(), entry.addresses.clone());
            (entry.name.as_str(), matching::Pattern { threats, actors, ..matching::Pattern::default() })
        });
        let quiet = self.suppressions.iter().filter(|s| !s.force && !s.pattern.is_empty());
        let benign = self.known_benign.iter().map(|service| (service.name.as_str(), service.pattern.clone()));
        for (key, rules) in [
            ("allow_list", trusted.filter(|(_, pattern)| !pattern.actors.is_empty()).collect::<Vec<_>>()),
            ("suppressions", quiet.map(|s| (s.name.as_str(), s.pattern.clone())).collect()),
            ("known_benign", benign.collect()),
        ] {
            let before = found.len();
            for (name, pattern) in &rules {
                let hidden = breadth::hidden_threats(&[pattern], internal);
                if !hidden.is_empty() {
                    found.push((
                        key,
                        format!("`{name}` would silence everything, or nearly, of {}; {REMEDY}", names(&hidden)),
                    ));
                }
            }
            let hidden =
                breadth::hidden_threats(&rules.iter().map(|(_, pattern)| pattern).collect::<Vec<_>>(), internal);
            if found.len() == before && !hidden.is_empty() {
                found.push((
                    key,
                    format!("together they would silence nearly everything of {}; {REMEDY}", names(&hidden)),
                ));
            }
        }
        found
    }
}

/// An incident with its account worked out once, for all stages.
#[derive(Debug)]
pub struct Case<'a> {
    /// The incident.
    pub incident: &'a Incident,
    /// What its findings say together.
    pub account: Account,
    /// Its numbers.
    pub evidence: Vec<Evidence>,
    /// Its targets.
    pub targets: Vec<Target>,
    /// Who acts.
    pub actor: Actor,
}

impl<'a> Case<'a> {
    /// Works out the account of an incident.
    pub fn new(incident: &'a Incident) -> Case<'a> {
        let account = incident.account();
        let actor = match incident.actor() {
            Some(address) => Actor::One(address),
            None => account.actor.unwrap_or(Actor::Many),
        };
        Case { incident, evidence: account.evidence(), targets: account.targets(), account, actor }
    }

    /// What kind of trouble.
    pub fn threat(&self) -> Threat {
        self.incident.key.threat
    }

    /// Whether an address of it is ours, by the settings or because it owns an interface that logs it.
    pub fn is_ours(&self, address: Address, network: &Network) -> bool {
        network.is_internal(address) || self.account.learned.contains(&address)
    }

    /// One number by name.
    pub fn number(&self, name: &str) -> Option<&Evidence> {
        self.evidence.iter().find(|evidence| evidence.name == name)
    }
}

/// What became of an incident.
#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    /// Confirmed, or more is known of what was confirmed. Whether it is new is the store's to say.
    Told(Box<Anomaly>),
    /// Not told, and why. Given again only when the reason changes.
    Silent(Silence),
}

/// What the judge remembers of an anomaly that it told.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Told {
    anomaly: Anomaly,
    /// Its severity before the company it keeps was looked at.
    own_severity: Severity,
    /// Why it was that.
    own_reason: String,
}

impl Told {
    /// Whether it was told before any window of it had closed.
    fn is_early(&self) -> bool {
        self.anomaly.updates == 0
    }

    /// Whether it knows all that what is told of the incident now may go on from.
    fn is_as_firm_as(&self, incident: &Incident) -> bool {
        !self.is_early() || !incident.is_firm()
    }
}

/// Counts of a judge's life, for metrics.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Incidents that were confirmed, by threat.
    pub confirmed: BTreeMap<String, u64>,
    /// Incidents that were refused for the first time, by stage.
    pub refused: BTreeMap<String, u64>,
}

/// Goes through the stages with every incident. One per task.
#[derive(Debug)]
pub struct Judge {
    settings: Settings,
    network: Network,
    suppressions: Suppressions,
    /// Of these, the ones that are not of the settings.
    added: Vec<suppression::Suppression>,
    calibration: Calibration,
    storms: Storms,
    told: BTreeMap<Uuid, Told>,
    /// The stage that last refused an incident, so that its silence is not told again with every window.
    silent: BTreeMap<Uuid, String>,
    counts: Counts,
}

/// The part of a judge's state that a snapshot holds.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    told: Vec<Told>,
    silent: BTreeMap<Uuid, String>,
    counts: Counts,
    storms: Storms,
    /// What verdicts had come to, for whoever reads a snapshot. The verdicts themselves are in the store, from which every
    /// judge learns them anew.
    calibration: calibration::Feedbacks,
}

impl Judge {
    /// A judge that has told nothing yet.
    pub fn new(settings: &Settings, network: &Network) -> Judge {
        Judge {
            network: network.clone(),
            suppressions: Suppressions::new(settings.suppressions.clone()),
            added: Vec::new(),
            calibration: Calibration::new(&settings.calibration),
            storms: Storms::new(&settings.storm),
            settings: settings.clone(),
            told: BTreeMap::new(),
            silent: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// Judges incidents in order. Closed ones are forgotten afterwards.
    pub fn judge(&mut self, incidents: &[Incident]) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let mut confirmed = BTreeSet::new();
        self.inherit(incidents);
        for incident in incidents.iter().filter(|incident| incident.absorbed_by.is_none()) {
            let case = Case::new(incident);
            let was_told = self.told.contains_key(&incident.id);
            // An early report stands until its window has closed; then it is judged as if it had not been made.
            let was_firm = self.told.get(&incident.id).is_some_and(|told| told.is_as_firm_as(incident));
            match self.examine(&case, was_firm) {
                Ok(validation) => {
                    self.tell(&case, validation, &mut outcomes);
                    if !was_firm && incident.is_firm() {
                        confirmed.insert(incident.id);
                    }
                }
                // What was told stays told; it only no longer grows, and is closed when its time comes.
                Err(_) if was_told => self.close_quietly(incident, &mut outcomes),
                Err(refusal) => self.keep_silent(&case, refusal, &mut outcomes),
            }
        }
        self.tell_company(&confirmed, &mut outcomes);
        for incident in incidents.iter().filter(|incident| incident.closed) {
            self.told.remove(&incident.id);
            self.silent.remove(&incident.id);
        }
        outcomes
    }

    /// Closes the anomalies that stand for many, where all event time has passed their window.
    pub fn close_storms(&mut self, watermark: EventTime) -> Vec<Outcome> {
        self.storms.close(watermark).into_iter().map(|anomaly| Outcome::Told(Box::new(anomaly))).collect()
    }

    /// Where one that was told turned out to be part of one that was not, what was told goes on as the other.
    fn inherit(&mut self, incidents: &[Incident]) {
        for part in incidents {
            if let Some(whole) = part.absorbed_by.filter(|whole| !self.told.contains_key(whole))
                && let Some(told) = self.told.get(&part.id).cloned()
            {
                self.told.insert(whole, told);
            }
        }
    }

    /// Takes a case through the stages: all of them with what they found, or the one that refused.
    fn examine(&mut self, case: &Case<'_>, was_told: bool) -> Result<Validation, Stage> {
        let settings = &self.settings;
        let mut stages = Vec::with_capacity(8);
        let mut pass = |stage: Stage| {
            if !stage.passed {
                return Err(stage);
            }
            stages.push(stage);
            Ok(())
        };
        pass(enough_evidence(case))?;
        pass(allow_list::stage(case, &settings.allow_list))?;
        let suppressed = self.silent.get(&case.incident.id).is_some_and(|stage| stage == suppression::NAME);
        pass(self.suppressions.stage(case, suppressed))?;
        pass(known_benign::stage(case, &settings.known_benign, &self.network))?;
        if !was_told {
            pass(corroboration::stage(case, &settings.corroboration))?;
            pass(self.calibration.stage(case))?;
            pass(self.storms.stage(case))?;
        } else if let Some(told) = self.told.get(&case.incident.id) {
            // What is known now says why, and not what was known when it was first told: that hangs on which shard was heard first.
            // Where verdicts or settings would refuse it today, it says why it was told.
            let now = [corroboration::stage(case, &settings.corroboration), self.calibration.stage(case)];
            let passed = |name: &str| now.iter().find(|stage| stage.passed && stage.name == name).cloned();
            let kept = ["corroboration", "confidence", storm::NAME];
            let before = told.anomaly.tiers.validation.stages.iter().filter(|stage| kept.contains(&&*stage.name));
            stages.extend(before.map(|before| passed(&before.name).unwrap_or_else(|| before.clone())));
        }
        Ok(Validation { stages })
    }

    /// Makes the anomaly, and hands it out if it says something new.
    fn tell(&mut self, case: &Case<'_>, validation: Validation, outcomes: &mut Vec<Outcome>) {
        let id = case.incident.id;
        let known = self.told.get(&id);
        let before = known.filter(|told| told.is_as_firm_as(case.incident));
        let own_severity =
            case.account.severity.unwrap_or(Severity::Low).max(before.map_or(Severity::Low, |t| t.own_severity));
        let mut anomaly = self.anomaly(case, validation, before);
        let own_reason = match before {
            Some(told) if told.own_severity > case.account.severity.unwrap_or(Severity::Low) => told.own_reason.clone(),
            _ => case.account.severity_reason.clone(),
        };
        let own = (own_severity, own_reason.as_str());
        self.keep_company(&mut anomaly, own, case.incident.related.keys(), before.map(|told| &told.anomaly));
        let interval = u32::try_from(self.settings.update_interval.as_secs()).unwrap_or(0);
        let news = before.is_none_or(|told| is_news(&told.anomaly, &anomaly, interval));
        if known.is_none() {
            *self.counts.confirmed.entry(anomaly.threat.name().to_owned()).or_default() += 1;
            self.silent.remove(&id);
        }
        if news {
            outcomes.push(Outcome::Told(Box::new(anomaly.clone())));
            self.told.insert(id, Told { anomaly, own_severity, own_reason });
        } else if let Some(told) = self.told.get_mut(&id) {
            // Whether this was worth telling must not decide what is told at the end.
            (told.anomaly.confidence, told.own_severity) = (anomaly.confidence, own_severity);
            told.own_reason = own_reason;
        }
    }

    /// The anomaly as everyone will see it.
    fn anomaly(&self, case: &Case<'_>, validation: Validation, before: Option<&Told>) -> Anomaly {
        let account = &case.account;
        let confidence = self.calibration.confidence(case);
        let mut degraded: BTreeSet<String> = BTreeSet::new();
        if let Some(told) = before {
            degraded.extend(told.anomaly.degraded.iter().cloned());
        }
        Anomaly {
            anomaly_id: case.incident.id,
            schema: SCHEMA.to_owned(),
            threat: case.threat(),
            status: if case.incident.closed { Status::Closed } else { Status::Open },
            severity: account.severity.unwrap_or(Severity::Low),
            severity_reason: account.severity_reason.clone(),
            confidence: before.map_or(confidence, |told| told.anomaly.confidence.max(confidence)),
            alternatives: account.alternatives().to_vec(),
            actor: case.actor,
            sources: account.sources(),
            targets: case.targets.clone(),
            target_count: account.target_count(),
            first_seen: account.first_seen,
            last_seen: account.last_seen,
            detection_timestamp: before.map_or(account.last_window_end, |told| told.anomaly.detection_timestamp),
            window_seconds: account.window_seconds,
            summary: summary::of(case),
            evidence: told_evidence(case),
            tiers: Tiers {
                statistical: account.methods.clone(),
                ml: account.ml.clone(),
                correlation: BTreeMap::new(),
                validation,
            },
            mitre: mitre::techniques(case, &self.network),
            account_id: account.account.clone(),
            interface_ids: account.interfaces.iter().cloned().collect(),
            related: Vec::new(),
            degraded: degraded.into_iter().collect(),
            updates: case.incident.windows(),
            episode: Some(Episode { subject: case.incident.key.subject, known_from: case.incident.known_from }),
            merged_into: None,
        }
    }

    /// Names the confirmed anomalies of the same story, and raises the severity where the actor did several things. What
    /// was known of the company before stays known, though the others may be closed and forgotten by now.
    fn keep_company<'i>(
        &self,
        anomaly: &mut Anomaly,
        (own, own_reason): (Severity, &str),
        related: impl Iterator<Item = &'i Uuid>,
        before: Option<&Anomaly>,
    ) {
        let mut threats = BTreeSet::from([anomaly.threat]);
        let mut by_threat: BTreeMap<String, u32> = BTreeMap::new();
        let mut ids: BTreeSet<Uuid> = before.into_iter().flat_map(|anomaly| anomaly.related.iter().copied()).collect();
        for id in related {
            let Some(other) = self.told.get(id).filter(|other| !other.is_early()) else { continue };
            ids.insert(*id);
            *by_threat.entry(other.anomaly.threat.name().to_owned()).or_default() += 1;
            if other.anomaly.actor == anomaly.actor && anomaly.actor != Actor::Many {
                threats.insert(other.anomaly.threat);
            }
        }
        for (threat, &count) in before.into_iter().flat_map(|anomaly| &anomaly.tiers.correlation) {
            let known = by_threat.entry(threat.clone()).or_default();
            *known = count.max(*known);
        }
        anomaly.updates += ids.len() as u32;
        anomaly.related = ids.into_iter().collect();
        anomaly.tiers.correlation = by_threat;
        // One actor's several threats are steps of one attack (kill chain): two make it urgent, three leave no doubt.
        let severity = match threats.len() {
            0 | 1 => own,
            2 => own.max(Severity::High),
            _ => Severity::Critical,
        };
        // Which others are known by now hangs on which was heard first; `related` names them in the end.
        let reason = match (severity > own, threats.len()) {
            (true, 2) => format!("{own_reason}; raised, since the same actor is told of another threat too"),
            (true, _) => format!("{own_reason}; raised, since the same actor is told of several other threats too"),
            (false, _) => own_reason.to_owned(),
        };
        (anomaly.severity, anomaly.severity_reason) = match before {
            Some(before) if before.severity > severity => (before.severity, before.severity_reason.clone()),
            _ => (severity, reason),
        };
    }

    /// Tells the relatives of what was just confirmed about it: they may now be worse.
    fn tell_company(&mut self, confirmed: &BTreeSet<Uuid>, outcomes: &mut Vec<Outcome>) {
        let mut relatives: BTreeMap<Uuid, BTreeSet<Uuid>> = BTreeMap::new();
        for id in confirmed {
            for other in self.told.get(id).map_or(&[][..], |told| &told.anomaly.related) {
                relatives.entry(*other).or_default().insert(*id);
            }
        }
        for (id, new) in relatives {
            let Some(told) = self.told.get(&id).filter(|told| !told.is_early()).cloned() else { continue };
            if new.iter().all(|id| told.anomaly.related.contains(id)) {
                continue;
            }
            let mut anomaly = told.anomaly.clone();
            anomaly.updates -= anomaly.related.len() as u32;
            let company: BTreeSet<Uuid> = new.into_iter().chain(told.anomaly.related.iter().copied()).collect();
            let own = (told.own_severity, told.own_reason.as_str());
            self.keep_company(&mut anomaly, own, company.iter(), Some(&told.anomaly));
            outcomes.push(Outcome::Told(Box::new(anomaly.clone())));
            self.told.insert(id, Told { anomaly, ..told });
        }
    }

    /// Closes what was told and would be refused today.
    fn close_quietly(&mut self, incident: &Incident, outcomes: &mut Vec<Outcome>) {
        if let Some(told) = self.told.get_mut(&incident.id)
            && incident.closed
            && told.anomaly.status == Status::Open
        {
            told.anomaly.status = Status::Closed;
            outcomes.push(Outcome::Told(Box::new(told.anomaly.clone())));
        }
    }

    /// Keeps the reason, and hands it out when it is another than before.
    fn keep_silent(&mut self, case: &Case<'_>, refusal: Stage, outcomes: &mut Vec<Outcome>) {
        let id = case.incident.id;
        if !case.incident.is_firm() {
            // When its window has closed, that says why.
            self.silent.entry(id).or_default();
            return;
        }
        if refusal.name == storm::NAME
            && let Some(anomaly) = self.storms.join(case, &refusal)
        {
            outcomes.push(Outcome::Told(Box::new(anomaly)));
        }
        if self.silent.get(&id) == Some(&refusal.name) && !case.incident.closed {
            return;
        }
        if self.silent.insert(id, refusal.name.clone()).is_none_or(|before| before.is_empty()) {
            *self.counts.refused.entry(refusal.name.clone()).or_default() += 1;
        }
        outcomes.push(Outcome::Silent(Silence {
            anomaly_id: id,
            threat: case.threat(),
            actor: case.actor,
            first_seen: case.account.first_seen,
            last_seen: case.account.last_seen,
            stage: refusal.name,
            reason: refusal.reason,
            summary: summary::of(case),
            confidence: self.calibration.confidence(case),
        }));
    }

    /// Learns from an analyst's verdict on an anomaly of a threat.
    pub fn learn(&mut self, threat: Threat, feedback: &Feedback) {
        self.calibration.learn(threat, feedback);
    }

    /// What analysts have taught it.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// Replaces the suppressions that come on top of those of the settings; match counts live on by name.
    pub fn suppress(&mut self, suppressions: Vec<suppression::Suppression>) {
        self.added = suppressions;
        self.unite_suppressions();
    }

    /// Takes other settings into use, for what is judged from here on.
    pub fn set_settings(&mut self, settings: &Settings) {
        self.calibration = self.calibration.clone().with(&settings.calibration);
        self.storms = std::mem::take(&mut self.storms).with(&settings.storm);
        self.settings = settings.clone();
        self.unite_suppressions();
    }

    fn unite_suppressions(&mut self) {
        self.suppressions.replace(self.settings.suppressions.iter().chain(&self.added).cloned().collect());
    }

    /// The suppressions with their match counts.
    pub fn suppressions(&self) -> &Suppressions {
        &self.suppressions
    }

    /// Counts so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether an incident was judged before and is still open.
    pub fn knows(&self, id: Uuid) -> bool {
        self.told.contains_key(&id) || self.silent.contains_key(&id)
    }

    /// Takes note of an anomaly that the store knows from before, so that it goes on under its first timestamp.
    pub fn remember(&mut self, anomaly: &Anomaly) {
        let own_reason = anomaly.severity_reason.clone();
        let mut told = Told { anomaly: anomaly.clone(), own_severity: anomaly.severity, own_reason };
        // Which of two ids goes on is decided where they are told; here its incident is what it is.
        if told.anomaly.merged_into.take().is_some() {
            told.anomaly.status = Status::Open;
        }
        self.told.entry(anomaly.anomaly_id).or_insert(told);
    }

    /// Forgets an incident that is over.
    pub fn forget(&mut self, id: Uuid) {
        self.told.remove(&id);
        self.silent.remove(&id);
    }

    /// The whole state apart from settings.
    pub fn snapshot(&self) -> Vec<u8> {
        self.snapshot_of(|_| true)
    }

    /// What is remembered of some incidents, and all that is about none, to be taken in by [`Judge::take_in`].
    pub fn snapshot_of(&self, wanted: impl Fn(Uuid) -> bool) -> Vec<u8> {
        let snapshot = Snapshot {
            told: self.told.iter().filter(|(id, _)| wanted(**id)).map(|(_, told)| told.clone()).collect(),
            silent: self.silent.iter().filter(|(id, _)| wanted(**id)).map(|(id, s)| (*id, s.clone())).collect(),
            counts: self.counts.clone(),
            storms: self.storms.clone(),
            calibration: self.calibration.feedbacks().clone(),
        };
        serde_json::to_vec(&snapshot).expect("an anomaly holds nothing that JSON cannot write")
    }

    /// A judge that goes on where [`Judge::snapshot`] was taken.
    pub fn restore(bytes: &[u8], settings: &Settings, network: &Network) -> Result<Judge, serde_json::Error> {
        let mut judge = Judge::new(settings, network);
        judge.take_in(bytes)?;
        Ok(judge)
    }

    /// Takes in what a snapshot remembers; where something else is remembered here, what says more stays.
    pub fn take_in(&mut self, bytes: &[u8]) -> Result<(), serde_json::Error> {
        let snapshot: Snapshot = serde_json::from_slice(bytes)?;
        for told in snapshot.told {
            let known = self.told.get(&told.anomaly.anomaly_id);
            if known.is_none_or(|known| known.anomaly.updates < told.anomaly.updates) {
                self.told.insert(told.anomaly.anomaly_id, told);
            }
        }
        for (id, stage) in snapshot.silent.into_iter().filter(|(id, _)| !self.told.contains_key(id)) {
            self.silent.entry(id).or_insert(stage);
        }
        self.counts.join(&snapshot.counts);
        self.storms.take_in(snapshot.storms);
        Ok(())
    }
}

impl Counts {
    /// Takes over counts of which these may be a part.
    fn join(&mut self, other: &Counts) {
        for (mine, theirs) in [(&mut self.confirmed, &other.confirmed), (&mut self.refused, &other.refused)] {
            for (name, &count) in theirs {
                let known = mine.entry(name.clone()).or_default();
                *known = count.max(*known);
            }
        }
    }
}

/// Whether an anomaly says enough more than before to be told again.
fn is_news(before: &Anomaly, now: &Anomaly, interval: u32) -> bool {
    before.status != now.status
        || before.severity != now.severity
        || before.related != now.related
        // Ten times as many targets is another scale of trouble (Slips' log10 rule, without its hiding of repeats).
        || now.target_count / 10 >= before.target_count.max(1)
        || now.last_seen.since(before.last_seen) >= interval.max(1)
}

/// The first stage: at least one number that was held against a threshold, in a span that makes sense.
fn enough_evidence(case: &Case<'_>) -> Stage {
    let judged = case.evidence.iter().filter(|evidence| evidence.threshold.is_some()).count();
    let sane = case.account.first_seen <= case.account.last_seen && case.account.score() > 0.0;
    let reason = format!("{judged} numbers held against thresholds, highest score {:.2}", case.account.score());
    stage("evidence", judged > 0 && sane, reason)
}

/// A stage with what it found.
pub(crate) fn stage(name: &str, passed: bool, reason: String) -> Stage {
    Stage { name: name.to_owned(), passed, reason }
}

/// The incident's numbers, and what correlation knows beside them.
fn told_evidence(case: &Case<'_>) -> Vec<Evidence> {
    let mut evidence = case.evidence.clone();
    let mut told = |name: &'static str, value: f64, unit: &'static str| {
        let tier = Tier::Correlation;
        let (name, unit) = (name.into(), unit.into());
        evidence.push(Evidence {
            tier,
            name,
            value,
            threshold: None,
            bound: None,
            unit,
            merge: crate::finding::Merge::Max,
        });
    };
    told("windows", f64::from(case.incident.windows().max(1)), "windows");
    if case.incident.actors_on_target() > 1 {
        told("actors_on_target", f64::from(case.incident.actors_on_target()), "actors");
    }
    evidence
}

/// The address that an episode is about, for sentences and queries.
pub fn principal(subject: Subject) -> crate::flow::Address {
    match subject {
        Subject::Actor(address) | Subject::Victim(address) | Subject::Pair(address, _) => address,
    }
}

/// Seconds of an event-time span as people say it: `47 s`, `12 min`, `3 h 20 min`, `2 d 4 h`.
pub fn spoken_span(first: EventTime, last: EventTime) -> String {
    let seconds = last.since(first);
    match seconds {
        0..=119 => format!("{} s", seconds.max(1)),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => match seconds % 3600 / 60 {
            0 => format!("{} h", seconds / 3600),
            minutes => format!("{} h {minutes} min", seconds / 3600),
        },
        _ => match seconds % 86_400 / 3600 {
            0 => format!("{} d", seconds / 86_400),
            hours => format!("{} d {hours} h", seconds / 86_400),
        },
    }
}

#[cfg(test)]
mod tests;
