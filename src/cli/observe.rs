//! What is looked at from time to time and not when it happens: how long parts are away, what calls to AWS come to, what
//! analysts have said; and the lines for CloudWatch.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use uuid::Uuid;

use crate::aws::calls;
use crate::flow::EventTime;
use crate::health::Health;
use crate::publish::{AnomalyStore, Verdict};
use crate::telemetry::{self, Metrics, emf};
use crate::wait::positive;

/// How often the service is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How often analysts' verdicts are counted.
const VERDICTS: Duration = Duration::from_secs(10);

/// Verdicts that are older do not count.
const VERDICTS_SPAN: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Looks until the process ends.
pub(super) async fn run(
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    store: Arc<dyn AnomalyStore>,
    emf: Option<emf::Settings>,
) {
    let mut observer = Observer { health, metrics, calls: BTreeMap::new(), away: BTreeMap::new() };
    let mut emf = emf.map(|settings| (positive(settings.interval).max(LOOK), emf::Emf::new(&settings)));
    let (mut looked, mut judged, mut told) = (Instant::now(), None::<Instant>, Instant::now());
    loop {
        tokio::time::sleep(LOOK).await;
        observer.look(looked.elapsed());
        looked = Instant::now();
        if judged.is_none_or(|at| at.elapsed() >= VERDICTS) {
            observer.judge(store.as_ref()).await;
            judged = Some(Instant::now());
        }
        if let Some((every, emf)) = &mut emf
            && told.elapsed() >= *every
        {
            told = Instant::now();
            let mut out = std::io::stdout().lock();
            for line in emf.lines(&observer.metrics, Timestamp::now()) {
                // Nobody reads any more: the service goes on.
                let _ = writeln!(out, "{line}");
            }
        }
    }
}

struct Observer {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    /// What was counted of calls the last time.
    calls: BTreeMap<(String, calls::Outcome), calls::Count>,
    /// Milliseconds of a part's absence that are not counted as seconds yet.
    away: BTreeMap<String, u128>,
}

impl Observer {
    fn look(&mut self, since: Duration) {
        let degraded = self.health.degraded();
        for part in &degraded {
            let left = self.away.entry(part.clone()).or_default();
            *left += since.as_millis();
            self.metrics.add(&telemetry::DEGRADED_SECONDS, &[part], (*left / 1000) as u64);
            *left %= 1000;
        }
        for part in self.away.keys() {
            self.metrics.set(&telemetry::DEGRADED, &[part], i64::from(degraded.contains(part)));
        }
        let now = calls::counts();
        for ((service, outcome), count) in &now {
            let before = self.calls.get(&(service.clone(), *outcome)).copied().unwrap_or_default();
            let (attempts, repeated) = (count.attempts - before.attempts, count.repeated - before.repeated);
            self.metrics.add(&telemetry::AWS_CALLS, &[service, outcome.name()], attempts);
            self.metrics.add(&telemetry::AWS_REPEATED, &[service], repeated);
            if *outcome == calls::Outcome::Throttled {
                self.metrics.add(&telemetry::AWS_THROTTLED, &[service], attempts);
            }
        }
        self.calls = now;
    }

    /// The share of anomalies that were called false, of those on which somebody has spoken; the last word counts.
    async fn judge(&self, store: &dyn AnomalyStore) {
        let since = Timestamp::now().as_second() - VERDICTS_SPAN.as_secs();
        let since = EventTime(u32::try_from(since).unwrap_or(0));
        let Ok(feedbacks) = store.feedbacks(since).await else { return };
        let mut last: BTreeMap<Uuid, (EventTime, Verdict)> = BTreeMap::new();
        for feedback in feedbacks {
            let known = last.entry(feedback.anomaly_id).or_insert((feedback.at, feedback.verdict));
            if feedback.at >= known.0 {
                *known = (feedback.at, feedback.verdict);
            }
        }
        let wrong = last.values().filter(|(_, verdict)| *verdict == Verdict::FalsePositive).count();
        if !last.is_empty() {
            self.metrics.set_share(&telemetry::FALSE_POSITIVE_RATE, &[], wrong as f64 / last.len() as f64);
        }
    }
}
