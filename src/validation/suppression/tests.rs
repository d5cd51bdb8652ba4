use super::*;
use crate::finding::{Finding, Threat};
use crate::validation::tests::{finding, incident, suppression};

fn scan(last: u32) -> Finding {
    let one = finding(Threat::PortScan, "203.0.113.9", "10.0.0.5", 22, last / 60 * 60, 0.9);
    Finding { first_seen: EventTime(last), last_seen: EventTime(last), ..one }
}

fn stage_of(suppressions: &mut Suppressions, finding: &Finding) -> Stage {
    let incident = incident(std::slice::from_ref(finding));
    suppressions.stage(&Case::new(&incident), false)
}

#[test]
fn it_is_in_force_from_its_creation_until_before_it_expires() {
    let bounded = suppression("expires = '1970-01-01T01:00:00Z'\nmatch = { ports = [22] }");
    for (at, in_force) in [(59, false), (60, true), (3_599, true), (3_600, false)] {
        assert_eq!(bounded.is_in_force(EventTime(at)), in_force, "{at}");
    }
    let unbounded = suppression("match = { ports = [22] }");
    assert!(unbounded.is_in_force(EventTime(u32::MAX)) && !unbounded.is_in_force(EventTime(59)));
}

#[test]
fn it_expires_after_it_was_created() {
    let ending =
        |expires: u32| Suppression { expires: Some(EventTime(expires)), ..suppression("match = { ports = [22] }") };
    assert_eq!(ending(61).check(), Ok(()));
    assert_eq!(ending(60).check(), Err(SuppressionError::Inverted("n".to_owned())));
    let unsigned = |change: fn(&mut Suppression)| {
        let mut suppression = suppression("match = { ports = [22] }");
        change(&mut suppression);
        suppression.check().unwrap_err().to_string()
    };
    assert_eq!(unsigned(|s| s.name.clear()), "suppression ``: name is empty");
    assert_eq!(unsigned(|s| s.reason = "\t".to_owned()), "suppression `n`: reason is empty");
}

#[test]
fn what_it_silences_is_counted_by_name_with_the_latest_moment() {
    let mut all = Suppressions::new(vec![suppression("match = { ports = [22] }")]);
    let stage = stage_of(&mut all, &scan(600));
    assert_eq!((stage.passed, stage.reason.as_str()), (false, "`n` (o, until further notice): r"));
    stage_of(&mut all, &scan(900));
    stage_of(&mut all, &scan(700));
    let known = Matches { count: 3, incidents: 3, last: Some(EventTime(900)) };
    assert_eq!(all.iter().map(|(s, matches)| (s.name.as_str(), matches)).collect::<Vec<_>>(), [("n", known.clone())]);
    let elsewhere = suppression("match = { ports = [23] }");
    let other = Suppression { name: "other".to_owned(), ..elsewhere };
    // Those that stay keep their counts, and those that go are forgotten.
    all.replace(vec![other.clone(), suppression("match = { ports = [22] }")]);
    assert_eq!(all.iter().map(|(_, matches)| matches).collect::<Vec<_>>(), [Matches::default(), known]);
    all.replace(vec![other.clone()]);
    all.replace(vec![other, suppression("match = { ports = [22] }")]);
    assert_eq!(all.iter().map(|(_, matches)| matches).collect::<Vec<_>>(), [Matches::default(), Matches::default()]);
    assert_eq!(stage_of(&mut all, &Finding { targets: vec![], ..scan(900) }).reason, "none of 2 applies");
    let until = Suppression { expires: Some(EventTime(3_600)), ..suppression("match = { ports = [22] }") };
    let stage = stage_of(&mut Suppressions::new(vec![until]), &scan(600));
    assert_eq!(stage.reason, "`n` (o, until 1970-01-01T01:00:00Z): r");
}

#[test]
fn one_that_a_newer_program_has_stored_is_read_and_an_unknown_field_of_the_settings_is_refused() {
    let known = suppression("match = { ports = [22] }");
    let mut stored = serde_json::to_value(&known).unwrap();
    stored["colour"] = "red".into();
    assert_eq!(Suppression::stored(&stored.to_string()).unwrap(), known);
    assert!(serde_json::from_value::<Suppression>(stored).unwrap_err().to_string().contains("colour"));
    assert!(Suppression::stored("[]").is_err());
    let all = Suppression { force: true, made_by: Some("token".to_owned()), made_at: Some(EventTime(7)), ..known };
    let mut fields: Vec<String> = serde_json::to_value(&all).unwrap().as_object().unwrap().keys().cloned().collect();
    let mut listed = FIELDS.map(str::to_owned).to_vec();
    fields.sort();
    listed.sort();
    assert_eq!(fields, listed, "every field is read back");
}
