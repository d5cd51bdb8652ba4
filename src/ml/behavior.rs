//! Tier 2 of one shard: what the scorers say of a host's window is joined, told when it is rare enough, and written beside
//! whatever else is found on the host.
//!
//! `top3_z` is ranked among this deployment's own windows; what forest and sequence model say of a window is weighed by what
//! they said of this deployment's others ([`Agreement`]). They are joined as [`super::model::combine`] does: at any rate, what
//! one of them finds at its share of it is found, whatever the others say.
//!
//! # The rate of what is joined
//!
//! That bound holds however the scorers depend on each other, and they look at the same window: what is rare to one is often
//! rare to all, so that the bound uses up only part of its rate, six tenths where all agree. What is promised is the rate of
//! what is joined. So the bound in turn is ranked among the bounds of this deployment's other windows (`Bounds`): a conformal
//! p-value (Vovk et al. 2005), whatever the scorers have in common.
//!
//! - *The lesser of bound and rank counts.* What the bound finds is found: also where a model that was calibrated on this
//!   deployment says rarer things than as many windows could, and where an attack of hours has filled the ranks above it. Each
//!   of the two holds by itself, so that together they are at most twice the rate.
//! - *Where `top3_z` spoke alone* its p-value is such a rank already. It is neither ranked again nor counted: beside bounds
//!   that use up part of their rate it would pass for rarer than it is.
//! - *One rank for all.* `top3_z` is ranked by itself among young hosts and among grown ones, and has its share whatever the
//!   model. So where windows are like those before, the bounds of either kind of host, or of one model and the next, use up
//!   between six tenths of their rate and all of it, and held against each other are as rare as it is said to within 10/6. Ranks
//!   of their own, or ranks that began anew with each model, could say nothing rare for as many windows again.
//! - *Steps.* Bounds are counted in twentieths of a decade, and what falls into the same step counts as as far out, so that a
//!   rank is too large by a sixteenth on average, and by an eighth at most.

use std::collections::VecDeque;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::agreement::Agreement;
use super::bounds::Bounds;
use super::features::WINDOW_SECONDS;
use super::local::{self, Pager, TopThree, contribution};
use super::model::{Judge, Part, combine};
use super::{FeatureVector, Score};
use crate::finding::{Actor, Finding, MlContribution, Subject};
use crate::flow::{Address, EventTime};

/// How old a host's score may be to stand beside a finding, s.
const CONTEXT_SECONDS: u32 = 3600;

/// Tier 2 of one shard, with all that it remembers.
#[derive(Clone, Debug)]
pub struct Behavior {
    scorer: TopThree,
    pager: Pager,
    judge: Judge,
    agreement: Agreement,
    /// Windows of which more than one scorer spoke, by what joins their p-values.
    bounds: Bounds,
    said: Said,
}

/// What was last said of each host, for an hour.
#[derive(Clone, Debug, Default)]
struct Said {
    latest: HashMap<Address, MlContribution, FixedState>,
    /// Hosts by window, so that what is old can be forgotten without a search.
    order: VecDeque<(EventTime, Address)>,
}

/// The memory as it is stored, but for the bounds, which stand behind it: a snapshot that ends here goes on without any.
#[derive(Serialize, Deserialize)]
struct Stored {
    scorer: TopThree,
    pager: Pager,
    judge: Vec<u8>,
    agreement: Agreement,
    said: Vec<MlContribution>,
}

impl Behavior {
    /// Nothing heard yet; the models remember at most so many hosts.
    pub fn new(hosts_max: usize) -> Behavior {
        let (scorer, pager) = (TopThree::new(hosts_max), Pager::default());
        let (judge, agreement) = (Judge::new(hosts_max), Agreement::default());
        Behavior { scorer, pager, judge, agreement, bounds: Bounds::default(), said: Said::default() }
    }

    /// What the models remember of hosts, to be scored with.
    pub fn judge(&mut self) -> &mut Judge {
        &mut self.judge
    }

    /// Hears closed windows in their order with what the models said of them (or not, where they could not be asked), adds
    /// what is worth a finding, and writes the host's latest score beside each of `findings`. How many windows alerted.
    pub fn hear(
        &mut self,
        vectors: &[FeatureVector],
        models: Option<&[Score]>,
        findings: &mut Vec<Finding>,
        settings: &local::Settings,
    ) -> Vec<bool> {
        let mut own = Vec::new();
        let mut alerts = Vec::with_capacity(vectors.len());
        findings.sort_by_key(end);
        let mut beside = findings.iter_mut().peekable();
        let mut models = models.map(<[Score]>::iter);
        for vector in vectors {
            // A window's score is no context of what was found before it closed.
            let closed = vector.window.plus(WINDOW_SECONDS);
            while let Some(finding) = beside.next_if(|finding| end(finding) < closed) {
                self.said.stand_beside(finding);
            }
            let score = self.weigh(vector, models.as_mut().and_then(Iterator::next), settings.warm_up);
            alerts.push(score.p_value.is_some_and(|p| p <= settings.p_value));
            if score.p_value.is_some() {
                self.said.note(contribution(vector, &score));
            }
            own.extend(self.pager.hear(vector, &score, settings));
        }
        beside.for_each(|finding| self.said.stand_beside(finding));
        findings.append(&mut own);
        alerts
    }

