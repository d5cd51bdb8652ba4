use super::*;
use crate::statistical::tests::{Exchange, engine, records, run};

/// The reports of this method on a session with one message in each of its minutes: so many seconds after the beat, of so many bytes.
fn reports(port: u16, messages: &[(u32, u64)]) -> Vec<String> {
    let piece = |at, sent, received| {
        let mut piece = Exchange::new("10.0.0.5", 45_000, "203.0.113.9", port, at);
        (piece.sent, piece.received) = (sent, received);
        piece
    };
    let beats = messages.iter().zip(1..).map(|((late, bytes), minute)| piece(minute * 60 + late, (1, *bytes), (1, 40)));
    let all: Vec<Exchange> = std::iter::once(piece(0, (6, 1_138), (7, 918))).chain(beats).collect();
    let found = run(&mut engine(), &records(&all), 100).findings;
    found.into_iter().map(|f| f.method).filter(|method| method == METHOD).collect()
}

/// NetSupport Manager's report: 207 bytes of payload in one packet.
const REPORT: (u32, u64) = (1, 247);

#[test]
fn the_same_message_every_minute_in_one_session_is_reported_after_five() {
    assert_eq!(reports(1_488, &[REPORT; 4]), [""; 0]);
    assert_eq!(reports(1_488, &[REPORT; 5]), [METHOD]);
}

#[test]
fn what_keeps_no_beat_or_says_little_or_uses_a_known_service_is_not() {
    let restless = [1, 30, 4, 50, 17, 41, 9, 22].map(|late| (late, 247));
    assert_eq!(reports(1_488, &restless), [""; 0]);
    assert_eq!(reports(1_488, &[(1, 40 + 90); 12]), [""; 0], "a keep-alive");
    assert_eq!(reports(443, &[REPORT; 12]), [""; 0], "a service with a name");
    assert_eq!(reports(5_938, &[REPORT; 12]), [""; 0], "one that its maker names");
    let varied = [247, 310, 180, 521, 260, 411, 233, 390].map(|bytes| (1, bytes));
    assert_eq!(reports(1_488, &varied), [""; 0], "messages of all sizes");
}

#[test]
fn the_commonest_exchange_of_equals_is_the_smaller() {
    let message = |sent, received| Message { at: EventTime(0), opener_port: 1, sent, received };
    let all = [message(300, 0), message(120, 10), message(300, 0), message(120, 10), message(7, 7)];
    assert_eq!(commonest(&all.iter().collect::<Vec<_>>()), (0.4, 130.0));
}
