//! Metrics as lines in the Embedded Metric Format, from which CloudWatch makes metrics wherever the log arrives.
//!
//! The same table and the same counts as `/metrics`: an entry of [`TABLE`] with a CloudWatch name is written once in every
//! interval and for every set of its labels. Counters are written as what was added since the last time, distributions as
//! CloudWatch's values with counts, so that percentiles can be had of them.
//!
//! Format: "Embedded metric format specification", Amazon CloudWatch User Guide.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use prometheus::proto::{Histogram, MetricFamily};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{CloudWatch, Kind, Metrics, TABLE};

/// Settings `[telemetry.emf]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How often lines are written to standard output.
    pub interval: SignedDuration,
    /// The value of the dimension `Service`.
    pub service: String,
}

/// What was written the last time.
#[derive(Debug)]
pub struct Emf {
    service: String,
    counters: HashMap<String, f64>,
    histograms: HashMap<String, (Vec<u64>, f64)>,
}

impl Emf {
    /// Nothing was written yet.
    pub fn new(settings: &Settings) -> Emf {
        Emf { service: settings.service.clone(), counters: HashMap::new(), histograms: HashMap::new() }
    }

    /// A line for every set of labels of every metric that CloudWatch is told.
    pub fn lines(&mut self, metrics: &Metrics, now: Timestamp) -> Vec<String> {
        let families: HashMap<String, MetricFamily> =
            metrics.registry.gather().into_iter().map(|family| (family.name().to_owned(), family)).collect();
        let mut lines = Vec::new();
        for metric in TABLE {
            let (Some(told), Some(family)) = (&metric.cloudwatch, families.get(metric.name)) else { continue };
            for sample in family.get_metric() {
                let labels: Vec<(String, String)> =
                    sample.get_label().iter().map(|l| (l.name().to_owned(), l.value().to_owned())).collect();
                if told.only.is_some_and(|(name, value)| !labels.iter().any(|(n, v)| n == name && v == value)) {
                    continue;
                }
                let key = format!("{}{labels:?}", metric.name);
                let value = match metric.kind {
                    Kind::Counter => self.added(key, sample.get_counter().get_value()),
                    Kind::Gauge => json!(sample.get_gauge().get_value()),
                    Kind::Histogram => match self.spread(key, sample.get_histogram(), told.scale) {
                        Some(value) => value,
                        None => continue,
                    },
                };
                lines.push(self.line(told, &labels, value, now));
            }
        }
        lines
    }

    fn added(&mut self, key: String, now: f64) -> Value {
        let before = self.counters.insert(key, now).unwrap_or(0.0);
        json!(now - before)
    }

    /// What a distribution has gained, each bucket by its middle; nothing where nothing was gained.
    fn spread(&mut self, key: String, now: &Histogram, scale: f64) -> Option<Value> {
        let buckets: Vec<u64> = now.get_bucket().iter().map(|b| b.cumulative_count()).collect();
        let (count, sum) = (now.get_sample_count(), now.get_sample_sum());
        let before = self.histograms.insert(key, ([buckets.clone(), vec![count]].concat(), sum));
        let (before, sum_before) = before.unwrap_or_else(|| (vec![0; buckets.len() + 1], 0.0));
        let (mut values, mut counts, mut lower, mut seen) = (Vec::new(), Vec::new(), 0.0, 0);
        for (index, bucket) in now.get_bucket().iter().enumerate() {
            let upper = bucket.upper_bound();
            let below = bucket.cumulative_count() - before[index];
            if below > seen {
                values.push((lower + upper) / 2.0 * scale);
                counts.push(below - seen);
            }
            (lower, seen) = (upper, below);
        }
        let gained = count - before.last().copied().unwrap_or(0);
        if gained > seen {
            values.push(lower * scale);
            counts.push(gained - seen);
        }
        let (least, most) = (values.first().copied()?, values.last().copied()?);
        let sum = (sum - sum_before) * scale;
        Some(json!({"Values": values, "Counts": counts, "Min": least, "Max": most, "Count": gained, "Sum": sum}))
    }