    /// What a window is worth here: the rank of `top3_z`, joined with what the models said of it, where they were asked. Windows
    /// come in their order, each once.
    pub(super) fn weigh(&mut self, vector: &FeatureVector, model: Option<&Score>, warm_up: u32) -> Score {
        let top = self.scorer.score(vector, warm_up);
        let Some(model) = model else { return top };
        let mut model = model.clone();
        let class = self.judge.class(vector.host);
        model.p_values = self.agreement.weigh(&model, class);
        let mut score = joined(top, model);
        if score.p_values.iter().flatten().count() > 1 {
            score.p_value = score.p_value.map(|bound| self.bounds.weigh(vector.window, bound));
        }
        score
    }

    /// Takes over what is remembered of another shard, which this one continues as well.
    pub fn join(&mut self, other: Behavior) {
        self.scorer.join(&other.scorer);
        self.pager.join(other.pager);
        self.judge.join(other.judge);
        self.agreement.join(other.agreement);
        self.bounds.join(other.bounds);
        let mut said = self.said.stored();
        said.extend(other.said.stored());
        said.sort_by_key(|contribution| (contribution.window, contribution.host));
        self.said = Said::default();
        said.into_iter().for_each(|contribution| self.said.note(contribution));
    }

    /// All that is remembered, for [`Behavior::restore`].
    pub fn snapshot(&self) -> Vec<u8> {
        let stored = Stored {
            scorer: self.scorer.clone(),
            pager: self.pager.clone(),
            judge: self.judge.snapshot(),
            agreement: self.agreement.clone(),
            said: self.said.stored(),
        };
        postcard::to_allocvec(&(stored, &self.bounds)).expect("plain data can always be written")
    }

    /// Goes on where the snapshot was taken; `None` when the bytes are not one.
    pub fn restore(bytes: &[u8], hosts_max: usize) -> Option<Behavior> {
        let (stored, rest) = postcard::take_from_bytes::<Stored>(bytes).ok()?;
        let bounds = if rest.is_empty() { Bounds::default() } else { postcard::from_bytes(rest).ok()? };
        let Stored { scorer, pager, judge, agreement, said } = stored;
        if !agreement.is_sound() || !scorer.is_sound() || !bounds.is_sound() {
            return None;
        }
        let judge = Judge::restore(&judge, hosts_max)?;
        let mut behavior = Behavior { scorer, pager, judge, agreement, bounds, said: Said::default() };
        said.into_iter().for_each(|contribution| behavior.said.note(contribution));
        Some(behavior)
    }
}

/// Joins the rank of `top3_z` in this deployment with what the models said of the same window.
fn joined(top: Score, model: Score) -> Score {
    let p_values = [top.p_values[0], model.p_values[1], model.p_values[2]];
    if p_values.iter().all(Option::is_none) {
        return top;
    }
    let mut attributions = model.attributions;
    attributions[Part::Top3Z as usize] = top.attributions.into_iter().next().unwrap_or_default();
    Score { p_value: combine(p_values), p_values, attributions, ..model }
}

impl Said {
    fn note(&mut self, contribution: MlContribution) {
        let (host, window) = (contribution.host, contribution.window);
        self.order.push_back((window, host));
        self.latest.insert(host, contribution);
        let from = window.minus(CONTEXT_SECONDS);
        while let Some((old, host)) = self.order.pop_front_if(|(old, _)| *old < from) {
            if self.latest.get(&host).is_some_and(|latest| latest.window <= old) {
                self.latest.remove(&host);
            }
        }
    }

    /// Writes what was last said of the host that a finding is about, its actor before its victim.
    fn stand_beside(&self, finding: &mut Finding) {
        let actor = match finding.actor {
            Actor::One(address) => Some(address),
            Actor::Many => None,
        };
        let subject = match finding.subject {
            Subject::Actor(address) | Subject::Victim(address) | Subject::Pair(address, _) => address,
        };
        let mut latest = actor.into_iter().chain([subject]).filter_map(|address| self.latest.get(&address));
        let fresh = end(finding).minus(CONTEXT_SECONDS);
        finding.ml = latest.find(|latest| latest.window >= fresh).cloned();
    }

    fn stored(&self) -> Vec<MlContribution> {
        let current = |(window, host): &(EventTime, Address)| {
            self.latest.get(host).filter(|latest| latest.window == *window).cloned()
        };
        self.order.iter().filter_map(current).collect()
    }
}

/// When the window of a finding ends.
fn end(finding: &Finding) -> EventTime {
    finding.window.plus(finding.window_seconds)
}

#[cfg(test)]
mod tests;
