//! LSTM (Hochreiter and Schmidhuber 1997) that forecasts a host's next window, so that a run of its own job between two of
//! its beats is a surprise although its size is not.
//!
//! How large a rise is, `top3_z` and the forest say; here the question is whether it was due. So amounts are held within what
//! is just a rise (`CLIP`), and of the forecast only those count that have a beat (`JUDGED`).
//!
//! One layer of 32 cells reads the eight host-relative amounts and the hour ([`super::features::SEQUENCE_NAMES`]) and
//! gives mean and variance of the next window's amounts; training minimises the Gaussian negative log-likelihood.
//! The forecast for a window is made from the windows before it and from its own hour. A host carries its state from
//! window to window, 256 bytes beside the last amounts, and training carries it as well, so what is learned is what is
//! done.
//!
//! Own code on purpose: the equations are a page, the gradient is checked against finite differences and the forward
//! pass against PyTorch (`tests/parity/lstm.py`). The library that would have been chosen, candle, brings 127 crates,
//! trains at two thirds of the speed and takes ten times as long for one window, since each operation allocates.
//! Only additions and multiplications in a fixed order are used, never a fused one and never the exponential of
//! a machine's library: the same data and seed give the same bytes, with and without AVX2.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::flow::simd::hints::{self, Arithmetic};
use crate::random::Random;

/// Values of a window that go in: [`super::features::SEQUENCE_NAMES`].
pub const INPUTS: usize = 10;
/// Cells. 16 came close on simulated hosts and 64 was not better.
pub const HIDDEN: usize = 32;
/// Amounts that are forecast: the first eight inputs.
pub const TARGETS: usize = 8;
const GATES: usize = 4 * HIDDEN;
const OUTPUTS: usize = 2 * TARGETS;

// The flat order of all weights. Rows belong to an input, columns to a gate: one input adds a whole row.
const HIDDEN_AT: usize = INPUTS * GATES;
const BIAS_AT: usize = HIDDEN_AT + HIDDEN * GATES;
const HEAD_AT: usize = BIAS_AT + GATES;
const HEAD_BIAS_AT: usize = HEAD_AT + HIDDEN * OUTPUTS;
const WEIGHTS: usize = HEAD_BIAS_AT + OUTPUTS;

/// Amounts that are forecast to be judged: conversations opened, bytes out and in, peers. What is new comes by chance, and who opens to
/// the host has a beat of his own: with them and refusals and ports, these made up 85 % of the surprise of the most surprising
/// thousandth of ordinary simulated windows, and next to no run between two beats was rarer than that.
const JUDGED: [usize; 4] = [0, 2, 3, 4];

/// Inputs are held within so many standard deviations of the host: twice as large a rise is no more out of time, and would count
/// four times as much.
const CLIP: (f32, f32) = (-1.5, 2.5);
/// Bounds of the forecast's log-variance: a standard deviation of 0.08 to 4.5 of the host's own.
const LOG_VARIANCE: (f32, f32) = (-5.0, 3.0);

/// A trained network.
#[derive(Clone, PartialEq, Debug)]
pub struct Lstm {
    weights: Box<[f32; WEIGHTS]>,
}

/// What the network remembers of one host.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct State {
    hidden: [f32; HIDDEN],
    cell: [f32; HIDDEN],
    /// Amounts of the last window.
    last: [f32; TARGETS],
}

/// What was to be expected of a host's window.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Forecast {
    /// Expected amounts, in standard deviations of the host.
    pub mean: [f32; TARGETS],
    /// Logarithm of their variance.
    pub log_variance: [f32; TARGETS],
}

/// How a network is trained.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Training {
    /// Passes over all series.
    pub epochs: u32,
    /// Same series and same seed give the same weights.
    pub seed: u64,
    /// Windows that the gradient looks back over. 96 windows of 5 minutes are eight hours: three runs of a job of every 150
    /// minutes.
    pub span: usize,
    /// Series that share a step of the optimiser.
    pub batch: usize,
    /// Step of the optimiser (Adam); a third of it in the last third of the epochs.
    pub rate: f32,
}

impl Default for Training {
    fn default() -> Training {
        Training { epochs: 40, seed: 27, span: 96, batch: 16, rate: 3e-3 }
    }
}

