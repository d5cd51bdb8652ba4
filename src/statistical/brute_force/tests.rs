use super::*;
use crate::settings;
use crate::statistical::conversation::tests::{SILENCE, address, at, call, direction};
use crate::statistical::tests::{Exchange, engine, records, run};

const OUTSIDER: &str = "203.0.113.77";
const MINUTE: u32 = 60;

fn settings() -> Settings {
    settings::Settings::assemble(&[]).expect("the embedded defaults are right").statistical.brute_force
}

/// A log-in with so many bytes of payload each way, over 14 and 12 packets.
fn login(from: &str, to: &str, port: u16, n: u32, seconds: u32, payload: (u64, u64)) -> Conversation {
    let is_ours = |text: &str| text.starts_with("10.");
    let sent = direction(14, 14 * 40 + payload.0);
    let received = direction(12, 12 * 40 + payload.1);
    let opener_port = 20_000 + (n % 40_000) as u16;
    let (ours, theirs) = (is_ours(from), is_ours(to));
    let (opener, responder) = (address(from), address(to));
    at(seconds, Conversation { opener, responder, sent, received, opener_port, port, ours, theirs, ..call() })
}

/// A failed log-in: its size hangs on the length of a name.
fn failed(from: &str, to: &str, port: u16, n: u32, seconds: u32) -> Conversation {
    login(from, to, port, n, seconds, (1_400 + u64::from(n * 7 % 23), 1_900 + u64::from(n * 5 % 16)))
}

/// Notes everything and judges at the end of each minute; the last finding.
fn see(side: Side, who: &str, conversations: &[Conversation]) -> Option<Finding> {
    let settings = settings();
    let mut logins = Logins::new(side, address(who), conversations[0].port, conversations[0].start());
    let mut found = None;
    for minute in conversations.chunk_by(|a, b| a.start().window(60) == b.start().window(60)) {
        minute.iter().for_each(|c| logins.note(c));
        let window = minute[0].start().window(60);
        if let Some(judgement) = logins.judge(&settings, window.plus(60)).filter(|j| j.passed) {
            found = Some(logins.finding(&judgement, window, 60));
        }
    }
    found
}

fn guesses(n: u32, every: u32) -> Vec<Conversation> {
    (0..n).map(|n| failed(OUTSIDER, "10.0.0.5", 22, n, n * every)).collect()
}

fn inbound(conversations: &[Conversation]) -> Option<Finding> {
    see(Side::Inbound, OUTSIDER, conversations)
}

#[test]
fn forty_log_ins_a_minute_are_guessed_and_the_finding_says_how() {
    let guesses: Vec<Conversation> = (0..400).map(|n| failed(OUTSIDER, "10.0.0.5", 22, n, n * 3 / 2)).collect();
    let finding = inbound(&guesses).expect("it is reported");
    assert_eq!((finding.method.as_str(), finding.severity), ("guessing", Severity::Medium));
    assert_eq!(finding.actor, Actor::One(address(OUTSIDER)));
    let words = "203.0.113.77 tried 400 log-ins at 10.0.0.5 port 22 (SSH) in 599 s, 40 a minute, each of about 1411 bytes sent and 1908 \
                 received";
    assert_eq!(finding.sentence(), words);
    assert_eq!(inbound(&guesses[..59]), None, "a burst of fewer may be a script's");
}

#[test]
fn a_slow_guesser_is_found_by_the_hour_and_a_monitor_is_not() {
    let slow = inbound(&guesses(400, 25)).expect("it is reported");
    assert_eq!(slow.method, "guessing");
    assert!(slow.evidence.iter().any(|e| e.name == "slow_pace" && e.holds() == Some(true)), "{slow:?}");
    assert_eq!(inbound(&guesses(1_400, 60)), None, "once a minute for a day is a monitor's");
}

