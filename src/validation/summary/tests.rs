use super::*;
use crate::finding::{Alternative, Finding, Threat};
use crate::flow::EventTime;
use crate::validation::tests::{finding, incident};

fn said(finding: &Finding, last: u32) -> String {
    let later = Finding { score: 0.5, first_seen: EventTime(last), last_seen: EventTime(last), ..finding.clone() };
    let later = Finding { window: EventTime(last).window(60), summary: "less sure".to_owned(), ..later };
    of(&Case::new(&incident(&[finding.clone(), later])))
}

fn sure() -> Finding {
    let one = finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, 600, 0.9);
    Finding { summary: "it scanned.".to_owned(), ..one }
}

#[test]
fn the_surest_sentence_is_told_and_how_long_it_went_on_where_that_is_a_good_deal_longer() {
    // The finding spans 59 s in a window of 60; two thirds of the whole must be more.
    assert_eq!(said(&sure(), 600 + 92), "it scanned");
    assert_eq!(said(&sure(), 600 + 93), "it scanned; over 93 s in all");
    let long = Finding { first_seen: EventTime(0), ..sure() };
    assert_eq!(said(&long, 659), "it scanned");
    assert_eq!(said(&long, 988), "it scanned", "its own span of 659 s counts, not the window's");
    assert_eq!(said(&long, 990), "it scanned; over 16 min in all");
}

#[test]
fn what_else_the_evidence_allows_stands_behind_the_sentence_and_before_the_span() {
    let miner = Alternative { threat: Threat::CryptoMining, share: 0.31 };
    let either = Finding { alternatives: vec![miner], ..sure() };
    assert_eq!(said(&either, 600), "it scanned; the same evidence allows crypto_mining (31 %)");
    let long = said(&either, 990);
    assert_eq!(long, "it scanned; the same evidence allows crypto_mining (31 %); over 6 min in all");
}