/// One epoch's end.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// From 1.
    pub epoch: u32,
    /// Mean negative log-likelihood of a window over the epoch, without its constant.
    pub loss: f64,
}

/// Why bytes are not a network, or series cannot be learned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LstmError {
    /// Nothing to learn from.
    #[error("train the sequence model: there is no series of windows")]
    NoSeries,
    /// The training came to nothing.
    #[error("train the sequence model: the loss of epoch {0} is not finite; a smaller rate may help")]
    Diverged(u32),
    /// The bytes are not what [`Lstm::to_bytes`] writes.
    #[error("read the sequence model: {0}")]
    Malformed(String),
}

// === impl State ===

impl Default for State {
    fn default() -> State {
        State { hidden: [0.0; HIDDEN], cell: [0.0; HIDDEN], last: [0.0; TARGETS] }
    }
}

impl State {
    /// How many numbers a state is.
    pub const VALUES: usize = 2 * HIDDEN + TARGETS;

    /// The state as numbers.
    pub fn to_values(&self) -> [f32; Self::VALUES] {
        let mut values = [0.0; Self::VALUES];
        values[..HIDDEN].copy_from_slice(&self.hidden);
        values[HIDDEN..2 * HIDDEN].copy_from_slice(&self.cell);
        values[2 * HIDDEN..].copy_from_slice(&self.last);
        values
    }

    /// A state from its numbers; what is not finite becomes 0.
    pub fn from_values(values: &[f32; Self::VALUES]) -> State {
        let known = |v: f32| if v.is_finite() { v } else { 0.0 };
        State {
            hidden: std::array::from_fn(|i| known(values[i])),
            cell: std::array::from_fn(|i| known(values[HIDDEN + i])),
            last: std::array::from_fn(|i| known(values[2 * HIDDEN + i])),
        }
    }

    /// What goes in for a window: the amounts before it, and its hour.
    #[inline(always)]
    fn input(&self, window: &[f32; INPUTS]) -> [f32; INPUTS] {
        std::array::from_fn(|i| if i < TARGETS { self.last[i] } else { bounded(window[i]) })
    }
}

// === impl Forecast ===

impl Forecast {
    /// Squared upward surprise of each amount that is judged, in variances of the forecast; 0 for the others. Less traffic than
    /// expected is no attack and counts 0; one-sidedness was worth more than any other choice on host-relative features.
    pub fn surprise(&self, window: &[f32; INPUTS]) -> [f32; TARGETS] {
        std::array::from_fn(|target| {
            if !JUDGED.contains(&target) {
                return 0.0;
            }
            let above = (bounded(window[target]) - self.mean[target]).max(0.0);
            above * above * exp(-self.log_variance[target])
        })
    }

    /// Gaussian negative log-likelihood of what is judged of a window, without its constant.
    pub fn loss(&self, window: &[f32; INPUTS]) -> f32 {
        JUDGED
            .into_iter()
            .map(|target| {
                let error = bounded(window[target]) - self.mean[target];
                0.5 * (self.log_variance[target] + error * error * exp(-self.log_variance[target]))
            })
            .sum()
    }
}

// === impl Lstm ===

impl Lstm {
    /// Most bytes of the stored form.
    pub const BYTES_MAX: usize = 1 << 20;

    /// The forecast for a closed window, made from what came before it and from its hour; the window then becomes part
    /// of the host's state.
    pub fn forecast(&self, state: &mut State, window: &[f32; INPUTS]) -> Forecast {
        self.take(state, window);
        let out = head(&self.weights, &state.hidden);
        Forecast {
            mean: std::array::from_fn(|t| out[t]),
            log_variance: std::array::from_fn(|t| out[TARGETS + t].clamp(LOG_VARIANCE.0, LOG_VARIANCE.1)),
        }
    }

    /// The forecast for the last window of a sequence, from an empty state: what a server does that keeps no hosts.
    pub fn forecast_last(&self, sequence: &[[f32; INPUTS]]) -> Option<Forecast> {
        let (last, before) = sequence.split_last()?;
        let mut state = State::default();
        for window in before {
            self.take(&mut state, window);
        }
        Some(self.forecast(&mut state, last))
    }