    fn line(&self, told: &CloudWatch, labels: &[(String, String)], value: Value, now: Timestamp) -> String {
        let named: Vec<&str> = std::iter::once("Service").chain(labels.iter().map(|(name, _)| name.as_str())).collect();
        let mut dimensions = vec![vec!["Service"]];
        if named.len() > 1 {
            dimensions.push(named);
        }
        let metrics = json!([{"Name": told.name, "Unit": told.unit}]);
        let directive = json!({"Namespace": told.namespace, "Dimensions": dimensions, "Metrics": metrics});
        let mut line = Map::new();
        line.insert("_aws".to_owned(), json!({"Timestamp": now.as_millisecond(), "CloudWatchMetrics": [directive]}));
        line.insert("Service".to_owned(), json!(self.service));
        for (name, value) in labels {
            line.insert(name.clone(), json!(value));
        }
        line.insert(told.name.to_owned(), value);
        Value::Object(line).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ANOMALIES, PROCESSING, QUEUE_DEPTH};
    use super::*;

    fn lines(emf: &mut Emf, metrics: &Metrics) -> Vec<Value> {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        emf.lines(metrics, now).iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn emf() -> Emf {
        Emf::new(&Settings { interval: SignedDuration::from_secs(60), service: "flowvigil".to_owned() })
    }

    #[test]
    fn counters_are_told_as_what_was_added_and_updates_are_no_detections() {
        let (metrics, mut emf) = (Metrics::new(), emf());
        metrics.add(&ANOMALIES, &["tor", "detected"], 3);
        metrics.add(&ANOMALIES, &["tor", "updated"], 9);
        let first = lines(&mut emf, &metrics);
        assert_eq!(first.len(), 1, "{first:#?}");
        assert_eq!(first[0]["AnomaliesDetected"], 3.0);
        let directive = &first[0]["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(directive["Namespace"], "AnomalyDetection/Service");
        assert_eq!(directive["Dimensions"][1], json!(["Service", "announcement", "threat"]));
        assert_eq!(
            (&first[0]["threat"], &first[0]["_aws"]["Timestamp"]),
            (&json!("tor"), &json!(1_700_000_000_000_i64))
        );
        metrics.add(&ANOMALIES, &["tor", "detected"], 2);
        assert_eq!(lines(&mut emf, &metrics)[0]["AnomaliesDetected"], 2.0);
    }

    #[test]
    fn a_distribution_is_told_once_as_values_with_counts_in_its_unit() {
        let (metrics, mut emf) = (Metrics::new(), emf());
        for seconds in [0.003, 0.004, 400.0] {
            metrics.observe(&PROCESSING, &["shard-0"], seconds);
        }
        let told = lines(&mut emf, &metrics);
        let latency = &told[0]["ProcessingLatency"];
        assert_eq!((&latency["Counts"], &latency["Count"]), (&json!([2, 1]), &json!(3)));
        assert_eq!(latency["Values"], json!([3.75, 300_000.0]));
        assert_eq!(told[0]["_aws"]["CloudWatchMetrics"][0]["Metrics"][0]["Unit"], "Milliseconds");
        assert!(lines(&mut emf, &metrics).is_empty(), "nothing was added, nothing is told");
    }

    #[test]
    fn the_depth_of_queues_has_a_namespace_of_its_own() {
        let (metrics, mut emf) = (Metrics::new(), emf());
        metrics.set(&QUEUE_DEPTH, &["delivery"], 7);
        let told = lines(&mut emf, &metrics);
        assert_eq!(told[0]["_aws"]["CloudWatchMetrics"][0]["Namespace"], "AnomalyDetection/Processing");
        assert_eq!(told[0]["QueueDepth"], 7.0);
    }
}
