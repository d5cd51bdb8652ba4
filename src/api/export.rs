//! An anomaly in the forms that other systems take: a Detection Finding of OCSF, and a finding of AWS Security Hub (ASFF).
//!
//! | | OCSF | ASFF |
//! | --- | --- | --- |
//! | id | `finding_info.uid` | `Id` |
//! | severity | `severity_id` 2 to 5 | `Severity.Label` |
//! | confidence | `confidence_score`, in hundredths | `Confidence`, in hundredths |
//! | status | `activity_id`, `status_id` | `RecordState` |
//! | evidence | `evidences[].data` | `ProductFields` |
//!
//! The classes are those of OCSF 1.5 (`detection_finding`, 2004) and of the AWS Security Finding Format of 2018-10-08.

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::problem::Problem;
use crate::anomaly::{Anomaly, Status};
use crate::finding::{Actor, Evidence, Severity, Threat};
use crate::flow::{Address, EventTime};
use crate::validation::mitre;

/// In which form an anomaly is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ExportFormat)]
pub enum Format {
    /// Its own.
    #[default]
    Flowvigil,
    /// A Detection Finding of the Open Cybersecurity Schema Framework.
    Ocsf,
    /// A finding of AWS Security Hub.
    Asff,
}

/// Pairs of addresses that an export names at most.
const PAIRS_MAX: usize = 32;

/// A Detection Finding of OCSF.
pub(super) fn ocsf(anomaly: &Anomaly) -> Value {
    let (severity_id, severity) = match anomaly.severity {
        Severity::Low => (2, "Low"),
        Severity::Medium => (3, "Medium"),
        Severity::High => (4, "High"),
        Severity::Critical => (5, "Critical"),
    };
    let (activity_id, activity) = match (anomaly.status, anomaly.updates) {
        (Status::Closed, _) => (3, "Close"),
        (Status::Open, 0 | 1) => (1, "Create"),
        (Status::Open, _) => (2, "Update"),
    };
    // It was not reviewed: an episode that is over is archived, and not resolved.
    let (status_id, status) = if anomaly.status == Status::Open { (1, "New") } else { (5, "Archived") };
    let (confidence_id, confidence) = match anomaly.confidence {
        low if low < 0.5 => (1, "Low"),
        medium if medium < 0.8 => (2, "Medium"),
        _ => (3, "High"),
    };
    let methods: Vec<&str> = anomaly.tiers.statistical.keys().map(String::as_str).collect();
    let attacks = anomaly.mitre.iter().map(|id| attack(id));
    let mut evidences: Vec<Value> = pairs(anomaly)
        .map(|(from, to, port)| {
            let endpoint = |address: Address| json!({"ip": address});
            let mut evidence = Map::new();
            evidence.extend(from.map(|from| ("src_endpoint".to_owned(), endpoint(from))));
            evidence.extend(to.map(|to| ("dst_endpoint".to_owned(), endpoint(to))));
            if let (Some(port), Some(to)) = (port, evidence.get_mut("dst_endpoint")) {
                to["port"] = json!(port);
            }
            Value::Object(evidence)
        })
        .collect();
    let measured = anomaly
        .evidence
        .iter()
        .map(|e| (e.name.to_string(), json!({"value": e.value, "threshold": e.threshold, "unit": e.unit})));
    evidences.push(json!({"name": "measurements", "data": measured.collect::<Map<_, _>>()}));
    let observables = addresses(anomaly)
        .into_iter()
        .map(|(name, address)| json!({"name": name, "type_id": 2, "type": "IP Address", "value": address}));
    let resources = anomaly.interface_ids.iter().map(|id| json!({"type": "AWS::EC2::NetworkInterface", "uid": id}));
    let mut finding = json!({
        "category_uid": 2, "category_name": "Findings", "class_uid": 2004, "class_name": "Detection Finding",
        "activity_id": activity_id, "activity_name": activity,
        "type_uid": 200_400 + activity_id, "type_name": format!("Detection Finding: {activity}"),
        "time": milliseconds(anomaly.detection_timestamp),
        "start_time": milliseconds(anomaly.first_seen), "end_time": milliseconds(anomaly.last_seen),
        "severity_id": severity_id, "severity": severity, "status_id": status_id, "status": status,
        "confidence_id": confidence_id, "confidence": confidence, "confidence_score": hundredths(anomaly.confidence),
        "is_alert": anomaly.status == Status::Open,
        "message": anomaly.summary,
        "metadata": {
            "version": "1.5.0", "uid": format!("{}.{}", anomaly.anomaly_id, anomaly.updates),
            "product": {"name": "flowvigil", "vendor_name": "flowvigil", "version": env!("CARGO_PKG_VERSION")}
        },
        "finding_info": {
            "uid": anomaly.anomaly_id, "title": title(anomaly.threat), "desc": anomaly.summary,
            "types": [anomaly.threat],
            "first_seen_time": milliseconds(anomaly.first_seen), "last_seen_time": milliseconds(anomaly.last_seen),
            "created_time": milliseconds(anomaly.detection_timestamp), "modified_time": milliseconds(anomaly.last_seen),
            "data_sources": ["AWS VPC Flow Logs"],
            "analytic": {"type_id": 3, "type": "Statistical", "uid": anomaly.threat, "name": methods.join(", ")},
            "attacks": attacks.collect::<Vec<_>>()
        },
        "evidences": evidences,
        "observables": observables.collect::<Vec<_>>(),
        "resources": resources.collect::<Vec<_>>(),
        "unmapped": {
            "actor": anomaly.actor, "target_count": anomaly.target_count, "related": anomaly.related,
            "merged_into": anomaly.merged_into, "degraded": anomaly.degraded
        }
    });
    if !anomaly.account_id.is_empty() {
        finding["metadata"]["profiles"] = json!(["cloud"]);
        let account =
            json!({"uid": anomaly.account_id, "name": anomaly.account_id, "type_id": 10, "type": "AWS Account"});
        finding["cloud"] = json!({"provider": "AWS", "account": account});
    }
    finding
}

