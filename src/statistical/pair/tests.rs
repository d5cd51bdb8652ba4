use super::*;
use crate::statistical::conversation::tests::{SILENCE, at, call, direction, probe};

const WINDOW: EventTime = EventTime(960);

fn pair(c: &Conversation) -> Pair {
    Pair::new(7, c, WINDOW)
}

#[test]
fn a_pair_keeps_the_earliest_conversation_of_its_first_window_in_any_order() {
    let early = Conversation { opener_port: 40_000, ..at(5, call()) };
    let late = Conversation { opener_port: 40_001, sent: direction(60, 9_000), ..at(20, call()) };
    let late = Conversation { sent: Direction { start: 1_020, end: 1_050, ..late.sent }, ..late };
    let mut one = pair(&early);
    one.add(&late, WINDOW);
    let mut other = pair(&late);
    other.add(&early, WINDOW);
    for pair in [one, other] {
        assert_eq!(
            (pair.sent_packets, pair.sent_bytes, pair.received_packets, pair.received_bytes),
            (6, 840, 5, 1_200)
        );
        assert_eq!((pair.opener_port, pair.first_duration), (40_000, 1));
        assert_eq!((pair.first_seen, Entry::last_seen(&pair), pair.key()), (EventTime(1_005), EventTime(1_050), 7));
    }
}

#[test]
fn of_two_conversations_of_one_second_a_pair_keeps_the_one_with_the_lower_port() {
    let low = Conversation { opener_port: 40_000, sent: direction(1, 100), ..call() };
    let high = Conversation { opener_port: 40_001, sent: direction(2, 200), ..call() };
    let (mut one, mut other) = (pair(&low), pair(&high));
    one.add(&high, WINDOW);
    other.add(&low, WINDOW);
    assert_eq!((one.opener_port, one.sent_bytes), (40_000, 100));
    assert_eq!((other.opener_port, other.sent_bytes), (40_000, 100));
    let again = Conversation { sent: direction(9, 900), ..low };
    one.add(&again, WINDOW);
    assert_eq!(one.sent_bytes, 100, "the one that is known stays");
}

#[test]
fn what_a_pair_remembers_is_held_at_the_maximum() {
    let much = Direction { start: 1_000, end: 1_000 + 70_000, ..direction(70_000, 5_000_000_000) };
    let pair = pair(&Conversation { sent: much, received: much, ..call() });
    assert_eq!((pair.sent_bytes, pair.received_bytes), (u32::MAX, u32::MAX));
    assert_eq!((pair.sent_packets, pair.received_packets, pair.first_duration), (u16::MAX, u16::MAX, u16::MAX));
}

#[test]
fn the_first_answer_is_told_once_and_in_its_own_window_alone() {
    let mut pair = pair(&probe());
    assert!(!pair.answered() && !pair.take_first_answer(WINDOW));
    let next = EventTime(1_020);
    pair.add(&at(60, call()), next);
    assert!(pair.answered());
    assert!(!pair.take_first_answer(WINDOW));
    assert!(pair.take_first_answer(next));
    assert!(!pair.take_first_answer(next), "once");
    let later = EventTime(1_080);
    pair.add(&at(120, call()), later);
    assert!(!pair.take_first_answer(later), "it was answered before");
}

#[test]
fn a_channel_begins_with_what_its_pair_remembered() {
    let mut answered = pair(&call());
    answered.promoted = true;
    let next = Conversation { opener_port: 40_009, ..at(600, call()) };
    let channel = Channel::promote(&answered, &next);
    assert_eq!(
        (channel.fingerprint, channel.key(), channel.opener, channel.responder),
        (7, 7, next.opener, next.responder)
    );
    assert_eq!((channel.port, channel.protocol, channel.interface), (443, 6, next.interface));
    let first = Session {
        start: EventTime(1_000),
        end: EventTime(1_001),
        sent_bytes: 840,
        received_bytes: 1_200,
        sent_payload: 840 - 6 * 40,
        received_payload: 1_200 - 5 * 40,
        sent_packets: 6,
        received_packets: 5,
        piece: 1,
        windows: 1,
        sent_windows: 1,
        received_windows: 1,
        opener_port: 40_000,
        failed: false,
    };
    assert_eq!(channel.sessions, [first]);
    assert_eq!(first.duration(), 1);
    assert!(Channel::promote(&pair(&probe()), &next).sessions[0].failed, "nothing had answered");
}

fn channel() -> Channel {
    let first = call();
    Channel::promote(&pair(&first), &first)
}