#[test]
fn sessions_of_work_are_not_alike() {
    let size = |n: u32| 900 + u64::from(n * 1_103 % 61) * 60;
    let pages = (0..600).map(|n| login(OUTSIDER, "10.0.0.5", 22, n, n * 3, (size(n), size(n + 7))));
    assert_eq!(inbound(&pages.collect::<Vec<_>>()), None, "a git server's clients: sizes vary");
    let transfers = (0..600).map(|n| login(OUTSIDER, "10.0.0.5", 22, n, n * 3, (9_000, 12_000)));
    assert_eq!(inbound(&transfers.collect::<Vec<_>>()), None, "alike, and more than any log-in moves");
}

#[test]
fn what_carries_nothing_is_no_log_in() {
    let looked = |n: u32, sent: (u32, u64), received: (u32, u64)| {
        let c = failed(OUTSIDER, "10.0.0.5", 22, n, n * 3);
        let (sent, received) = (direction(sent.0, sent.1), direction(received.0, received.1));
        at(n * 3, Conversation { sent, received, ..c })
    };
    let checks = (0..600).map(|n| looked(n, (4, 4 * 52 + 8), (3, 3 * 52 + 8)));
    assert_eq!(inbound(&checks.collect::<Vec<_>>()), None, "opened and closed");
    let banners = (0..600).map(|n| looked(n, (6, 6 * 52 + 30), (5, 5 * 52 + 50)));
    assert_eq!(inbound(&banners.collect::<Vec<_>>()), None, "only the banner was read");
}

#[test]
fn a_session_of_many_minutes_is_one_log_in() {
    let side = Side::Inbound;
    let settings = settings();
    let mut logins = Logins::new(side, address(OUTSIDER), 22, EventTime(1_000));
    // Ten people behind one address type for two hours.
    for minute in 0..120 {
        (0..10).for_each(|person| logins.note(&failed(OUTSIDER, "10.0.0.5", 22, person, minute * MINUTE)));
        let judgement = logins.judge(&settings, EventTime(1_000 + (minute + 1) * MINUTE));
        assert!(judgement.is_none_or(|j| !j.passed), "minute {minute}");
    }
    assert_eq!(logins.attempts.len(), 10);
}

#[test]
fn few_tries_at_each_of_many_targets_are_sprayed() {
    let spray = |each: u32, pause: u32| {
        let target = |n: u32| format!("10.0.1.{}", n / each);
        (0..40 * each).map(|n| failed(OUTSIDER, &target(n), 3389, n, n * pause)).collect::<Vec<_>>()
    };
    let finding = inbound(&spray(4, 3)).expect("it is reported");
    assert_eq!((finding.method.as_str(), finding.target_count), ("spraying", 40));
    assert_eq!(finding.targets.len(), Finding::TARGETS_MAX);
    assert_eq!(inbound(&spray(1, 3)), None, "each once is a sweep's, or a survey's");
    let careful = (0..6).flat_map(|round| {
        (0..30).map(move |n| failed(OUTSIDER, &format!("10.0.1.{n}"), 3389, round * 30 + n, round * 150 + n * 4))
    });
    assert!(inbound(&careful.collect::<Vec<_>>()).is_some(), "one try at each, then the next, is no monitor's timer");
    let rounds = (0..60).flat_map(|minute| {
        (0..30).map(move |n| failed(OUTSIDER, &format!("10.0.1.{n}"), 3389, minute * 30 + n, minute * MINUTE + n))
    });
    let polls: Vec<Conversation> = rounds.collect();
    assert_eq!(inbound(&polls[300..]), None, "a monitor's rounds are a minute apart at each target");
}

#[test]
fn a_larger_session_after_many_failures_may_be_a_success() {
    let mut all = guesses(200, 3);
    all.push(login(OUTSIDER, "10.0.0.5", 22, 900, 610, (30_000, 60_000)));
    all.extend((201..260).map(|n| failed(OUTSIDER, "10.0.0.5", 22, n, 620 + n)));
    let finding = inbound(&all).expect("it is reported");
    assert_eq!((finding.severity, finding.severity_reason.as_str()), (Severity::High, "a log-in may have succeeded"));
    let mut early = vec![login(OUTSIDER, "10.0.0.5", 22, 900, 0, (30_000, 60_000))];
    early.extend(guesses(200, 3));
    assert_eq!(inbound(&early).expect("it is reported").severity, Severity::Medium, "it came before");
}