/// A finding of AWS Security Hub, as `BatchImportFindings` takes it.
///
/// # Errors
/// There is no account or no region, without which no finding has a product.
pub(super) fn asff(anomaly: &Anomaly, region: Option<&str>) -> Result<Value, Problem> {
    let lacking = |field: &str, detail: &str, remedy: &str| {
        Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail, remedy).of_field(field))
    };
    let account = &anomaly.account_id;
    if account.len() != 12 || !account.bytes().all(|digit| digit.is_ascii_digit()) {
        let remedy = "log `account-id`; or export with format=ocsf";
        return lacking("format", "the flow log does not say whose account it is", remedy);
    }
    let is_region = |name: &&str| !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    let Some(region) = region.filter(is_region) else {
        let detail = "the region of Security Hub is not known";
        return lacking("region", detail, "name it, as in &region=eu-west-1, or set AWS_REGION of the service");
    };
    let partition = match region {
        gov if gov.starts_with("us-gov-") => "aws-us-gov",
        china if china.starts_with("cn-") => "aws-cn",
        _ => "aws",
    };
    let host = addresses(anomaly).first().map_or_else(|| anomaly.actor.to_string(), |(_, address)| address.to_string());
    let mut resources: Vec<Value> = anomaly
        .interface_ids
        .iter()
        .filter(|id| id.starts_with("eni-"))
        .take(PAIRS_MAX)
        .map(|id| {
            let id = format!("arn:{partition}:ec2:{region}:{account}:network-interface/{id}");
            json!({"Type": "AwsEc2NetworkInterface", "Id": id, "Partition": partition, "Region": region})
        })
        .collect();
    if resources.is_empty() {
        resources.push(json!({"Type": "Other", "Id": host}));
    }
    let fields =
        anomaly.evidence.iter().take(40).map(|e| (format!("flowvigil/{}", e.name), Value::from(measurement(e))));
    let mut fields: Map<String, Value> = fields.collect();
    fields.insert("flowvigil/actor".to_owned(), json!(anomaly.actor.to_string()));
    fields.insert("flowvigil/target_count".to_owned(), json!(anomaly.target_count.to_string()));
    fields.insert("flowvigil/mitre".to_owned(), json!(anomaly.mitre.join(", ")));
    fields.insert("flowvigil/severity_reason".to_owned(), json!(cut(&anomaly.severity_reason, 1_024)));
    fields.retain(|_, value| value.as_str().is_some_and(|text| !text.is_empty()));
    let state = if anomaly.status == Status::Open { "ACTIVE" } else { "ARCHIVED" };
    let mut finding = json!({
        "SchemaVersion": "2018-10-08",
        "Id": anomaly.anomaly_id,
        "ProductArn": format!("arn:{partition}:securityhub:{region}:{account}:product/{account}/default"),
        "ProductName": "flowvigil", "CompanyName": "flowvigil", "Region": region,
        "GeneratorId": format!("flowvigil/{}", anomaly.threat),
        "AwsAccountId": account,
        "Types": [kind(anomaly.threat)],
        "FirstObservedAt": anomaly.first_seen, "LastObservedAt": anomaly.last_seen,
        "CreatedAt": anomaly.detection_timestamp,
        // Security Hub takes an update of a finding only where this is later.
        "UpdatedAt": anomaly.last_seen.max(anomaly.detection_timestamp),
        "Severity": {"Label": anomaly.severity.name().to_uppercase(), "Original": anomaly.severity.name()},
        "Confidence": hundredths(anomaly.confidence),
        "Title": title(anomaly.threat),
        "Description": cut(&anomaly.summary, 1_024),
        "Resources": resources,
        "ProductFields": fields,
        "RecordState": state,
        "Workflow": {"Status": "NEW"}
    });
    if let Some(network) = network(anomaly) {
        finding["Network"] = network;
    }
    if !anomaly.related.is_empty() {
        let arn = finding["ProductArn"].clone();
        let related = anomaly.related.iter().take(10).map(|id| json!({"ProductArn": arn, "Id": id}));
        finding["RelatedFindings"] = related.collect();
    }
    Ok(finding)
}