#[test]
fn the_pieces_of_a_session_are_stitched_by_the_openers_port() {
    let mut channel = channel();
    let keep_alive = Conversation { sent: direction(1, 53), received: direction(1, 53), ..call() };
    channel.add(&at(60, keep_alive));
    let more = Conversation { sent: direction(2, 107), received: direction(2, 106), ..call() };
    channel.add(&at(120, more));
    assert_eq!(channel.sessions.len(), 1);
    let session = channel.sessions[0];
    assert_eq!((session.start, session.end, session.duration()), (EventTime(1_000), EventTime(1_121), 121));
    assert_eq!((session.sent_bytes, session.received_bytes), (840 + 53 + 107, 1_200 + 53 + 106));
    assert_eq!((session.sent_payload, session.received_payload), (600 + 13 + 27, 1_000 + 13 + 26));
    assert_eq!((session.sent_packets, session.received_packets), (9, 8));
    // A byte of keep-alive and a timestamp a packet carry nothing.
    assert_eq!((session.windows, session.sent_windows, session.received_windows), (3, 2, 1));
    assert_eq!(channel.last_seen(), EventTime(1_121));
    channel.add(&Conversation { opener_port: 40_001, ..at(180, call()) });
    assert_eq!(channel.sessions.len(), 2, "another port is another session");
    assert_eq!(channel.last_seen(), EventTime(1_181));
}

#[test]
fn a_session_has_failed_only_if_all_of_it_has() {
    let mut channel = Channel::promote(&pair(&probe()), &probe());
    channel.add(&at(60, probe()));
    assert!(channel.sessions[0].failed);
    channel.add(&at(120, call()));
    assert!(!channel.sessions[0].failed);
    channel.add(&at(180, probe()));
    assert!(!channel.sessions[0].failed);
    assert_eq!((channel.sessions.len(), channel.sessions[0].sent_packets), (1, 3 + 6));
}

#[test]
fn a_port_that_comes_back_within_two_hours_continues_its_session_and_later_begins_another() {
    let after = |seconds| {
        let mut channel = channel();
        channel.add(&at(1 + seconds, call()));
        channel.sessions.len()
    };
    assert_eq!(after(STITCH_SECONDS), 1);
    assert_eq!(after(STITCH_SECONDS + 1), 2);
    // The same for a piece that arrives late: the session that is known begins after it.
    let before = |seconds| {
        let later = at(20_000, call());
        let mut channel = Channel::promote(&pair(&later), &later);
        channel.add(&at(20_000 - 1 - seconds, call()));
        (channel.sessions.len(), channel.sessions[0].start)
    };
    assert_eq!(before(STITCH_SECONDS), (1, EventTime(1_000 + 20_000 - 1 - STITCH_SECONDS)));
    assert_eq!(before(STITCH_SECONDS + 1), (2, EventTime(1_000 + 20_000 - 2 - STITCH_SECONDS)));
}