#[test]
fn between_our_own_hosts_one_target_must_be_tried_at_a_faster_pace() {
    let inside = |n: u32, every: u32| {
        let all: Vec<_> = (0..n).map(|n| failed("10.0.0.9", "10.0.0.5", 22, n, n * every)).collect();
        see(Side::Inside, "10.0.0.9", &all)
    };
    assert_eq!(inside(300, 2).expect("it is reported").severity, Severity::High);
    assert_eq!(inside(600, 12), None, "five checks a minute");
    let fleet: Vec<Conversation> =
        (0..2_000).map(|n| failed("10.0.0.9", &format!("10.0.1.{}", n % 200), 22, n, n / 3)).collect();
    assert_eq!(see(Side::Inside, "10.0.0.9", &fleet), None, "two hundred hosts are checked, each every 66 s");
}

#[test]
fn our_own_host_that_guesses_outside_is_worse() {
    let all: Vec<_> = (0..300).map(|n| failed("10.0.0.9", OUTSIDER, 22, n, n * 2)).collect();
    let finding = see(Side::Outbound, "10.0.0.9", &all).expect("it is reported");
    assert_eq!((finding.severity, finding.severity_reason.as_str()), (Severity::High, "a host of ours attacks others"));
}

/// So many sources, each with so many log-ins, spread over so long.
fn botnet(sources: u32, each: u32, seconds: u32, began: u32) -> Vec<Conversation> {
    let total = sources * each;
    (0..total)
        .map(|n| {
            let from = format!("203.0.113.{}", n * 7_919 % sources);
            failed(&from, "10.0.0.5", 22, n, began + (u64::from(n) * u64::from(seconds) / u64::from(total)) as u32)
        })
        .collect()
}

#[test]
fn many_outsiders_at_one_target_are_one_story() {
    let finding = see(Side::Target, "10.0.0.5", &botnet(60, 12, 3_000, 0)).expect("it is reported");
    assert_eq!((finding.method.as_str(), finding.actor), ("distributed_guessing", Actor::Many));
    assert_eq!(finding.subject, Subject::Victim(address("10.0.0.5")));
    assert!(!finding.sources.is_empty() && finding.targets.len() == 1);
    let words = "60 outsiders together try log-ins at 10.0.0.5 port 22 (SSH), 14 a minute, each of about 1411 bytes";
    assert!(finding.sentence().starts_with(words), "{}", finding.sentence());
    assert_eq!(see(Side::Target, "10.0.0.5", &botnet(60, 4, 3_600, 0)), None, "four a minute come by all day");
    assert_eq!(see(Side::Target, "10.0.0.5", &botnet(5, 200, 3_000, 0)), None, "a handful are judged by themselves");
}

#[test]
fn what_a_target_has_met_all_day_is_no_attack_until_it_is_many_times_as_much() {
    // Two a minute for ten hours, then twelve a minute, or four.
    let mut day = botnet(60, 20, 36_000, 0);
    let usual = day.len();
    day.extend(botnet(60, 12, 3_500, 36_000));
    assert_eq!(see(Side::Target, "10.0.0.5", &day[..usual]), None);
    assert!(see(Side::Target, "10.0.0.5", &day).is_some());
    let mut busy = botnet(60, 48, 36_000, 0);
    busy.extend(botnet(60, 12, 3_500, 36_000));
    assert_eq!(see(Side::Target, "10.0.0.5", &busy), None, "less than five times as much");
}

#[test]
fn partners_that_poll_keep_time() {
    let polls = (0..120).flat_map(|minute| {
        (0..20)
            .map(move |n| failed(&format!("203.0.113.{n}"), "10.0.0.5", 22, minute * 20 + n, minute * MINUTE + n * 2))
    });
    assert_eq!(see(Side::Target, "10.0.0.5", &polls.collect::<Vec<_>>()), None);
}

