use super::*;

pub(in crate::statistical) fn address(text: &str) -> Address {
    text.parse().expect("an address of a test")
}

/// One direction in the first second of a test's time.
pub(in crate::statistical) fn direction(packets: u32, bytes: u64) -> Direction {
    Direction { bytes, packets, start: 1_000, end: 1_001, flags: 0, marks: 0 }
}

/// A direction of which no record was seen.
pub(in crate::statistical) const SILENCE: Direction =
    Direction { bytes: 0, packets: 0, start: u32::MAX, end: 0, flags: 0, marks: 0 };

/// A host of ours asks a web server outside and is answered.
pub(in crate::statistical) fn call() -> Conversation {
    Conversation {
        opener: address("10.0.0.5"),
        responder: address("203.0.113.9"),
        sent: direction(6, 840),
        received: direction(5, 1_200),
        interface: InterfaceId(1),
        opener_port: 40_000,
        port: 443,
        protocol: protocol::TCP,
        outcome: Outcome::Answered,
        ours: true,
        theirs: false,
    }
}

/// The same without an answer: one SYN.
pub(in crate::statistical) fn probe() -> Conversation {
    Conversation { sent: direction(1, 44), received: SILENCE, outcome: Outcome::Unanswered, ..call() }
}

/// The conversation's time moved on by so many seconds.
pub(in crate::statistical) fn at(seconds: u32, c: Conversation) -> Conversation {
    let moved = |d: Direction| match d.seen() {
        true => Direction { start: d.start + seconds, end: d.end + seconds, ..d },
        false => d,
    };
    Conversation { sent: moved(c.sent), received: moved(c.received), ..c }
}

const V6: &str = "2001:db8::5";

fn is_ours(address: Address) -> bool {
    address.to_string().starts_with("10.")
}

/// Ports of equal rank on both sides, of which the lower end's is the higher: without other signs the lower end opens.
fn view() -> View {
    View {
        low: address("10.0.0.5"),
        high: address("203.0.113.9"),
        up: direction(6, 840),
        down: direction(5, 1_200),
        first: [0; 2],
        interface: InterfaceId(1),
        twin: None,
        low_port: 20_001,
        high_port: 20_000,
        protocol: protocol::TCP,
    }
}

fn oriented(view: &View) -> Conversation {
    orient(view, is_ours)
}

fn low_opens(view: &View) -> bool {
    oriented(view).opener == view.low
}

fn flagged(flags: u8, d: Direction) -> Direction {
    Direction { flags, marks: d.marks | Marks::FLAGS_KNOWN.0, ..d }
}

fn marked(mark: Marks, d: Direction) -> Direction {
    Direction { marks: d.marks | mark.0, ..d }
}

const SYN: u8 = tcp_flags::SYN;
const ACK: u8 = tcp_flags::ACK;
const RST: u8 = tcp_flags::RST;
const FIN: u8 = tcp_flags::FIN;

#[test]
fn a_conversation_lasts_from_the_first_to_the_last_packet_of_either_direction() {
    let sent = Direction { start: 10, end: 20, ..direction(1, 44) };
    let received = Direction { start: 5, end: 15, ..direction(1, 44) };
    let one = Conversation { sent, received, ..call() };
    let other = Conversation { sent: received, received: sent, ..call() };
    for c in [one, other] {
        assert_eq!((c.start(), c.end()), (EventTime(5), EventTime(20)));
    }
    let place = (EventTime(20), address("10.0.0.5"), address("203.0.113.9"), 40_000, 443);
    assert_eq!(one.place(), place);
}

#[test]
fn refused_and_unanswered_attempts_have_failed_and_backscatter_was_none() {
    let failed = |outcome| Conversation { outcome, ..call() }.failed();
    assert!(failed(Outcome::Refused) && failed(Outcome::Unanswered));
    assert!(!failed(Outcome::Answered) && !failed(Outcome::Backscatter));
}

