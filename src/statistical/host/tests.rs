use super::*;

fn host() -> Host {
    Host::new(Address::v4(1), EventTime(1_000))
}

/// An address whose bit of the counter is this one.
fn client_of(bit: u64) -> Address {
    (0..10_000).map(Address::v4).find(|&a| mix(a) & 63 == bit).expect("every bit is hit")
}

#[test]
fn an_address_is_known_from_its_first_to_its_latest_conversation() {
    let mut host = host();
    assert_eq!(
        (host.key(), host.first_seen, Entry::last_seen(&host)),
        (Address::v4(1), EventTime(1_000), EventTime(1_000))
    );
    host.touch(EventTime(1_500));
    host.touch(EventTime(900));
    assert_eq!((host.first_seen, Entry::last_seen(&host)), (EventTime(900), EventTime(1_500)));
}

#[test]
fn clients_are_estimated_by_linear_counting() {
    let mut host = host();
    assert_eq!(host.clients(), 0.0);
    host.note_client(client_of(0));
    assert_eq!(host.clients(), 1.0);
    host.note_client(client_of(0));
    assert_eq!(host.clients(), 1.0, "the same client again");
    host.note_client(client_of(63));
    // Whang et al.: -m ln(V), with 62 of 64 bits still empty.
    assert!((host.clients() - 64.0 * (64.0f64 / 62.0).ln()).abs() < 1e-12, "{}", host.clients());
    for bit in 1..32 {
        host.note_client(client_of(bit));
    }
    assert!((host.clients() - 64.0 * (64.0f64 / 31.0).ln()).abs() < 1e-12, "{}", host.clients());
    for bit in 32..63 {
        host.note_client(client_of(bit));
    }
    assert!((host.clients() - 64.0 * 64.0f64.ln()).abs() < 1e-12, "a full counter says its most: {}", host.clients());
}

#[test]
fn what_a_host_is_asked_is_counted_by_window() {
    let mut host = host();
    let (first, second) = (EventTime(960), EventTime(1_020));
    assert_eq!(host.note_asked(first, 3), (1, 3));
    assert_eq!(host.note_asked(first, 4), (2, 7));
    assert_eq!(host.note_asked(second, 5), (1, 5));
    assert_eq!(host.note_asked(second, u32::MAX), (2, u64::from(u32::MAX)), "held at the maximum");
}

#[test]
fn the_mixing_is_that_of_splitmix64() {
    // Its first outputs from seed 0 (Steele, Lea, Flood 2014, and every public implementation).
    let gamma = 0x9e37_79b9_7f4a_7c15u64;
    let outputs = [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
    for (n, output) in (1..).zip(outputs) {
        let state = gamma.wrapping_mul(n);
        assert_eq!(mix(Address::from_bits(u128::from(state))), output);
        // The upper half counts as well, turned, so that equal halves do not cancel out.
        assert_eq!(mix(Address::from_bits(u128::from(state.rotate_right(32)) << 64)), output);
        assert_eq!(mix(Address::from_bits(u128::from((state ^ 7).rotate_right(32)) << 64 | 7)), output);
    }
}
