//! What a file that is no flow log seems to be, and what to do about it.
//!
//! A refusal helps whoever knows what was wrong with the file; this says it of what people have beside their flow logs.

use serde_json::{Map, Value};

/// A kind of file or object that is no flow log of a VPC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Foreign {
    /// What it seems to be, with its article where it needs one.
    pub what: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "it seems to be {}: {}", self.what, self.remedy)
    }
}

const NAME_VPC: &str = "name the VPC flow logs instead (in S3 under AWSLogs/ACCOUNT/vpcflowlogs/)";
const FLOWS_ONLY: &str = "only flow logs of AWS are read";
const UNPACK: &str = "unpack it first";
const EXPORT: &str = "export it as CSV, JSON or Parquet";

const fn foreign(what: &'static str, remedy: &'static str) -> Option<Foreign> {
    Some(Foreign { what, remedy })
}

/// By the first bytes, of which four thousand are plenty.
pub fn of_bytes(head: &[u8]) -> Option<Foreign> {
    match head {
        [b'P', b'K', 3 | 5, 4 | 6, ..] => return foreign("a zip archive", UNPACK),
        [b'7', b'z', 0xbc, 0xaf, ..] => return foreign("a 7-Zip archive", UNPACK),
        [b'R', b'a', b'r', b'!', ..] => return foreign("a RAR archive", UNPACK),
        [b'O', b'b', b'j', 1, ..] => return foreign("an Avro file", EXPORT),
        [b'O', b'R', b'C', ..] => return foreign("an ORC file", EXPORT),
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] | [b'F', b'E', b'A', b'1', ..] => {
            return foreign("an Arrow or Feather file", EXPORT);
        }
        [b'P', b'A', b'R', b'E', ..] => return foreign("an encrypted Parquet file", "decrypt it first"),
        [0xd4, 0xc3, 0xb2, 0xa1, ..]
        | [0xa1, 0xb2, 0xc3, 0xd4, ..]
        | [0x4d, 0x3c, 0xb2, 0xa1, ..]
        | [0x0a, 0x0d, 0x0d, 0x0a, ..] => {
            return foreign("a packet capture (pcap)", "only flow logs are read, no packets");
        }
        [0x0c, 0xa5, ..] | [0xa5, 0x0c, ..] => return foreign("an nfdump file (NetFlow)", FLOWS_ONLY),
        [0, 5, 0, 1..=30, ..] | [0, 9, 0, 1..=64, ..] | [0, 10, _, _, ..] if head.len() >= 16 => {
            return foreign("a NetFlow or IPFIX export", FLOWS_ONLY);
        }
        [0xd0, 0xcf, 0x11, 0xe0, ..] => return foreign("a Microsoft Office file", EXPORT),
        [b'S', b'Q', b'L', b'i', b't', b'e', b' ', b'f', ..] => return foreign("an SQLite database", EXPORT),
        [0x89, b'H', b'D', b'F', ..] => return foreign("an HDF5 file", EXPORT),
        [b'%', b'P', b'D', b'F', ..] => return foreign("a PDF file", EXPORT),
        [0x7f, b'E', b'L', b'F', ..] => return foreign("a program", "name flow logs"),
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return foreign("text as UTF-32", "convert it to UTF-8"),
        _ => {}
    }
    if head.get(257..262) == Some(b"ustar") {
        return foreign("a tar archive", UNPACK);
    }
    of_text(head)
}