#[test]
fn a_probe_is_at_most_seven_packets_without_room_for_data() {
    let tcp = |packets, bytes| Conversation { sent: direction(packets, bytes), ..call() }.is_probe();
    assert!(tcp(7, 7 * 64));
    assert!(!tcp(7, 7 * 64 + 1), "a byte of data");
    assert!(!tcp(8, 8 * 40), "more than a SYN is ever repeated");
    let v6 = |bytes| Conversation { opener: address(V6), sent: direction(1, bytes), ..call() }.is_probe();
    assert!(v6(84));
    assert!(!v6(85));
    let udp = |packets| {
        Conversation { protocol: protocol::UDP, sent: direction(packets, u64::from(packets) * 1_000), ..call() }
            .is_probe()
    };
    assert!(udp(7), "a datagram always has room");
    assert!(!udp(8));
}

#[test]
fn payload_is_what_stands_above_the_headers_of_both_layers() {
    let of = |protocol, opener| {
        let c = Conversation { protocol, opener, ..call() };
        c.payload(&direction(3, 1_000))
    };
    let (v4, v6) = (address("10.0.0.5"), address(V6));
    assert_eq!(of(protocol::TCP, v4), 1_000 - 3 * 40);
    assert_eq!(of(protocol::TCP, v6), 1_000 - 3 * 60);
    assert_eq!(of(protocol::UDP, v4), 1_000 - 3 * 28);
    assert_eq!(of(protocol::UDP, v6), 1_000 - 3 * 48);
    assert_eq!(call().payload(&direction(3, 100)), 0, "less than headers is none");
}

#[test]
fn registered_services_rank_before_unknown_ports_and_these_before_ephemeral_ones() {
    for (port, rank) in [(0, 1), (1, 0), (1_023, 0), (1_024, 1), (8_443, 0), (9_090, 0), (9_100, 0), (9_101, 1)] {
        assert_eq!(port_rank(port), rank, "{port}");
    }
    for (port, rank) in [(3_389, 0), (27_017, 0), (27_018, 1), (32_767, 1), (32_768, 2), (65_535, 2)] {
        assert_eq!(port_rank(port), rank, "{port}");
    }
}

#[test]
fn who_sent_a_syn_without_ack_is_the_opener_where_flags_are_known() {
    assert!(low_opens(&view()), "without flags the higher port opens");
    let down = |flags| View { down: flagged(flags, view().down), ..view() };
    assert!(!low_opens(&down(SYN)));
    assert!(!low_opens(&down(SYN | FIN)));
    assert!(low_opens(&down(SYN | ACK)), "that is the answer");
    assert!(low_opens(&down(FIN)));
    let unknown = View { down: Direction { flags: SYN, ..view().down }, ..view() };
    assert!(low_opens(&unknown), "flags that are not known say nothing");
    // The other way round, on ports that would say the opposite.
    let swapped = View { low_port: 20_000, high_port: 20_001, ..view() };
    assert!(!low_opens(&swapped));
    assert!(low_opens(&View { up: flagged(SYN, view().up), ..swapped }));
    assert!(!low_opens(&View { up: flagged(SYN | ACK, view().up), ..swapped }));
    // Both at once decide nothing.
    let both = View { up: flagged(SYN, view().up), down: flagged(SYN, view().down), ..view() };
    assert!(low_opens(&both) && !low_opens(&View { low_port: 20_000, high_port: 20_001, ..both }));
}

#[test]
fn a_registered_port_is_the_servers_whoever_was_seen_first() {
    let late = Direction { start: 1_030, end: 1_040, ..direction(6, 840) };
    let to_service = View { low_port: 40_000, high_port: 443, up: late, ..view() };
    assert!(low_opens(&to_service));
    let from_service = View { low_port: 443, high_port: 40_000, down: late, ..view() };
    assert!(!low_opens(&from_service));
}