#[test]
fn what_is_refused_all_the_time_is_low_and_a_client_that_tries_again_is_nothing() {
    let refused = |port: u16, every: u32| {
        let refused = |n: u32| {
            let c = failed(OUTSIDER, "10.0.0.5", port, n, n * every);
            at(n * every, Conversation { sent: direction(1, 60), received: SILENCE, outcome: Outcome::Refused, ..c })
        };
        inbound(&(0..1_000).map(refused).collect::<Vec<_>>())
    };
    let finding = refused(22, 1).expect("it is reported");
    assert_eq!((finding.method.as_str(), finding.severity), ("refused_guessing", Severity::Low));
    assert_eq!(refused(22, 5), None, "a client whose server is down");
    assert_eq!(refused(3306, 1), None, "databases' clients try again at any pace");
}

#[test]
fn databases_are_watched_where_an_outsider_asks_them() {
    let from = |who: &str, to: &str| settings().side(&failed(who, to, 3306, 0, 0));
    assert_eq!(from(OUTSIDER, "10.0.0.5"), Some(Side::Inbound));
    assert_eq!(from("10.0.0.9", "10.0.0.5"), None, "applications without a pool");
    assert_eq!(from("10.0.0.9", OUTSIDER), None);
    assert_eq!(settings().side(&failed(OUTSIDER, "10.0.0.5", 443, 0, 0)), None);
}

#[test]
fn flags_tell_a_new_session_from_the_middle_of_one() {
    let flagged = |n: u32, seconds: u32, flags: u8| {
        let mut c = failed(OUTSIDER, "10.0.0.5", 22, n, seconds);
        (c.sent.flags, c.sent.marks) = (flags, Marks::FLAGS_KNOWN.0);
        c
    };
    let mut logins = Logins::new(Side::Inbound, address(OUTSIDER), 22, EventTime(1_000));
    logins.note(&flagged(1, 0, tcp_flags::SYN));
    logins.note(&flagged(1, 120, tcp_flags::SYN));
    logins.note(&flagged(1, 180, 0));
    logins.note(&flagged(2, 180, 0));
    assert_eq!(
        logins.attempts.len(),
        2,
        "the same port twice, one that goes on, and one of which the begin is unknown"
    );
}

#[test]
fn what_is_kept_is_bounded_and_the_count_is_not() {
    let mut logins = Logins::new(Side::Target, address("10.0.0.5"), 22, EventTime(1_000));
    botnet(200, 30, 3_000, 0).iter().for_each(|c| logins.note(c));
    assert!(logins.attempts.len() < ATTEMPTS + SPARE && logins.others.len() <= 200 + SPARE);
    assert_eq!(logins.total(), 6_000);
    let judgement = logins.judge(&settings(), EventTime(4_000)).expect("enough");
    assert!(judgement.passed, "{judgement:?}");
    let fuller = logins.clone();
    logins.join(Logins::new(Side::Target, address("10.0.0.5"), 22, EventTime(1_000)));
    assert_eq!((logins.total(), logins.attempts.len()), (fuller.total(), fuller.attempts.len()));
}

#[test]
fn the_engine_tells_it_once_whatever_the_order_of_records() {
    let guess = |n: u32| {
        let mut guess = Exchange::new(OUTSIDER, 20_000 + n as u16, "10.0.0.5", 22, n * 2);
        (guess.sent, guess.received) = ((14, 2_000), (12, 2_400));
        guess
    };
    let all: Vec<Exchange> = (0..200).map(guess).collect();
    let forwards = records(&all);
    let mut backwards = forwards.clone();
    backwards.chunks_mut(40).for_each(|piece| piece.reverse());
    let findings = |records| {
        let mut findings = run(&mut engine(), records, 40).findings;
        findings.retain(|f: &Finding| f.threat == Threat::BruteForce);
        findings
    };
    let found = findings(&forwards);
    assert!(!found.is_empty());
    assert_eq!(found, findings(&backwards));
}