fn of_text(head: &[u8]) -> Option<Foreign> {
    let text = String::from_utf8_lossy(&head[..head.len().min(4096)]);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let lower = text.get(..text.len().min(2048)).unwrap_or(text).to_ascii_lowercase();
    let begins = |starts: &[&str]| starts.iter().any(|start| lower.starts_with(start));
    let first = lower.lines().next().unwrap_or_default();
    let word = |index: usize| first.split_whitespace().nth(index).unwrap_or_default();
    let column = |name: &str| first.split([',', '\t', ';', '|', ' ', '"']).any(|cell| cell == name);
    if begins(&["version https://git-lfs"]) {
        return foreign("a pointer of Git LFS", "fetch the file itself (git lfs pull)");
    }
    if begins(&["-----begin", "age-encryption.org"]) {
        return foreign("encrypted, or a key", "decrypt it first");
    }
    if begins(&["h4siaa", "h4sic"]) {
        return foreign("gzip in base64", "decode it first (base64 -d FILE | flowvigil detect -)");
    }
    if begins(&["<!doctype html", "<html"]) {
        return foreign("a web page (HTML)", "download the file itself; you may have to log in");
    }
    if begins(&["<?xml", "<error"]) {
        return match lower.contains("<code>") {
            true => {
                foreign("an error that S3 answered with (XML)", "download the file again, with the rights to read it")
            }
            false => foreign("an XML file", FLOWS_ONLY),
        };
    }
    if begins(&["#separator", "#fields\tts", "#path"]) {
        return foreign("a log of Zeek", FLOWS_ONLY);
    }
    if begins(&["#version: 1.0"]) && lower.contains("#fields:") {
        return foreign("a log of CloudFront", NAME_VPC);
    }
    if begins(&["#software: microsoft", "#version:"]) && lower.contains("#fields:") {
        return foreign("a log in W3C format", FLOWS_ONLY);
    }
    if begins(&["date first seen", "ts,te,td,sa,da", "startdate"]) || column("first switched") {
        return foreign("a listing of NetFlow", FLOWS_ONLY);
    }
    let balanced = ["http", "https", "h2", "grpcs", "ws", "wss", "tls"].contains(&word(0));
    if balanced && (word(2).contains("/") || word(3).contains("/")) && word(1).contains('t') {
        return foreign("an access log of a load balancer", NAME_VPC);
    }
    if word(2).starts_with('[') && first.contains("rest.") {
        return foreign("an access log of S3", NAME_VPC);
    }
    if first.contains(" http/1.") && first.contains('[') {
        return foreign("an access log of a web server", FLOWS_ONLY);
    }
    if begins(&["+--", "|  "]) || first.starts_with("---") && first.ends_with("---") && lower.contains("\n|") {
        return foreign("a table drawn for people", "ask for JSON (--output json)");
    }
    if column("flow id") || first.contains("flow duration") || column("tot fwd pkts") {
        return foreign("a table of CICFlowMeter", FLOWS_ONLY);
    }
    if column("id.orig_h") {
        return foreign("a table of Zeek", FLOWS_ONLY);
    }
    if first.starts_with("\"no.\",\"time\",\"source\"") {
        return foreign("a packet list of Wireshark", "only flow logs are read, no packets");
    }
    if column("flowintervalendtime") || column("nsgrule_s") || column("flowtype_s") {
        return foreign("flow logs of Azure", FLOWS_ONLY);
    }
    None
}