    /// The window becomes part of the host's state.
    fn take(&self, state: &mut State, window: &[f32; INPUTS]) {
        let input = state.input(window);
        self.step(state, &input);
        state.last = std::array::from_fn(|i| bounded(window[i]));
    }

    fn step(&self, state: &mut State, input: &[f32; INPUTS]) {
        hints::widely(Cell { weights: &self.weights, input, state });
    }

    /// Trains on series of consecutive windows, each of one host. `told` hears of every epoch.
    pub fn train(
        series: &[Vec<[f32; INPUTS]>],
        training: Training,
        mut told: impl FnMut(Progress),
    ) -> Result<Lstm, LstmError> {
        let series: Vec<&[[f32; INPUTS]]> = series.iter().map(Vec::as_slice).filter(|s| !s.is_empty()).collect();
        if series.is_empty() {
            return Err(LstmError::NoSeries);
        }
        let mut random = Random::seeded(training.seed);
        let mut lstm = Lstm::drawn(&mut random);
        let mut adam = Adam::new();
        let mut order: Vec<usize> = (0..series.len()).collect();
        for epoch in 1..=training.epochs {
            for at in (1..order.len()).rev() {
                order.swap(at, random.below(at + 1));
            }
            let late = epoch * 3 > training.epochs * 2;
            let rate = if late { training.rate / 3.0 } else { training.rate };
            let mut sum = (0.0f64, 0usize);
            for batch in order.chunks(training.batch.max(1)) {
                let batch: Vec<&[[f32; INPUTS]]> = batch.iter().map(|at| series[*at]).collect();
                lstm.learn(&batch, training.span.max(2), rate, &mut adam, &mut sum);
            }
            let loss = sum.0 / sum.1.max(1) as f64;
            if !loss.is_finite() {
                return Err(LstmError::Diverged(epoch));
            }
            told(Progress { epoch, loss });
        }
        Ok(lstm)
    }