#[test]
fn a_piece_continues_the_latest_session_of_its_port() {
    let mut channel = channel();
    channel.add(&at(9_000, call()));
    channel.add(&at(9_060, call()));
    assert_eq!(channel.sessions.iter().map(|s| s.windows).collect::<Vec<_>>(), [1, 2]);
    // One between both, within reach of either, belongs to the later.
    channel.add(&at(4_500, call()));
    assert_eq!(channel.sessions.iter().map(|s| s.windows).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn sessions_stand_in_order_of_start_then_of_port() {
    let mut channel = channel();
    for (seconds, opener_port) in [(300, 40_003), (60, 40_001), (180, 40_002), (60, 39_999)] {
        channel.add(&Conversation { opener_port, ..at(seconds, call()) });
    }
    let ports: Vec<u16> = channel.sessions.iter().map(|s| s.opener_port).collect();
    assert_eq!(ports, [40_000, 39_999, 40_001, 40_002, 40_003]);
}

#[test]
fn beyond_its_room_a_channel_forgets_the_session_that_ended_first() {
    let mut channel = channel();
    // The first one lasts, so it is not the one that ended first.
    channel.add(&at(7_000, call()));
    let calls = Channel::SESSIONS_MAX as u16;
    for n in 1..calls {
        channel.add(&Conversation { opener_port: 40_000 + n, ..at(60 * u32::from(n), call()) });
    }
    assert_eq!((channel.sessions.len(), channel.forgotten), (Channel::SESSIONS_MAX, 0));
    channel.add(&Conversation { opener_port: 50_000, ..at(30_000, call()) });
    assert_eq!((channel.sessions.len(), channel.forgotten), (Channel::SESSIONS_MAX, 1));
    let ports: Vec<u16> = channel.sessions.iter().map(|s| s.opener_port).collect();
    assert_eq!((ports[0], ports[1], ports[ports.len() - 1]), (40_000, 40_002, 50_000));
}

/// A channel of so many sessions, of which the longest has so many windows.
fn grown(sessions: usize, windows: u32) -> Channel {
    let mut channel = channel();
    let mut session = channel.sessions[0];
    session.windows = 1;
    channel.sessions = vec![session; sessions];
    channel.sessions[0].windows = windows;
    channel
}

#[test]
fn a_channel_is_judged_again_when_it_has_grown_by_an_eighth() {
    let now = EventTime(50_000);
    let mut before = grown(16, 1);
    assert!(before.due(now), "it was never judged");
    before.judged(now, false);
    assert!(!before.due(now));
    for (sessions, due) in [(18, false), (19, true)] {
        let mut after = grown(sessions, 1);
        (after.judged_sessions, after.judged_windows) = (before.judged_sessions, before.judged_windows);
        assert_eq!(after.due(now), due, "{sessions} sessions");
    }
    // Those that were forgotten count, before and after.
    let mut after = grown(16, 1);
    (after.judged_sessions, after.judged_windows, after.forgotten) = (16, 1, 2);
    assert!(!after.due(now));
    after.forgotten = 3;
    assert!(after.due(now));
    after.judged(now, false);
    assert_eq!((after.judged_sessions, after.due(now)), (19, false));
    // So do the windows of the longest session.
    let mut long = grown(4, 80);
    long.judged(now, false);
    assert_eq!((long.judged_sessions, long.judged_windows), (4, 80));
    for (windows, due) in [(90, false), (91, true)] {
        long.sessions[3].windows = windows;
        assert_eq!(long.due(now), due, "{windows} windows");
    }
}

#[test]
fn a_channel_that_was_told_is_judged_again_after_ten_minutes_whether_it_grew_or_not() {
    let now = EventTime(50_000);
    let mut channel = grown(4, 1);
    channel.judged(now, true);
    assert_eq!(channel.told, now);
    channel.sessions.extend(channel.sessions.clone());
    assert!(!channel.due(EventTime(50_599)));
    assert!(channel.due(EventTime(50_600)));
    channel.judged(EventTime(50_600), false);
    assert_eq!(channel.told, now, "judged, not told");
}

#[test]
fn a_conversation_that_began_with_silence_is_as_long_as_what_was_seen() {
    let silent = Conversation { received: SILENCE, ..probe() };
    let pair = pair(&silent);
    assert_eq!(
        (pair.first_seen, Entry::last_seen(&pair), pair.first_duration),
        (EventTime(1_000), EventTime(1_001), 1)
    );
    assert_eq!((pair.received_bytes, pair.received_packets), (0, 0));
}

#[test]
fn presence_is_measured_in_the_intervals_by_which_the_log_was_cut() {
    let session = |seconds, piece| {
        let mut session = Session::of(&call());
        (session.end, session.piece) = (EventTime(session.start.0 + seconds), piece);
        session
    };
    assert_eq!(session(6_000, 60).presence(30), 0.3, "of a hundred minutes");
    assert_eq!(session(6_000, 180).presence(30), 0.3, "three minutes may still be pieces of one");
    assert_eq!(session(6_000, 181).presence(3), 0.3, "of ten times ten minutes");
    assert_eq!(session(6_000, 60).presence(101), 1.0, "a window more than there are intervals");
    assert_eq!((session(30, 30).presence(1), session(30, 30).presence(0)), (1.0, 0.0), "less than an interval is one");
}

/// Calls so many seconds apart, of ports of their own.
fn calls(channel: &mut Channel, from: u32, every: u32, count: u32) {
    for n in 0..count {
        channel.add(&at(
            from + n * every,
            Conversation { opener_port: 40_000 + (from / 60 + n) as u16 % 20_000, ..call() },
        ));
    }
}

fn first(channel: &Channel) -> u32 {
    channel.sessions[0].start.0
}

#[test]
fn a_silence_longer_than_a_channels_gap_begins_another_story() {
    const DAY: u32 = 86_400;
    let of = |every: u32, silence: u32| {
        let mut channel = channel();
        channel.sessions.clear();
        calls(&mut channel, 1_000_000, every, 10);
        (channel.told, channel.mined, channel.judged_sessions) = (EventTime(7), true, 10);
        let next = 1_000_000 + 9 * every + silence;
        calls(&mut channel, next, every, 1);
        (
            channel.sessions.len(),
            channel.sessions[0].start == at(next, call()).start(),
            channel.told == EventTime(0) && !channel.mined,
        )
    };
    assert_eq!(of(300, DAY - 400), (11, false, false), "overnight");
    assert_eq!(of(300, DAY + 400), (1, true, true), "longer than a day");
    assert_eq!(of(DAY, 2 * DAY), (11, false, false), "a daily call that was left out once");
    assert_eq!(of(DAY, 3 * DAY + 400), (1, true, true));
    let mut rare = channel();
    rare.sessions.clear();
    calls(&mut rare, 1_000_000, 6 * DAY, 3);
    assert_eq!(rare.sessions.len(), 3, "of what is rare nothing is known yet");
}

#[test]
fn calls_of_more_than_a_month_ago_are_forgotten() {
    const DAY: u32 = 86_400;
    let mut channel = channel();
    channel.sessions.clear();
    calls(&mut channel, 1_000_000, DAY / 2, 122);
    assert!(
        channel.sessions.len() <= 122 && channel.forgotten > 55,
        "{} and {}",
        channel.sessions.len(),
        channel.forgotten
    );
    assert!(channel.last_seen().0 - first(&channel) <= 31 * DAY, "of the last month alone");
    assert_eq!(channel.sessions.len() as u32 + channel.forgotten, 122, "they are counted all the same");
}