#[test]
fn where_neither_port_is_registered_or_both_are_the_first_packet_opens() {
    let late = Direction { start: 1_030, end: 1_040, ..direction(6, 840) };
    for (low_port, high_port) in [(20_001, 20_000), (20_000, 40_000), (40_000, 20_000), (80, 443), (443, 80)] {
        let of = |up, down| View { low_port, high_port, up, down, ..view() };
        assert!(low_opens(&of(view().up, late)), "{low_port} {high_port}");
        assert!(!low_opens(&of(late, view().down)), "{low_port} {high_port}");
    }
}

#[test]
fn at_the_same_second_the_less_likely_service_port_opens_then_the_higher_port() {
    for (low_port, high_port, low) in
        [(40_000, 20_000, true), (20_000, 40_000, false), (20_000, 20_000, true), (80, 443, false), (443, 80, true)]
    {
        assert_eq!(low_opens(&View { low_port, high_port, ..view() }), low, "{low_port} {high_port}");
    }
}

#[test]
fn where_one_direction_was_seen_its_sender_is_the_opener() {
    let up = View { down: SILENCE, low_port: 443, high_port: 443, ..view() };
    let c = oriented(&up);
    assert_eq!((c.opener, c.responder), (up.low, up.high));
    assert_eq!((c.sent, c.received), (up.up, SILENCE));
    let down = View { up: SILENCE, low_port: 443, high_port: 8_443, ..view() };
    let c = oriented(&down);
    assert_eq!((c.opener, c.responder), (down.high, down.low));
    assert_eq!((c.sent, c.received), (down.down, SILENCE));
    assert_eq!((c.opener_port, c.port), (8_443, 443));
    assert_eq!((c.ours, c.theirs), (false, true));
    assert_eq!((oriented(&up).ours, oriented(&up).theirs), (true, false));
}

#[test]
fn a_refusal_of_either_direction_is_one_and_silence_is_none() {
    let to_service = View { low_port: 40_000, high_port: 443, ..view() };
    let outcome = |view: &View| oriented(view).outcome;
    assert_eq!(outcome(&to_service), Outcome::Answered);
    assert_eq!(outcome(&View { up: marked(Marks::REJECTED, view().up), ..to_service }), Outcome::Refused);
    assert_eq!(outcome(&View { down: marked(Marks::REJECTED, view().down), ..to_service }), Outcome::Refused);
    let alone = View { down: SILENCE, ..to_service };
    assert_eq!(outcome(&alone), Outcome::Unanswered);
    assert_eq!(outcome(&View { up: marked(Marks::REJECTED, view().up), ..alone }), Outcome::Refused);
    // From a service to an ephemeral port, with nothing before it: an answer that nobody asked for.
    let answer = View { up: SILENCE, ..to_service };
    assert_eq!(outcome(&answer), Outcome::Backscatter);
    assert_eq!(outcome(&View { down: marked(Marks::REJECTED, view().down), ..answer }), Outcome::Backscatter);
}

#[test]
fn an_answer_without_a_question_is_told_by_its_flags_then_by_its_ports() {
    let sent = |flags| Conversation { sent: flagged(flags, direction(1, 44)), received: SILENCE, ..call() };
    assert!(answers_nothing(&sent(SYN | ACK)));
    assert!(answers_nothing(&sent(RST)) && answers_nothing(&sent(RST | ACK)));
    assert!(!answers_nothing(&sent(SYN)));
    assert!(!answers_nothing(&sent(SYN | RST)), "it gave up on its own attempt");
    assert!(!answers_nothing(&sent(FIN)));
    assert!(!answers_nothing(&sent(ACK)));
    let ports = |opener_port, port, protocol| {
        answers_nothing(&Conversation { opener_port, port, protocol, received: SILENCE, ..call() })
    };
    for protocol in [protocol::TCP, protocol::UDP] {
        assert!(ports(443, 40_000, protocol));
        assert!(ports(443, 20_000, protocol));
        assert!(!ports(443, 80, protocol));
        assert!(ports(20_000, 40_000, protocol), "no service that is known, and a server all the same");
        assert!(!ports(20_000, 30_000, protocol));
        assert!(!ports(40_000, 443, protocol));
    }
    assert!(!ports(443, 40_000, 47), "no ports, no service");
    // Flags that are known to be none, as some exporters write, leave it to the ports.
    let none = Conversation { opener_port: 443, port: 40_000, ..sent(0) };
    assert!(answers_nothing(&none));
    let udp = Conversation { protocol: protocol::UDP, ..sent(SYN | ACK) };
    assert!(!answers_nothing(&udp), "flags are TCP's");
    let answered = Conversation { received: direction(1, 44), ..sent(SYN | ACK) };
    assert!(!answers_nothing(&answered));
}

