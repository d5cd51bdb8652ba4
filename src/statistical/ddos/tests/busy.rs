//! Sources that open too many connections, whole or drawn out.

use super::*;

/// A request that goes out and is acknowledged, and no more.
fn drawn_out(from: u32) -> Conversation {
    Conversation { received: direction(5, 200), ..page(from) }
}

fn times(n: u32, c: Conversation) -> impl Iterator<Item = Conversation> + Clone {
    (0..n).map(move |_| c)
}

#[test]
fn a_source_of_three_thousand_connections_is_busy_where_it_is_nearly_all_there_is() {
    assert_eq!(told(times(3_000, page(1))), method("busy_sources"));
    assert_eq!(told(times(2_999, page(1))), None);
    let others = |n: u32| (0..n).map(|n| page(2 + n % 10));
    assert_eq!(told(times(3_000, page(1)).chain(others(750))), method("busy_sources"));
    assert_eq!(told(times(3_000, page(1)).chain(others(751))), None);
    assert_eq!(told(times(2_000, page(1)).chain(times(2_000, page(2)))), None, "two that are busy in part");
    let inside = Conversation { ours: true, ..page(1) };
    assert_eq!(told(times(3_000, inside)), None, "a load balancer, a proxy");
    assert!(!judged(times(3_000, page(1)), false).passed, "of a victim outside we see our own share");
    let refused = Conversation { outcome: Outcome::Refused, sent: direction(3, 600), ..page(1) };
    assert_eq!(told(times(3_000, refused)), None);
}

#[test]
fn a_source_of_four_hundred_unfinished_requests_is_busy_on_ports_of_the_web() {
    assert_eq!(told(times(400, drawn_out(1))), method("slow_requests"));
    assert_eq!(told(times(399, drawn_out(1))), None);
    assert_eq!(told(times(400, Conversation { port: 8_443, ..drawn_out(1) })), method("slow_requests"));
    assert_eq!(told(times(400, Conversation { port: 1_883, ..drawn_out(1) })), None);
    assert_eq!(told(times(400, page(1))), None, "finished");
    assert_eq!(told(times(400, empty(1))), None, "nothing was asked");
    assert_eq!(told(times(400, drawn_out(1)).chain(times(100, page(2)))), method("slow_requests"));
    assert_eq!(told(times(400, drawn_out(1)).chain(times(101, page(2)))), None);
}

#[test]
fn a_request_is_drawn_out_while_acknowledgements_and_options_are_all_that_comes_back() {
    let with = |sent: u64, received: u64| {
        is_drawn_out(&Conversation {
            sent: direction(5, 200 + sent),
            received: direction(5, 200 + received),
            ..page(1)
        })
    };
    assert!(with(61, 60));
    assert!(!with(61, 61), "an answer");
    assert!(!with(60, 60), "no request");
}

#[test]
fn what_goes_on_from_an_earlier_window_is_silent_and_not_empty() {
    let with = |flags, marks: Marks| {
        let one = empty(1);
        is_empty(&Conversation { sent: Direction { flags, marks: marks.0, ..one.sent }, ..one })
    };
    let (syn, fin) = (tcp_flags::SYN, tcp_flags::FIN);
    assert!(with(0, Marks::default()) && with(fin, Marks::default()), "flags that are not known say nothing");
    assert!(with(syn, Marks::FLAGS_KNOWN) && with(syn | fin, Marks::FLAGS_KNOWN));
    assert!(!with(fin, Marks::FLAGS_KNOWN));
    assert!(!with(0, Marks::FLAGS_KNOWN), "0 says that neither SYN nor FIN nor RST was seen");
    assert!(!is_empty(&page(1)));
    assert!(!is_empty(&Conversation { outcome: Outcome::Unanswered, ..empty(1) }));
}

#[test]
fn every_number_of_busy_sources_stands_beside_its_threshold() {
    let all = times(3_000, page(1)).chain(times(4_500, page(2))).chain(times(500, page(3)));
    let judgement = judged(all, true);
    assert_eq!((judgement.method.as_str(), judgement.ratio), ("busy_sources", 1.5));
    let numbers: Vec<(&str, f64, Option<f64>)> =
        judgement.evidence.iter().map(|e| (&*e.name, e.value, e.threshold)).collect();
    assert_eq!(
        numbers[..3],
        [
            ("connections_of_one_source", 4_500.0, Some(3_000.0)),
            ("busy_sources_share", 7_500.0 / 8_000.0, Some(0.8)),
            ("busy_sources", 2.0, None),
        ]
    );
    let slow = judged(times(800, drawn_out(1)).chain(times(100, page(2))), true);
    assert_eq!((slow.method.as_str(), slow.ratio), ("slow_requests", 2.0));
    assert_eq!((number(&slow, "connections_of_one_source"), number(&slow, "busy_sources")), (800.0, 1.0));
    assert_eq!(number(&slow, "busy_sources_share"), 800.0 / 900.0);
}

#[test]
fn the_busy_sources_are_named_with_their_ports_and_times_and_nobody_else() {
    let busy: Vec<Conversation> = times(400, at(60, drawn_out(1))).collect();
    let late = Conversation { interface: InterfaceId(9), ..at(90, drawn_out(1)) };
    let elsewhere = Conversation { responder: address("10.0.0.12"), ..at(200, drawn_out(1)) };
    let datagram = Conversation { protocol: protocol::UDP, ..at(200, drawn_out(1)) };
    let beside = [empty(2), at(120, page(3)), elsewhere, datagram];
    let all = [&busy[..], &[late], &beside[..]].concat();
    let mut victim = collected(&all).unwrap();
    let counted = Busy::of("slow_requests", &settings()).unwrap();
    victim.name_busy_sources(self::victim(), &all, counted);
    assert_eq!(victim.sources.keys().copied().collect::<Vec<_>>(), [outsider(1)]);
    assert_eq!(victim.sources[&outsider(1)], 401 * 6);
    assert_eq!((victim.first, victim.last, victim.interface()), (1_060, 1_091, InterfaceId(9)));
    assert_eq!(victim.ports, BTreeMap::from([(443, 401)]));
    assert!(Busy::of("syn_flood", &settings()).is_none());
}

#[test]
fn there_is_room_for_so_many_openers_and_those_that_are_known_go_on() {
    let room = Victim::SOURCES_MAX as u32;
    let pages: Vec<Conversation> = (0..=room).chain([0]).map(page).collect();
    let victim = collected(&pages).unwrap();
    assert_eq!((victim.openers.len(), victim.openers[&outsider(0)]), (room as usize, (2, 0)));
}