/// By the keys of a JSON object.
pub(crate) fn of_object(map: &Map<String, Value>) -> Option<Foreign> {
    let has = |keys: &[&str]| keys.iter().all(|key| map.contains_key(*key));
    let first = |key: &str| map.get(key)?.as_array()?.first()?.as_object();
    if has(&["eventVersion"]) && !has(&["s3"])
        || first("Records").is_some_and(|record| {
            record.contains_key("eventVersion") && record.contains_key("eventName") && !record.contains_key("s3")
        })
    {
        return foreign("a log of CloudTrail", NAME_VPC);
    }
    if has(&["digestStartTime"]) || has(&["awsAccountId", "digestS3Bucket"]) {
        return foreign("a digest of CloudTrail", NAME_VPC);
    }
    if has(&["s3", "eventName"]) || first("Records").is_some_and(|record| record.contains_key("s3")) {
        return foreign("a notification that S3 has a new object", "read the object that it names");
    }
    let azure = |record: &Map<String, Value>| {
        let category = record.get("category").and_then(Value::as_str).unwrap_or_default();
        category.contains("FlowEvent") || category.contains("FlowLog") || record.contains_key("flowRecords")
    };
    if azure(map) || first("records").is_some_and(azure) {
        return foreign("flow logs of Azure (NSG or virtual network)", FLOWS_ONLY);
    }
    let google =
        |payload: &Value| payload.get("connection").is_some_and(|connection| connection.get("src_ip").is_some());
    if map.get("jsonPayload").is_some_and(google)
        || map.get("logName").and_then(Value::as_str).is_some_and(|name| name.contains("vpc_flows"))
    {
        return foreign("VPC flow logs of Google Cloud", FLOWS_ONLY);
    }
    if google(&Value::Object(map.clone())) {
        return foreign("VPC flow logs of Google Cloud", FLOWS_ONLY);
    }
    if has(&["firewall_name"]) {
        return foreign("a log of AWS Network Firewall", NAME_VPC);
    }
    if has(&["event_type", "src_ip"]) || has(&["event_type", "flow_id"]) {
        return foreign("a log of Suricata (eve.json)", FLOWS_ONLY);
    }
    if has(&["id.orig_h"]) || map.get("id").is_some_and(|id| id.get("orig_h").is_some()) {
        return foreign("a log of Zeek", FLOWS_ONLY);
    }
    if has(&["query_name", "query_type"]) {
        return foreign("query logs of Route 53 Resolver", NAME_VPC);
    }
    if has(&["webaclId"]) {
        return foreign("a log of AWS WAF", NAME_VPC);
    }
    if map.get("service").and_then(|service| service.get("serviceName")).is_some_and(|name| name == "guardduty") {
        return foreign("a finding of GuardDuty", NAME_VPC);
    }
    if has(&["detail-type", "detail"]) {
        return foreign("an event of EventBridge", NAME_VPC);
    }
    if has(&["apiVersion", "kind"]) {
        return foreign("a log of Kubernetes", FLOWS_ONLY);
    }
    if map.get("flow").is_some_and(|flow| flow.get("IP").is_some()) {
        return foreign("flows of Cilium (Hubble)", FLOWS_ONLY);
    }
    let class = map.get("class_uid").and_then(Value::as_u64);
    if class.is_some_and(|class| class != 4001) {
        return foreign(
            "events of OCSF that are no network activity",
            "name those of class 4001 (Security Lake's VPC_FLOW)",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(head: &[u8]) -> &'static str {
        of_bytes(head).map_or("nothing known", |foreign| foreign.what)
    }

    #[test]
    fn what_people_have_beside_flow_logs_is_named() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (head, what) in [
            (&b"PK\x03\x04rest"[..], "a zip archive"),
            (&tar, "a tar archive"),
            (b"\xd4\xc3\xb2\xa1\x02\0\x04\0", "a packet capture (pcap)"),
            (b"\x0a\x0d\x0d\x0a", "a packet capture (pcap)"),
            (b"\n<!DOCTYPE html><html>", "a web page (HTML)"),
            (b"<Error><Code>AccessDenied</Code></Error>", "an error that S3 answered with (XML)"),
            (b"#separator \\x09\n#set_separator\t,\n", "a log of Zeek"),
            (b"#Version: 1.0\n#Fields: date time x-edge-location\n", "a log of CloudFront"),
            (b"http 2018-07-02T22:23:00.186641Z app/my-lb/50dc6c495c0c9188 192.168.131.39:2817 10.0.0.1:80 0.000 0.001", "an access log of a load balancer"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
            (b"H4sIAAAAAAAAA", "gzip in base64"),
            (b"ts,te,td,sa,da,sp,dp,pr\n", "a listing of NetFlow"),
            (b"2 123456789010 eni-1 10.0.0.1 10.0.0.2 1 2 6 1 1 1 1 ACCEPT OK", "nothing known"),
            (b"", "nothing known"),
        ] {
            assert_eq!(bytes(head), what, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn objects_of_other_logs_are_named() {
        for (text, what) in [
            (r#"{"Records":[{"eventVersion":"1.08","eventName":"RunInstances"}]}"#, "CloudTrail"),
            (r#"{"Records":[{"eventVersion":"2.1","eventName":"Put","s3":{}}]}"#, "S3"),
            (r#"{"records":[{"category":"NetworkSecurityGroupFlowEvent","properties":{}}]}"#, "Azure"),
            (r#"{"records":[{"category":"FlowLogFlowEvent","flowRecords":{}}]}"#, "Azure"),
            (r#"{"jsonPayload":{"connection":{"src_ip":"10.0.0.1"}}}"#, "Google"),
            (r#"{"event_type":"flow","src_ip":"10.0.0.1"}"#, "Suricata"),
            (r#"{"ts":1,"id.orig_h":"10.0.0.1"}"#, "Zeek"),
            (r#"{"class_uid":3002}"#, "OCSF"),
        ] {
            let Ok(Value::Object(map)) = serde_json::from_str(text) else { panic!("{text}") };
            let said = of_object(&map).map_or(String::new(), |foreign| foreign.to_string());
            assert!(said.contains(what), "{text}: {said}");
        }
    }
}