    /// The stored form: safetensors with the names and shapes of `torch.nn.LSTM` and a linear `head`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let floats = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        let input = floats(transposed(&self.weights[..HIDDEN_AT], INPUTS, GATES));
        let hidden = floats(transposed(&self.weights[HIDDEN_AT..BIAS_AT], HIDDEN, GATES));
        let bias = floats(self.weights[BIAS_AT..HEAD_AT].to_vec());
        let none = floats(vec![0.0; GATES]);
        let head = floats(transposed(&self.weights[HEAD_AT..HEAD_BIAS_AT], HIDDEN, OUTPUTS));
        let head_bias = floats(self.weights[HEAD_BIAS_AT..].to_vec());
        let view = |shape: &[usize], bytes| {
            TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("the bytes are as many as the shape says")
        };
        let tensors = [
            ("weight_ih_l0", view(&[GATES, INPUTS], &input)),
            ("weight_hh_l0", view(&[GATES, HIDDEN], &hidden)),
            ("bias_ih_l0", view(&[GATES], &bias)),
            ("bias_hh_l0", view(&[GATES], &none)),
            ("head.weight", view(&[OUTPUTS, HIDDEN], &head)),
            ("head.bias", view(&[OUTPUTS], &head_bias)),
        ];
        safetensors::serialize(tensors, None).expect("names and shapes are fixed and sound")
    }

    /// Reads the stored form; names, shapes, types and finiteness are checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Lstm, LstmError> {
        if bytes.len() > Self::BYTES_MAX {
            return Err(LstmError::Malformed(format!("{} bytes, more than {}", bytes.len(), Self::BYTES_MAX)));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| LstmError::Malformed(e.to_string()))?;
        let read = |name: &str, shape: &[usize]| -> Result<Vec<f32>, LstmError> {
            let tensor = tensors.tensor(name).map_err(|e| LstmError::Malformed(e.to_string()))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
                let found = (tensor.dtype(), tensor.shape());
                return Err(LstmError::Malformed(format!("{name} is {found:?}, not F32 {shape:?}")));
            }
            let values: Vec<f32> =
                tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            match values.iter().find(|v| !v.is_finite() || v.abs() > 1e6) {
                Some(bad) => Err(LstmError::Malformed(format!("{name} holds {bad}"))),
                None => Ok(values),
            }
        };
        let mut weights = Vec::with_capacity(WEIGHTS);
        weights.extend(transposed(&read("weight_ih_l0", &[GATES, INPUTS])?, GATES, INPUTS));
        weights.extend(transposed(&read("weight_hh_l0", &[GATES, HIDDEN])?, GATES, HIDDEN));
        let biases = (read("bias_ih_l0", &[GATES])?, read("bias_hh_l0", &[GATES])?);
        weights.extend(biases.0.iter().zip(&biases.1).map(|(a, b)| a + b));
        weights.extend(transposed(&read("head.weight", &[OUTPUTS, HIDDEN])?, OUTPUTS, HIDDEN));
        weights.extend(read("head.bias", &[OUTPUTS])?);
        let weights = weights.try_into().expect("the shapes were checked");
        Ok(Lstm { weights })
    }

    /// Weights as PyTorch draws them, uniform within 1/sqrt(cells); a forget gate starts open (bias 1).
    fn drawn(random: &mut Random) -> Lstm {
        let bound = 1.0 / (HIDDEN as f64).sqrt();
        let mut weights: Box<[f32; WEIGHTS]> = Box::new([0.0; WEIGHTS]);
        weights.iter_mut().for_each(|w| *w = ((2.0 * random.unit() - 1.0) * bound) as f32);
        weights[BIAS_AT + HIDDEN..BIAS_AT + 2 * HIDDEN].fill(1.0);
        Lstm { weights }
    }

    /// One pass over a batch of series, span by span; states go from span to span, gradients do not.
    fn learn(&mut self, batch: &[&[[f32; INPUTS]]], span: usize, rate: f32, adam: &mut Adam, sum: &mut (f64, usize)) {
        let longest = batch.iter().map(|s| s.len()).max().unwrap_or(0);
        let mut states = vec![State::default(); batch.len()];
        let mut tape = Vec::with_capacity(span);
        let mut from = 0;
        while from < longest {
            let mut gradient: Box<[f32; WEIGHTS]> = Box::new([0.0; WEIGHTS]);
            let before = sum.1;
            for (series, state) in batch.iter().zip(&mut states) {
                let to = (from + span).min(series.len());
                if to > from {
                    let (weights, windows) = (&self.weights, &series[from..to]);
                    let (tape, gradient) = (&mut tape, &mut *gradient);
                    let loss = hints::widely(Span { weights, windows, state, tape, gradient });
                    sum.0 += loss;
                    sum.1 += to - from;
                }
            }
            let scale = 1.0 / (sum.1 - before).max(1) as f32;
            gradient.iter_mut().for_each(|g| *g *= scale);
            adam.step(&mut self.weights, &gradient, rate);
            from += span;
        }
    }
}

/// Holds an input within [`CLIP`]; what is not a number is unremarkable.
fn bounded(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(CLIP.0, CLIP.1) }
}

/// `rows x columns` to `columns x rows`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

// The arithmetic below is inlined into a plain and an AVX2 function; both give the same bits.

