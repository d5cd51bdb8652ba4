use std::io::Write;

use base64::Engine;

use proptest::prelude::*;

use super::*;

const LINE: &str = "2 123456789010 eni-1235b8ca123456789 172.31.16.139 172.31.16.21 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK";

fn decode(payload: &[u8]) -> Decoded {
    let (mut interfaces, mut out) = (Interfaces::new(100), Decoded::default());
    Envelope::new(1 << 20).decode(payload, &Format::default(), &mut interfaces, &mut out);
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn subscription(messages: &[&str]) -> String {
    let events: Vec<Value> = messages
        .iter()
        .map(|message| serde_json::json!({"id": "3503629423", "timestamp": 1571081770000u64, "message": message}))
        .collect();
    // In the order in which CloudWatch Logs writes the keys.
    format!(
        r#"{{"messageType":"DATA_MESSAGE","owner":"123456789012","logGroup":"flow","logStream":"eni-1-all","subscriptionFilters":["f"],"logEvents":{}}}"#,
        serde_json::to_string(&events).unwrap()
    )
}

#[test]
fn every_wrapping_of_a_line_says_what_the_line_says() {
    let plain = decode(LINE.as_bytes());
    assert_eq!(plain.records.len(), 1);
    let wrapped = subscription(&[LINE]);
    let base64 = base64::engine::general_purpose::STANDARD.encode(gzip(wrapped.as_bytes()));
    let nested = serde_json::json!({ "message": serde_json::json!({ "message": LINE }).to_string() });
    for payload in [
        gzip(LINE.as_bytes()),
        zstd::encode_all(LINE.as_bytes(), 1).unwrap(),
        wrapped.clone().into_bytes(),
        gzip(wrapped.as_bytes()),
        serde_json::to_vec_pretty(&serde_json::from_str::<Value>(&wrapped).unwrap()).unwrap(),
        format!(r#"{{"awslogs":{{"data":"{base64}"}}}}"#).into_bytes(),
        format!(r#"{{"message":"{LINE}"}}"#).into_bytes(),
        format!(r#" [ {{ "message" : "{LINE}", "extractedFields": {{"message": "no"}} }} ]"#).into_bytes(),
        format!(r#"{{"events":[{{"message":"{LINE}"}}],"searchedLogStreams":[]}}"#).into_bytes(),
        nested.to_string().into_bytes(),
        format!(r#"{{"message":"{}"}}"#, LINE.replace('2', "\\u0032")).into_bytes(),
        br#"{"version":2,"account-id":"123456789010","interface_id":"eni-1235b8ca123456789","srcaddr":"172.31.16.139",
            "dstaddr":"172.31.16.21","srcport":20641,"dstport":"22","protocol":6,"packets":20,"bytes":4249,
            "start":1418530010,"end":1418530070,"action":"ACCEPT","log_status":"OK","team":"blue"}"#
            .to_vec(),
    ] {
        let out = decode(&payload);
        assert_eq!(out.refused, 0, "{:?}: {}", out.samples, payload.escape_ascii());
        assert_eq!(out.records, plain.records, "{}", payload.escape_ascii());
    }
}

#[test]
fn objects_follow_one_another_with_or_without_line_ends() {
    let one = format!(r#"{{"message":"{LINE}"}}"#);
    let text = format!("{one}{one}\n{one}\r\n\n{one}");
    assert_eq!(decode(text.as_bytes()).records.len(), 4);
}

#[test]
fn a_control_message_is_passed_over_and_counted_as_nothing() {
    let out = decode(br#"{"messageType":"CONTROL_MESSAGE","owner":"CloudwatchLogs","logEvents":[{"id":"","timestamp":1,"message":"CWL CONTROL MESSAGE: Checking health of destination Kinesis stream."}]}"#);
    assert_eq!((out.records.len(), out.refused), (0, 0));
}

#[test]
fn a_bad_event_is_refused_by_its_number_and_the_others_are_read() {
    let out = decode(subscription(&[LINE, "nonsense", LINE]).as_bytes());
    assert_eq!((out.records.len(), out.refused, out.samples[0].line), (2, 1, 2));
}

#[test]
fn a_broken_object_takes_nothing_but_its_line_with_it() {
    let one = format!(r#"{{"message":"{LINE}"}}"#);
    for broken in
        [r#"{"message":"2 1"#, r#"{"message":{"#, r#"{"other":1}"#, r#"{"message":2,}"#, "garbage", r#"{"a":[[[["#]
    {
        let out = decode(format!("{one}\n{broken}\n{one}\n{one}").as_bytes());
        assert_eq!(out.records.len(), 3, "{broken}: {:?}", out.samples);
        assert!(out.refused >= 1, "{broken}");
    }
}

#[test]
fn payloads_that_are_damaged_or_too_large_are_refused_whole() {
    let packed = gzip(subscription(&[LINE; 50]).as_bytes());
    let out = decode(&packed[..packed.len() - 12]);
    assert_eq!((out.refused, out.samples[0].line), (1, 0));
    let bomb = gzip(&vec![b' '; 2 << 20]);
    assert!(decode(&bomb).samples[0].reason.contains("payload_bytes_max"));
    let nested = (0..6).fold(LINE.as_bytes().to_vec(), |bytes, _| gzip(&bytes));
    assert!(decode(&nested).samples[0].reason.contains("layers"));
    let deep = "[{\"a\":".repeat(100_000);
    assert!(decode(deep.as_bytes()).refused >= 1);
}

proptest! {
    #[test]
    fn cutting_messages_out_agrees_with_reading_all_of_the_json(
        messages in proptest::collection::vec(
            prop_oneof![Just(LINE.to_owned()), "[ -~]{0,40}", Just("\"message\":\"".to_owned())],
            0..6,
        ),
    ) {
        let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
        let fast = decode(subscription(&messages).as_bytes());
        // A blank before the colon is enough to make serde read it.
        let slow = decode(subscription(&messages).replacen("\"messageType\":", "\"messageType\" :", 1).as_bytes());
        prop_assert_eq!(fast.records, slow.records);
        prop_assert_eq!((fast.refused, fast.samples), (slow.refused, slow.samples));
    }

    #[test]
    fn any_bytes_are_decoded_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), head in 0..5usize) {
        let heads: [&[u8]; 5] = [b"{\"message\":\"", b"\x1f\x8b\x08\0\0\0\0\0\0\0", b"PAR1", b"{\"logEvents\":[{", b""];
        let mut payload = heads[head].to_vec();
        payload.append(&mut bytes);
        decode(&payload);
    }
}