#[test]
fn a_bare_reset_is_a_refusal() {
    let answer = |sent: Direction, received: Direction| {
        let view = View { low_port: 40_000, high_port: 443, up: sent, down: received, ..view() };
        oriented(&view).outcome
    };
    let syn = direction(1, 60);
    assert_eq!(answer(syn, direction(1, 40)), Outcome::Refused);
    assert_eq!(answer(syn, direction(1, 41)), Outcome::Answered, "a SYN-ACK has options");
    assert_eq!(answer(syn, direction(2, 80)), Outcome::Answered, "more than was asked");
    assert_eq!(answer(direction(2, 120), direction(2, 80)), Outcome::Refused);
    assert_eq!(answer(direction(8, 480), direction(8, 320)), Outcome::Answered, "no probe");
    let known = |flags| answer(syn, flagged(flags, direction(1, 60)));
    assert_eq!(known(RST), Outcome::Refused);
    assert_eq!(known(RST | ACK), Outcome::Refused);
    assert_eq!(known(SYN | ACK), Outcome::Answered);
    assert_eq!(known(SYN | ACK | RST), Outcome::Answered, "accepted first");
    assert_eq!(answer(direction(8, 480), flagged(RST, direction(1, 40))), Outcome::Answered, "after a conversation");
    assert_eq!(answer(syn, flagged(0, direction(1, 40))), Outcome::Refused, "known to be none: by size");
    assert_eq!(answer(syn, flagged(ACK, direction(1, 40))), Outcome::Answered);
}

#[test]
fn a_reset_over_ipv6_has_the_longer_header_and_datagrams_have_none() {
    let view =
        View { low: address("2001:db8::1"), high: address("2001:db8::9"), low_port: 40_000, high_port: 443, ..view() };
    let outcome = |down| oriented(&View { up: direction(1, 80), down, ..view }).outcome;
    assert_eq!(outcome(direction(1, 60)), Outcome::Refused);
    assert_eq!(outcome(direction(1, 61)), Outcome::Answered);
    let udp = View { up: direction(1, 60), down: direction(1, 40), protocol: protocol::UDP, ..view };
    assert_eq!(oriented(&udp).outcome, Outcome::Answered);
}

fn twin_of(head: u32, view: View) -> View {
    View { twin: std::num::NonZeroU32::new(head + 1), ..view }
}

fn all(views: &[View]) -> (Vec<Conversation>, u64) {
    let (mut out, mut duplicates) = (Vec::new(), 0);
    let names = ["", "eni-a", "eni-b", "eni-c"];
    conversations(views, is_ours, |id| names[id.0 as usize], &mut out, &mut duplicates);
    (out, duplicates)
}