/// `e^x` to 2e-7 (relative) within ±87, beyond held there: Cephes' `expf`, without branches so that it is vectorised.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_3e-1] {
        p = p * r + coefficient;
    }
    let p = p * r * r + r + 1.0;
    let power = (shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23;
    p * f32::from_bits(power)
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// One step of the cell (gates in PyTorch's order: input, forget, candidate, output); leaves the activated gates behind.
#[inline(always)]
fn cell(weights: &[f32; WEIGHTS], input: &[f32; INPUTS], state: &mut State, gates: &mut [f32; GATES]) {
    gates.copy_from_slice(&weights[BIAS_AT..HEAD_AT]);
    // Half of the gates at a time stays in registers while all inputs are added; with a quarter each addition waits for the one before.
    const HALF: usize = GATES / 2;
    for at in [0, HALF] {
        let mut sums = [0.0f32; HALF];
        sums.copy_from_slice(&gates[at..at + HALF]);
        for (k, x) in input.iter().chain(&state.hidden).enumerate() {
            let row = &weights[k * GATES + at..][..HALF];
            for j in 0..HALF {
                sums[j] += x * row[j];
            }
        }
        gates[at..at + HALF].copy_from_slice(&sums);
    }
    let (io, go) = gates.split_at_mut(2 * HIDDEN);
    let (candidate, output) = go.split_at_mut(HIDDEN);
    io.iter_mut().for_each(|g| *g = sigmoid(*g));
    candidate.iter_mut().for_each(|g| *g = tanh(*g));
    output.iter_mut().for_each(|g| *g = sigmoid(*g));
    for j in 0..HIDDEN {
        state.cell[j] = io[HIDDEN + j] * state.cell[j] + io[j] * candidate[j];
        state.hidden[j] = output[j] * tanh(state.cell[j]);
    }
}

#[inline(always)]
fn head(weights: &[f32; WEIGHTS], hidden: &[f32; HIDDEN]) -> [f32; OUTPUTS] {
    let mut out = [0.0f32; OUTPUTS];
    out.copy_from_slice(&weights[HEAD_BIAS_AT..]);
    for (k, h) in hidden.iter().enumerate() {
        let row = &weights[HEAD_AT + k * OUTPUTS..][..OUTPUTS];
        for j in 0..OUTPUTS {
            out[j] += h * row[j];
        }
    }
    out
}

/// One step of one host.
struct Cell<'a> {
    weights: &'a [f32; WEIGHTS],
    input: &'a [f32; INPUTS],
    state: &'a mut State,
}

impl Arithmetic for Cell<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        cell(self.weights, self.input, self.state, &mut [0.0; GATES]);
    }
}

// === training ===

/// What a step leaves for its gradient.
struct Step {
    input: [f32; INPUTS],
    before: State,
    gates: [f32; GATES],
    after: State,
}

/// A span of windows whose gradient is wanted.
struct Span<'a> {
    weights: &'a [f32; WEIGHTS],
    windows: &'a [[f32; INPUTS]],
    state: &'a mut State,
    tape: &'a mut Vec<Step>,
    gradient: &'a mut [f32; WEIGHTS],
}

impl Arithmetic for Span<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        backpropagate(self.weights, self.windows, self.state, self.tape, self.gradient)
    }
}

/// Runs a span of windows, adds the gradient of its losses and returns their sum.
#[inline(always)]
fn backpropagate(
    weights: &[f32; WEIGHTS],
    windows: &[[f32; INPUTS]],
    state: &mut State,
    tape: &mut Vec<Step>,
    gradient: &mut [f32; WEIGHTS],
) -> f64 {
    tape.clear();
    for window in windows {
        let input = state.input(window);
        let before = *state;
        let mut gates = [0.0; GATES];
        cell(weights, &input, state, &mut gates);
        state.last = std::array::from_fn(|i| bounded(window[i]));
        tape.push(Step { input, before, gates, after: *state });
    }
    let mut loss = 0.0f64;
    let (mut d_hidden, mut d_cell) = ([0.0f32; HIDDEN], [0.0f32; HIDDEN]);
    for (step, target) in tape.iter().zip(windows).rev() {
        loss += head_gradient(weights, &step.after.hidden, target, &mut d_hidden, gradient);
        cell_gradient(weights, step, &mut d_hidden, &mut d_cell, gradient);
    }
    loss
}

/// Loss of one forecast; adds its gradient to the head's and to that of the hidden state.
#[inline(always)]
fn head_gradient(
    weights: &[f32; WEIGHTS],
    hidden: &[f32; HIDDEN],
    window: &[f32; INPUTS],
    d_hidden: &mut [f32; HIDDEN],
    gradient: &mut [f32; WEIGHTS],
) -> f64 {
    let out = head(weights, hidden);
    let mut d_out = [0.0f32; OUTPUTS];
    let mut loss = 0.0f64;
    for target in JUDGED {
        let raw = out[TARGETS + target];
        let log_variance = raw.clamp(LOG_VARIANCE.0, LOG_VARIANCE.1);
        let error = bounded(window[target]) - out[target];
        let precision = exp(-log_variance);
        loss += f64::from(0.5 * (log_variance + error * error * precision));
        d_out[target] = -error * precision;
        // Outside its bounds the variance does not move the loss.
        d_out[TARGETS + target] = if raw == log_variance { 0.5 * (1.0 - error * error * precision) } else { 0.0 };
    }
    for (k, h) in hidden.iter().enumerate() {
        let at = HEAD_AT + k * OUTPUTS;
        for j in 0..OUTPUTS {
            gradient[at + j] += h * d_out[j];
            d_hidden[k] += weights[at + j] * d_out[j];
        }
    }
    for j in 0..OUTPUTS {
        gradient[HEAD_BIAS_AT + j] += d_out[j];
    }
    loss
}

