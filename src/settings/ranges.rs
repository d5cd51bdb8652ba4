//! Which numbers and durations make sense, for every key.
//!
//! A number that is well-formed and means nothing (a share of 3, a window of no length, a threshold that is no number) is found
//! before anything begins: whoever reads settings reads them through here, so that `config check` and `run` refuse the
//! same. What is not listed must be a finite number, and not negative.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use toml::Value;

/// What values a key may have.
#[derive(Clone, Copy, Debug)]
enum Range {
    /// Whole numbers, both ends included.
    Count(i64, i64),
    /// Numbers, both ends included.
    Number(f64, f64),
    /// Numbers above the first, up to the second.
    Above(f64, f64),
    /// Durations in ms, both ends included.
    Time(i64, i64),
}

use Range::{Above, Count, Number, Time};

const SECOND: i64 = 1_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;
const YEARS: i64 = 3_660 * DAY;
/// A share or probability.
const SHARE: Range = Number(0.0, 1.0);
/// At least one of something.
const SOME: Range = Count(1, 1_000_000_000);
/// Deadlines and pauses.
const WAIT: Range = Time(1, DAY);
/// A threshold that is a rate, a size or a number of deviations.
const RATE: Range = Above(0.0, 1e12);

/// The ranges, by key; a key that ends in `.*` stands for all below it. The first that fits counts.
const RANGES: &[(&str, Range)] = &[
    ("statistical.window", Time(SECOND, HOUR)),
    ("statistical.lateness", Time(0, DAY)),
    ("statistical.tables.*", SOME),
    ("statistical.intel.reload", Time(SECOND, YEARS)),
    ("statistical.port_scan.success_max", SHARE),
    ("statistical.port_scan.client_repeats", Number(1.0, 1e6)),
    ("statistical.port_scan.joint_repeats", Number(1.0, 1e6)),
    ("statistical.port_scan.span", Time(SECOND, 7 * DAY)),
    ("statistical.port_scan.outside_span", Time(SECOND, 7 * DAY)),
    ("statistical.port_scan.joint_span", Time(SECOND, 7 * DAY)),
    ("statistical.port_scan.sweep_span", Time(SECOND, 7 * DAY)),
    ("statistical.port_scan.sweep_watch", Time(0, YEARS)),
    ("statistical.port_scan.sweep_hold", Time(0, YEARS)),
    ("statistical.port_scan.*", SOME),
    ("statistical.ddos.share", SHARE),
    ("statistical.ddos.syn_packets_per_second", RATE),
    ("statistical.ddos.udp_packets_per_second", RATE),
    ("statistical.ddos.our_udp_packets_per_second", RATE),
    ("statistical.ddos.icmp_packets_per_second", RATE),
    ("statistical.ddos.reflected_bytes", Count(1, i64::MAX)),
    ("statistical.ddos.*", SOME),
    ("statistical.c2_beacon.timing_nats", Above(0.0, 1e4)),
    ("statistical.c2_beacon.bursts_min", Count(2, 1_000_000)),
    ("statistical.c2_beacon.size_calls", Count(2, 1_000_000)),
    ("statistical.c2_beacon.regular", SHARE),
    ("statistical.c2_beacon.same_exchange", SHARE),
    ("statistical.c2_beacon.size_dispersion", SHARE),
    ("statistical.c2_beacon.rare_dispersion", SHARE),
    ("statistical.c2_beacon.wilful_jitter", SHARE),
    ("statistical.c2_beacon.prevalence_max", SHARE),
    ("statistical.c2_beacon.rare_watch", Time(0, YEARS)),
    ("statistical.c2_beacon.failing_span", Time(SECOND, 7 * DAY)),
    ("statistical.c2_beacon.long_span", Time(SECOND, 7 * DAY)),
    ("statistical.c2_beacon.long_rate", RATE),
    ("statistical.c2_beacon.payload_max", SOME),
    ("statistical.c2_beacon.failing_min", SOME),
    ("statistical.c2_beacon.peers", SOME),
    ("statistical.c2_beacon.fleet", SOME),
    ("statistical.c2_beacon.peers_tried", SOME),
    ("statistical.channel.watched", Time(0, YEARS)),
    ("statistical.channel.contacts", Count(1, 65)),
    ("statistical.channel.clients", Number(1.0, 1e6)),
    ("statistical.channel.timing_nats", Above(0.0, 1e4)),
    ("statistical.channel.session", Time(SECOND, 7 * DAY)),
    ("statistical.channel.span", Time(0, 7 * DAY)),
    ("statistical.channel.prior_against", Number(0.0, 100.0)),
    ("statistical.channel.unwatched_against", Number(0.0, 100.0)),
    ("statistical.channel.evidence_max", Number(0.0, 100.0)),
    ("statistical.channel.*", SOME),
    ("statistical.crypto_mining.age", Time(SECOND, 7 * DAY)),
    ("statistical.crypto_mining.age_hinted", Time(SECOND, 7 * DAY)),
    ("statistical.crypto_mining.steadiness", SHARE),
    ("statistical.crypto_mining.steadiness_hinted", SHARE),
    ("statistical.crypto_mining.rate_max", RATE),
    ("statistical.crypto_mining.message_max", RATE),
    ("statistical.crypto_mining.balance_max", RATE),
    ("statistical.crypto_mining.sent_max", RATE),
    ("statistical.tor.span", Time(SECOND, 7 * DAY)),
    ("statistical.tor.*", SOME),
    ("statistical.brute_force.span", Time(SECOND, 7 * DAY)),
    ("statistical.brute_force.slow_span", Time(SECOND, 7 * DAY)),
    ("statistical.brute_force.joint_span", Time(SECOND, 7 * DAY)),
    ("statistical.brute_force.slow_pace", RATE),
    ("statistical.brute_force.alike", SHARE),
    ("statistical.brute_force.each", Number(1.0, 1e6)),
    ("statistical.brute_force.joint_times", Number(1.0, 1e6)),
    ("statistical.brute_force.*", Count(2, 512)),
    ("statistical.exfiltration.watched", Time(0, YEARS)),
    ("statistical.exfiltration.bytes", Count(1, i64::MAX)),
    ("statistical.exfiltration.bytes_without_past", Count(1, i64::MAX)),
    ("statistical.exfiltration.times_past", Number(1.0, 1e6)),
    ("statistical.exfiltration.times_place", Number(1.0, 1e9)),
    ("statistical.exfiltration.one_sided", Number(1.0, 1e6)),
    ("statistical.exfiltration.clients", Number(1.0, 1e6)),
    ("statistical.exfiltration.places", Count(1, 32)),
    ("ingest.chunk_bytes", Count(1_024, 1 << 30)),
    ("ingest.payload_bytes_max", Count(1_024, 1 << 40)),
    ("ingest.interfaces_max", SOME),
    ("ingest.local.poll_interval", WAIT),
    ("ingest.kinesis.leases_max", SOME),
    ("ingest.kinesis.steal_max", SOME),
    ("ingest.kinesis.records_max", Count(1, 10_000)),
    ("ingest.kinesis.read_pause", Time(0, DAY)),
    ("ingest.kinesis.bytes_per_second", SOME),
    ("ingest.kinesis.*", WAIT),
    ("ingest.snapshot.s3.timeout", WAIT),
    ("correlation.incidents_max", SOME),
    ("correlation.story", Time(SECOND, YEARS)),
    ("correlation.episode_gap.*", Time(SECOND, 30 * DAY)),
    ("correlation.redis.ttl", Time(SECOND, YEARS)),
    ("correlation.redis.timeout", WAIT),
    ("validation.update_interval", Time(0, YEARS)),
    ("validation.corroboration.windows", SOME),
    ("validation.corroboration.alone.*", SHARE),
    ("validation.calibration.threshold.*", SHARE),
    ("validation.calibration.intercept.*", Number(-20.0, 20.0)),
    ("validation.calibration.slope.*", Above(0.0, 100.0)),
    ("validation.calibration.per_doubling_of_windows", Number(0.0, 20.0)),
    ("validation.calibration.per_method", Number(0.0, 20.0)),
    ("validation.calibration.per_list", Number(0.0, 20.0)),
    ("validation.calibration.verdicts_min", SOME),
    ("validation.calibration.verdicts_shift_max", Number(0.0, 3.0)),
    ("validation.storm.anomalies_max", SOME),
    ("validation.storm.window", Time(SECOND, DAY)),
    ("ml.behavior.p_value", Above(0.0, 0.5)),
    ("ml.behavior.top3_z", Number(0.0, 1e6)),
    ("ml.behavior.unforeseen", Number(0.0, 1e6)),
    ("ml.behavior.warm_up", SOME),
    ("ml.behavior.windows", Count(1, 3)),
    ("ml.behavior.again", Time(0, YEARS)),
    ("ml.model.reload", Time(SECOND, YEARS)),
    ("ml.model.hosts_max", SOME),
    ("ml.drift.check_every", Time(SECOND, YEARS)),
    ("ml.drift.windows", SOME),
    ("ml.drift.stability_index", Above(0.0, 1e6)),
    ("ml.drift.features", SHARE),
    ("ml.drift.alert_ratio", Number(1.0, 1e6)),
    ("ml.drift.score", Above(0.0, 1e6)),
    ("ml.drift.*", Time(0, YEARS)),
    ("ml.canary.excess", SHARE),
    ("ml.canary.spearman", Number(-1.0, 1.0)),
    ("ml.canary.kappa", Number(-1.0, 1.0)),
    ("ml.canary.latency_ratio", Above(0.0, 1e6)),
    ("ml.canary.errors", SHARE),
    ("ml.canary.alert_ratio_roll_back", Number(1.0, 1e6)),
    ("ml.sagemaker.breaker.failure_rate", Above(0.0, 1.0)),
    ("ml.sagemaker.breaker.slow_rate", Above(0.0, 1.0)),
    ("ml.sagemaker.breaker.calls_min", SOME),
    ("ml.sagemaker.breaker.*", WAIT),
    ("ml.sagemaker.deadline", WAIT),
    ("ml.sagemaker.request_windows", Count(1, 2_000)),
    ("ml.sagemaker.concurrency", Count(1, 10_000)),
    ("publish.dynamodb.retention", Time(HOUR, YEARS)),
    ("publish.dynamodb.timeout", WAIT),
    ("publish.sqlite.readers", Count(1, 64)),
    ("publish.sqlite.read_timeout", WAIT),
    ("publish.eventbridge.entries_max", Count(1, 10)),
    ("publish.eventbridge.bytes_max", Count(1_024, 1 << 20)),
    ("publish.eventbridge.attempts", Count(1, 100)),
    ("publish.eventbridge.*", WAIT),
    ("publish.dead_letter.sweep_max", SOME),
    ("publish.dead_letter.sweep_every", WAIT),
    ("publish.dead_letter.hidden", Time(SECOND, DAY / 2)),
    ("publish.dead_letter.timeout", WAIT),
    ("pipeline.sweep_every", Time(0, YEARS)),
    ("pipeline.idle_after", Time(1, YEARS)),
    ("pipeline.clock_gap_max", Time(0, YEARS)),
    ("pipeline.shard_wait", Time(0, DAY)),
    ("pipeline.grace", Time(0, DAY)),
    ("pipeline.snapshot_interval", Time(1, YEARS)),
    ("pipeline.records_waiting", Count(1, 1_000_000)),
    ("pipeline.findings_waiting", Count(1, 1_000_000)),
    ("pipeline.*", WAIT),
    ("api.request_timeout", Time(10, HOUR)),
    ("api.header_timeout", Time(10, HOUR)),
    ("api.body_timeout", Time(10, HOUR)),
    ("api.idle_timeout", Time(10, HOUR)),
    ("api.connections_max", Count(1, 1_000_000)),
    ("api.connections_by_address_max", Count(1, 1_000_000)),
    ("api.body_max", Count(1, 64 << 20)),
    ("api.page_max", Count(1, 1_000)),
    ("api.oidc.refresh", Time(1_000, 24 * HOUR)),
    ("api.oidc.timeout", Time(10, HOUR)),
    ("api.streams_max", Count(0, 10_000)),
    ("api.cache", Time(0, HOUR)),
    ("api.hsts", Time(0, YEARS)),
    ("api.rate_limit.burst", Number(1.0, 1e12)),
    ("api.rate_limit.failures_burst", Number(1.0, 1e12)),
    ("api.suppressions.life_max", Time(60 * SECOND, YEARS)),
    ("api.suppressions.share_max", Above(0.0, 1.0)),
    ("api.cloud_map.timeout", WAIT),
    ("telemetry.emf.interval", WAIT),
    ("telemetry.otlp.sample", SHARE),
    ("telemetry.otlp.timeout", WAIT),
    ("settings.ssm.interval", WAIT),
    ("settings.ssm.timeout", WAIT),
];