#[test]
fn several_sightings_of_one_conversation_count_once_each_in_its_own_group() {
    let other = View { low: address("10.0.0.6"), ..view() };
    let seen_by = |interface, view: View| View { interface: InterfaceId(interface), ..view };
    let views = [
        view(),
        other,
        View { low: address("10.0.0.7"), ..view() },
        twin_of(1, seen_by(2, View { up: direction(60, 9_000), ..other })),
        twin_of(0, seen_by(2, view())),
        twin_of(0, seen_by(3, View { down: direction(50, 8_000), ..view() })),
    ];
    let (out, duplicates) = all(&views);
    assert_eq!(duplicates, 3);
    let hosts: Vec<Address> = out.iter().map(|c| c.opener).collect();
    assert_eq!(hosts, [address("10.0.0.5"), address("10.0.0.6"), address("10.0.0.7")]);
    assert_eq!((out[0].sent, out[0].received), (direction(6, 840), direction(50, 8_000)));
    assert_eq!((out[1].sent, out[1].received), (direction(60, 9_000), direction(5, 1_200)));
    assert_eq!(out.iter().map(|c| c.interface.0).collect::<Vec<_>>(), [3, 2, 1]);
}

#[test]
fn an_end_speaks_before_an_intermediary_then_who_saw_most_then_the_first_name() {
    let by = |interface, packets, mark| View {
        interface: InterfaceId(interface),
        up: marked(mark, direction(packets, 840)),
        ..view()
    };
    let speaker = |first: View, second: View| all(&[first, twin_of(0, second)]).0[0].interface.0;
    let (end, between) = (Marks::default(), Marks::INTERMEDIARY);
    assert_eq!(speaker(by(1, 6, end), by(2, 7, end)), 2);
    assert_eq!(speaker(by(1, 7, end), by(2, 6, end)), 1);
    assert_eq!(speaker(by(1, 6, end), by(2, 60, between)), 1);
    assert_eq!(speaker(by(1, 60, between), by(2, 6, end)), 2);
    assert_eq!(speaker(by(1, 6, end), by(2, 6, end)), 1);
    assert_eq!(speaker(by(2, 6, end), by(1, 6, end)), 1);
    // What comes back counts as well.
    let answered = View { down: direction(9, 1_200), ..by(1, 3, end) };
    assert_eq!(speaker(answered, by(2, 6, end)), 1);
    // The last of three is held against the best so far, not against the first.
    let three = [by(1, 5, end), twin_of(0, by(2, 9, end)), twin_of(0, by(3, 7, end))];
    assert_eq!(all(&three).0[0].interface.0, 2);
}

#[test]
fn of_two_sightings_of_a_direction_the_fuller_counts_and_times_and_facts_join() {
    let few = Direction { bytes: 9_000, packets: 5, start: 100, end: 120, flags: SYN, marks: Marks::REJECTED.0 };
    let many = Direction { bytes: 800, packets: 6, start: 90, end: 110, flags: FIN, marks: Marks::FLAGS_KNOWN.0 };
    let joined = Direction { bytes: 800, packets: 6, start: 90, end: 120, flags: SYN | FIN, marks: 3 };
    let merge = |a: &Direction, b: &Direction| {
        let mut both = *a;
        both.join(b);
        both
    };
    assert_eq!((merge(&few, &many), merge(&many, &few)), (joined, joined));
    let larger = Direction { bytes: 900, ..many };
    assert_eq!((merge(&larger, &many).bytes, merge(&many, &larger).bytes), (900, 900));
    // The same facts twice are the same facts.
    assert_eq!(merge(&few, &few), few);
}

#[test]
fn a_servers_last_packets_in_a_window_of_their_own_are_no_attempt() {
    let alone = |low_port, high_port, marks: Marks, protocol| {
        let up = Direction { marks: marks.0, ..direction(2, 104) };
        oriented(&View { up, down: SILENCE, low_port, high_port, protocol, ..view() }).outcome
    };
    for protocol in [protocol::TCP, protocol::UDP] {
        assert_eq!(alone(8_181, 50_001, Marks::default(), protocol), Outcome::Backscatter, "{protocol}");
        assert_eq!(alone(50_001, 8_181, Marks::default(), protocol), Outcome::Unanswered, "{protocol}");
        assert_eq!(alone(50_001, 40_001, Marks::default(), protocol), Outcome::Unanswered, "{protocol}");
        assert_eq!(alone(8_181, 9_181, Marks::default(), protocol), Outcome::Unanswered, "{protocol}");
    }
    // Windows XP opens from such ports, and what is refused was an attempt.
    assert_eq!(alone(1_181, 50_001, Marks::REJECTED, protocol::TCP), Outcome::Refused);
}