/// Takes the gradient through one step of the cell, from the states after it to those before it.
#[inline(always)]
fn cell_gradient(
    weights: &[f32; WEIGHTS],
    step: &Step,
    d_hidden: &mut [f32; HIDDEN],
    d_cell: &mut [f32; HIDDEN],
    gradient: &mut [f32; WEIGHTS],
) {
    let gate = |number: usize, j: usize| step.gates[number * HIDDEN + j];
    let mut d_gates = [0.0f32; GATES];
    for j in 0..HIDDEN {
        let (input, forget, candidate, output) = (gate(0, j), gate(1, j), gate(2, j), gate(3, j));
        let squashed = tanh(step.after.cell[j]);
        let d_c = d_cell[j] + d_hidden[j] * output * (1.0 - squashed * squashed);
        d_gates[j] = d_c * candidate * input * (1.0 - input);
        d_gates[HIDDEN + j] = d_c * step.before.cell[j] * forget * (1.0 - forget);
        d_gates[2 * HIDDEN + j] = d_c * input * (1.0 - candidate * candidate);
        d_gates[3 * HIDDEN + j] = d_hidden[j] * squashed * output * (1.0 - output);
        d_cell[j] = d_c * forget;
    }
    for (k, x) in step.input.iter().chain(&step.before.hidden).enumerate() {
        let row = &mut gradient[k * GATES..][..GATES];
        for j in 0..GATES {
            row[j] += x * d_gates[j];
        }
    }
    for j in 0..GATES {
        gradient[BIAS_AT + j] += d_gates[j];
    }
    for k in 0..HIDDEN {
        let row = &weights[HIDDEN_AT + k * GATES..][..GATES];
        let mut sums = [0.0f32; 16];
        for j in 0..GATES {
            sums[j % 16] += row[j] * d_gates[j];
        }
        d_hidden[k] = sums.iter().sum();
    }
}

/// Adam (Kingma and Ba 2015) with the gradient's norm held at 1.
struct Adam {
    mean: Vec<f32>,
    square: Vec<f32>,
    steps: i32,
}

impl Adam {
    fn new() -> Adam {
        Adam { mean: vec![0.0; WEIGHTS], square: vec![0.0; WEIGHTS], steps: 0 }
    }

    fn step(&mut self, weights: &mut [f32; WEIGHTS], gradient: &[f32; WEIGHTS], rate: f32) {
        const MEAN: f32 = 0.9;
        const SQUARE: f32 = 0.999;
        let norm = gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt() as f32;
        let shrink = if norm > 1.0 { 1.0 / norm } else { 1.0 };
        self.steps += 1;
        let (bias_mean, bias_square) = (1.0 - power(MEAN, self.steps), 1.0 - power(SQUARE, self.steps));
        for at in 0..WEIGHTS {
            let g = gradient[at] * shrink;
            self.mean[at] = MEAN * self.mean[at] + (1.0 - MEAN) * g;
            self.square[at] = SQUARE * self.square[at] + (1.0 - SQUARE) * g * g;
            let spread = (self.square[at] / bias_square).sqrt() + 1e-8;
            weights[at] -= rate * (self.mean[at] / bias_mean) / spread;
        }
    }
}

/// `base^n` by squaring: `powi` leaves its rounding to the compiler.
fn power(mut base: f32, mut n: i32) -> f32 {
    let mut result = 1.0f32;
    while n > 0 {
        if n & 1 == 1 {
            result *= base;
        }
        base *= base;
        n >>= 1;
    }
    result
}

#[cfg(test)]
mod tests;
