use base64::Engine as _;
use proptest::prelude::*;

use super::*;

/// A host with a daily rhythm: busy from hour 8 to 18, in two of its amounts.
fn rhythm(days: usize, seed: u64) -> Vec<[f32; INPUTS]> {
    let mut random = Random::seeded(seed);
    let mut noise = || ((random.bits() >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.6;
    (0..days * 288)
        .map(|window| {
            let hour = (window % 288) as f32 / 12.0;
            let busy = if (8.0..18.0).contains(&hour) { 2.0 } else { -1.0 };
            let angle = hour / 24.0 * std::f32::consts::TAU;
            let mut values: [f32; INPUTS] = std::array::from_fn(|_| noise());
            values[0] += busy;
            values[2] += busy;
            values[8] = angle.sin();
            values[9] = angle.cos();
            values
        })
        .collect()
}

fn loss_of(weights: &[f32; WEIGHTS], windows: &[[f32; INPUTS]]) -> f64 {
    let lstm = Lstm { weights: Box::new(*weights) };
    let mut state = State::default();
    windows.iter().map(|window| f64::from(lstm.forecast(&mut state, window).loss(window))).sum()
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    let windows = &rhythm(1, 3)[90..110];
    let lstm = Lstm::drawn(&mut Random::seeded(5));
    let mut gradient = Box::new([0.0; WEIGHTS]);
    backpropagate(&lstm.weights, windows, &mut State::default(), &mut Vec::new(), &mut gradient);
    let mut checked = 0;
    for at in (0..WEIGHTS).step_by(37) {
        let nudge = 4e-3f32;
        let mut up = lstm.weights.clone();
        up[at] += nudge;
        let mut down = lstm.weights.clone();
        down[at] -= nudge;
        let numeric = (loss_of(&up, windows) - loss_of(&down, windows)) / f64::from(2.0 * nudge);
        let exact = f64::from(gradient[at]);
        let allowed = 2e-3 + 0.01 * exact.abs().max(numeric.abs());
        assert!((numeric - exact).abs() < allowed, "weight {at}: {numeric} against {exact}");
        checked += usize::from(exact.abs() > 0.05);
    }
    assert!(checked > 50, "only {checked} gradients were large enough to say anything");
}

#[test]
fn training_learns_the_rhythm_of_the_day() {
    let series: Vec<_> = (0..4).map(|host| rhythm(2, host)).collect();
    let training = Training { epochs: 16, batch: 1, rate: 1e-2, ..Training::default() };
    let mut losses = Vec::new();
    let lstm = Lstm::train(&series, training, |progress| losses.push(progress.loss)).unwrap();
    assert!(losses[15] < losses[0] - 1.0, "{losses:?}");
    // The same busy window, expected by day and not by night.
    let host = rhythm(2, 99);
    let surprise_at = |window: usize| {
        let mut sequence = host[window - 40..=window].to_vec();
        let busy = &mut sequence[40];
        busy[0] = 2.0;
        busy[2] = 2.0;
        let busy = *busy;
        lstm.forecast_last(&sequence).unwrap().surprise(&busy).iter().sum::<f32>()
    };
    let (noon, night) = (surprise_at(288 + 144), surprise_at(288 + 36));
    assert!(night > 5.0 * noon, "at noon {noon}, at three in the morning {night}");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let series = vec![rhythm(1, 1)];
    let bytes = |seed| {
        let training = Training { epochs: 1, seed, ..Training::default() };
        Lstm::train(&series, training, |_| ()).unwrap().to_bytes()
    };
    assert_eq!(bytes(1), bytes(1));
    assert_ne!(bytes(1), bytes(2));
}

#[test]
fn with_and_without_avx2_the_bits_are_the_same() {
    let lstm = Lstm::drawn(&mut Random::seeded(6));
    let (mut fast, mut plain) = (State::default(), State::default());
    for window in rhythm(1, 7) {
        lstm.step(&mut fast, &window);
        cell(&lstm.weights, &window, &mut plain, &mut [0.0; GATES]);
    }
    assert_eq!(fast, plain);
}

#[test]
fn the_stored_form_round_trips() {
    let lstm = Lstm::drawn(&mut Random::seeded(8));
    assert_eq!(Lstm::from_bytes(&lstm.to_bytes()).unwrap(), lstm);
}

#[test]
fn a_tensor_of_another_shape_is_refused_by_name() {
    let lstm = Lstm::drawn(&mut Random::seeded(8));
    let mut bytes = lstm.to_bytes();
    let at = bytes.windows(8).position(|b| b == b"[128,10]").unwrap();
    bytes[at..at + 8].copy_from_slice(b"[10,128]");
    let told = Lstm::from_bytes(&bytes).map(|_| ()).unwrap_err().to_string();
    assert!(told.contains("weight_ih_l0"), "{told}");
}

#[test]
fn nothing_to_learn_from_is_an_error() {
    assert_eq!(Lstm::train(&[vec![]], Training::default(), |_| ()).unwrap_err(), LstmError::NoSeries);
}

#[test]
fn the_exponential_is_exact_to_a_few_units_of_the_last_place() {
    for step in -8_600..8_600 {
        let x = step as f32 / 100.0;
        let exact = f64::from(x).exp();
        assert!((f64::from(exp(x)) / exact - 1.0).abs() < 4e-7, "{x}");
    }
}

/// Weights, windows and forecasts from `torch.nn.LSTM`, made by `tests/parity/lstm.py`.
#[test]
fn the_forward_pass_is_that_of_pytorch() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../../../tests/parity/lstm.json")).unwrap();
    let floats = |value: &serde_json::Value| -> Vec<f32> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    };
    let bytes = base64::engine::general_purpose::STANDARD.decode(golden["safetensors"].as_str().unwrap()).unwrap();
    let lstm = Lstm::from_bytes(&bytes).unwrap();
    let mut state = State::default();
    let mut worst = 0.0f32;
    for (window, expected) in golden["windows"].as_array().unwrap().iter().zip(golden["outputs"].as_array().unwrap()) {
        lstm.step(&mut state, &floats(window).try_into().unwrap());
        for (ours, theirs) in head(&lstm.weights, &state.hidden).iter().zip(floats(expected)) {
            worst = worst.max((ours - theirs).abs());
        }
    }
    assert!(worst < 1e-5, "{worst}");
}

proptest! {
    #[test]
    fn no_input_makes_a_forecast_that_is_not_finite(
        windows in proptest::collection::vec(proptest::array::uniform10(proptest::num::f32::ANY), 1..20),
    ) {
        let lstm = Lstm::drawn(&mut Random::seeded(2));
        let mut state = State::default();
        for window in windows {
            let forecast = lstm.forecast(&mut state, &window);
            prop_assert!(forecast.mean.iter().chain(&forecast.log_variance).all(|v| v.is_finite()));
            prop_assert!(forecast.surprise(&window).iter().all(|v| v.is_finite() && *v >= 0.0));
        }
    }

    #[test]
    fn noise_is_never_a_network(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Lstm::from_bytes(&noise).is_err());
    }
}