/// Pings between a host of ours and an outsider: packets of either, and the seconds in which they begin.
fn pings(ours: &str, theirs: &str, sent: (u32, u32), received: (u32, u32)) -> Conversation {
    let (ours, theirs) = (address(ours), address(theirs));
    let of = |(packets, start)| Direction { start, ..direction(packets, u64::from(packets) * 84) };
    let (up, down) = (of(sent), of(received));
    let (low, high, up, down) = if ours < theirs { (ours, theirs, up, down) } else { (theirs, ours, down, up) };
    oriented(&View { low, high, up, down, low_port: 0, high_port: 0, protocol: protocol::ICMP, ..view() })
}

#[test]
fn who_pings_whom_hangs_on_amounts_and_times_and_never_on_the_order_of_two_addresses() {
    let ours = "10.0.0.5";
    for theirs in ["200.1.2.3", "1.2.3.4"] {
        let opener = |sent, received| pings(ours, theirs, sent, received).opener == address(ours);
        assert!(opener((30, 1_000), (20, 1_000)), "{theirs}: who is answered in part asks");
        assert!(!opener((20, 1_000), (30, 1_000)), "{theirs}: whoever it is");
        assert!(
            !opener((60_001, 999), (60_000, 1_000)),
            "{theirs}: a flood is an outsider's, one packet earlier or not"
        );
        assert!(opener((60, 1_000), (60, 1_001)), "{theirs}: of a few pings who is seen first asks");
        assert!(!opener((60, 1_001), (60, 1_000)), "{theirs}: whoever it is");
        assert!(opener((60, 1_000), (60, 1_000)), "{theirs}: and else our monitor");
    }
}

#[test]
fn of_two_equal_ports_the_end_that_is_ours_opens() {
    for theirs in ["203.0.113.9", "1.2.3.4"] {
        let (ours, theirs) = (address("10.0.0.5"), address(theirs));
        let (low, high) = if ours < theirs { (ours, theirs) } else { (theirs, ours) };
        let c = oriented(&View { low, high, low_port: 4_500, high_port: 4_500, protocol: protocol::UDP, ..view() });
        assert_eq!((c.opener, c.responder), (ours, theirs));
    }
}

#[test]
fn a_fin_alone_is_a_tail_from_a_service_port_and_a_probe_from_elsewhere() {
    let alone = |low_port, high_port, flags| {
        oriented(&View { low_port, high_port, up: flagged(flags, direction(1, 52)), down: SILENCE, ..view() }).outcome
    };
    assert_eq!(alone(443, 40_000, FIN), Outcome::Backscatter);
    assert_eq!(alone(40_000, 443, FIN), Outcome::Unanswered);
    assert_eq!(alone(443, 40_000, SYN), Outcome::Unanswered);
    assert_eq!(alone(40_000, 443, SYN | ACK), Outcome::Backscatter);
    assert_eq!(alone(40_000, 443, RST), Outcome::Backscatter);
}

#[test]
fn only_what_opens_nothing_and_was_not_refused_may_go_on() {
    let with = |flags, outcome| Conversation { sent: flagged(flags, direction(1, 52)), outcome, ..probe() };
    assert!(may_go_on(&with(FIN, Outcome::Unanswered)));
    assert!(may_go_on(&with(0, Outcome::Unanswered)));
    assert!(!may_go_on(&with(SYN, Outcome::Unanswered)));
    assert!(!may_go_on(&with(FIN, Outcome::Refused)));
    assert!(may_go_on(&probe()), "without flags it may be a piece");
}