/// A technique of ATT&CK, with its part where the id names one.
fn attack(id: &str) -> Value {
    let (name, part) = mitre::name(id).unwrap_or(("unknown", None));
    let technique = id.split('.').next().unwrap_or(id);
    match part {
        Some(part) => {
            json!({"technique": {"uid": technique, "name": name}, "sub_technique": {"uid": id, "name": part}})
        }
        None => json!({"technique": {"uid": id, "name": name}}),
    }
}

/// The two ends of an anomaly that has two.
fn network(anomaly: &Anomaly) -> Option<Value> {
    let (Some(from), Some(to), port) = pairs(anomaly).next()? else { return None };
    let family = |address: Address| if address.as_v4().is_some() { "V4" } else { "V6" };
    let mut network = Map::new();
    network.insert(format!("SourceIp{}", family(from)), json!(from));
    network.insert(format!("DestinationIp{}", family(to)), json!(to));
    network.extend(port.map(|port| ("DestinationPort".to_owned(), json!(port))));
    let direction = if to.is_private() { "IN" } else { "OUT" };
    network.insert("Direction".to_owned(), json!(direction));
    Some(Value::Object(network))
}

/// From whom to whom, and the first port, as far as an export names them.
fn pairs(anomaly: &Anomaly) -> impl Iterator<Item = (Option<Address>, Option<Address>, Option<u16>)> {
    let from = match anomaly.actor {
        Actor::One(address) => Some(address),
        Actor::Many => None,
    };
    let targets = anomaly.targets.iter().map(|target| (Some(target.address), target.ports.first().copied()));
    // An actor without targets is an end as well.
    let alone = (anomaly.targets.is_empty() && from.is_some()).then_some((None, None));
    targets.chain(alone).take(PAIRS_MAX).map(move |(to, port)| (from, to, port))
}

/// The addresses of an anomaly with their roles, each once.
fn addresses(anomaly: &Anomaly) -> Vec<(&'static str, Address)> {
    let mut found: Vec<(&str, Address)> = Vec::new();
    for (from, to, _) in pairs(anomaly) {
        let ends = [("evidences[].src_endpoint.ip", from), ("evidences[].dst_endpoint.ip", to)];
        for (name, address) in ends.into_iter().filter_map(|(name, address)| Some((name, address?))) {
            if found.iter().all(|(_, known)| *known != address) {
                found.push((name, address));
            }
        }
    }
    found
}

const fn title(threat: Threat) -> &'static str {
    match threat {
        Threat::PortScan => "Port scan",
        Threat::Ddos => "Denial of service",
        Threat::C2Beacon => "Command and control channel",
        Threat::CryptoMining => "Cryptocurrency mining",
        Threat::Tor => "Use of the Tor network",
        Threat::Behavior => "Unusual behavior of a host",
        Threat::BruteForce => "Log-ins guessed",
        Threat::Exfiltration => "Unusual upload of data",
    }
}

/// A type of Security Hub's taxonomy.
const fn kind(threat: Threat) -> &'static str {
    match threat {
        Threat::PortScan => "TTPs/Discovery",
        Threat::Ddos => "Effects/Denial of Service",
        Threat::C2Beacon | Threat::Tor => "TTPs/Command and Control",
        Threat::CryptoMining => "Effects/Resource Consumption",
        Threat::Behavior => "Unusual Behaviors/Network Flow",
        Threat::BruteForce => "TTPs/Credential Access",
        Threat::Exfiltration => "Effects/Data Exfiltration",
    }
}

fn measurement(evidence: &Evidence) -> String {
    let Evidence { value, unit, .. } = evidence;
    match (evidence.threshold, evidence.bound) {
        (Some(threshold), Some(bound)) => format!("{value} {unit} ({} {threshold})", bound.sign()),
        _ => format!("{value} {unit}"),
    }
}

fn milliseconds(at: EventTime) -> u64 {
    u64::from(at.0) * 1_000
}

fn hundredths(share: f64) -> u8 {
    (share.clamp(0.0, 1.0) * 100.0).round() as u8
}

/// At most so many characters of a text.
fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}