/// What is out of range, by key.
pub(super) fn check(
    values: &BTreeMap<String, Value>,
    defaults: impl Fn(&str) -> Option<Value>,
) -> Vec<(String, String)> {
    values.iter().filter_map(|(key, value)| Some((key.clone(), refusal(key, value, defaults(key).as_ref())?))).collect()
}

fn refusal(key: &str, value: &Value, default: Option<&Value>) -> Option<String> {
    let listed = RANGES.iter().find(|(known, _)| fits(known, key)).map(|(_, range)| *range);
    match value {
        Value::Integer(number) => {
            let (least, most) = match listed {
                Some(Count(least, most)) => (least, most),
                // Where a number with a fraction is meant, a whole one does as well.
                Some(Number(..) | Above(..)) => return number_refusal(*number as f64, listed),
                _ => (0, i64::MAX),
            };
            let holds = (least..=most).contains(number);
            (!holds).then(|| format!("{number} is not in range: {}", between(least, most, i64::MAX)))
        }
        Value::Float(number) => number_refusal(*number, listed),
        Value::String(text) => {
            // Only what is a duration by default is one.
            let is_time = |value: &Value| value.as_str().is_some_and(|text| text.parse::<SignedDuration>().is_ok());
            let duration = default.is_some_and(is_time).then(|| text.parse::<SignedDuration>().ok())??;
            let (least, most) = match listed {
                Some(Time(least, most)) => (least, most),
                _ => (0, i64::MAX),
            };
            let holds = duration >= SignedDuration::from_millis(least) && duration <= SignedDuration::from_millis(most);
            let spoken = |ms| format!("{:#}", SignedDuration::from_millis(ms));
            (!holds).then(|| match most {
                i64::MAX => format!("{text} is not in range: {} or more", spoken(least)),
                _ => format!("{text} is not in range: {} to {}", spoken(least), spoken(most)),
            })
        }
        _ => None,
    }
}

fn number_refusal(number: f64, listed: Option<Range>) -> Option<String> {
    let (holds, range) = match listed {
        Some(Number(least, most)) => ((least..=most).contains(&number), format!("{least} to {most}")),
        Some(Above(bound, most)) => (number > bound && number <= most, format!("above {bound}, to {most}")),
        Some(Count(least, most)) => ((least as f64..=most as f64).contains(&number), between(least, most, i64::MAX)),
        _ => (number.is_finite() && number >= 0.0, "0 or more".to_owned()),
    };
    (!holds).then(|| format!("{number} is not in range: {range}"))
}

fn between(least: i64, most: i64, unbounded: i64) -> String {
    if most == unbounded { format!("{least} or more") } else { format!("{least} to {most}") }
}

fn fits(known: &str, key: &str) -> bool {
    match known.strip_suffix(".*") {
        Some(table) => key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.')),
        None => known == key,
    }
}
