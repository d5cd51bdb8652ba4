//! The feature vector `hw27-v1`: one host, one closed 5-minute window.
//!
//! Sixteen amounts are held against the host's own past: z(x) = (ln(1+x) − mean) / sd, clipped to −1…30, where mean and
//! variance are exponentially weighted (weight 0.02 a window, about four hours; 1/n while the host is new) and updated
//! winsorised at ±4 sd, so that an attack cannot teach itself in. One-sided: doing less than usual is not an attack.
//! Ratios, entropies and the largest share are not put through the logarithm. Eight amounts stay absolute, and three
//! aggregates of the z-scores close the vector.
//!
//! | raw | unit | meaning in the window |
//! | --- | --- | --- |
//! | `flows_out`, `flows_in` | conversations | opened by the host, opened towards it |
//! | `bytes_out`, `ext_bytes_out` | bytes | sent by the host, and of these to outside |
//! | `uniq_dst`, `uniq_dport`, `uniq_src_in` | count | distinct peers opened to, their ports, peers that opened (estimated) |
//! | `new_dst` | count | (peer, port) the host opened to for the first time in the engine's memory |
//! | `reject_out`, `reject_in` | conversations | opened by or towards the host that failed |
//! | `dst_entropy`, `dport_entropy` | bits | Shannon entropy of conversations over 64 hashed buckets of peers, of ports |
//! | `avg_bytes_per_flow_out` | bytes | `bytes_out` / `flows_out` |
//! | `iat_cv` | ratio | sd / mean of conversations opened per 10 s: 0 is a clock, 1 is random, more is bursts |
//! | `internal_admin_dst` | count | distinct internal peers opened to on 22, 135, 445, 3389, 5985 (to 64) |
//! | `max_dst_share` | ratio | share of the most used bucket of peers |

use cardinality_estimator::CardinalityEstimator;
use serde::{Deserialize, Serialize};

use crate::flow::{Address, EventTime};
use crate::ml::FeatureVector;

/// Length of a feature window, s.
pub const WINDOW_SECONDS: u32 = 300;

/// Name of this layout; an artifact trained on another one is refused.
pub const SCHEMA: &str = "hw27-v1";

/// The vector: sixteen z-scores, eight absolute amounts, three aggregates.
pub const NAMES: [&str; 27] = [
    "z_flows_out",
    "z_flows_in",
    "z_bytes_out",
    "z_ext_bytes_out",
    "z_uniq_dst",
    "z_uniq_dport",
    "z_uniq_src_in",
    "z_new_dst",
    "z_reject_out",
    "z_reject_in",
    "z_dst_entropy",
    "z_dport_entropy",
    "z_avg_bytes_per_flow_out",
    "z_iat_cv",
    "z_internal_admin_dst",
    "z_max_dst_share",
    "log_new_dst",
    "reject_ratio_out",
    "log_bytes_ratio",
    "fanout_ratio",
    "small_flow_ratio",
    "log_internal_admin_dst",
    "log_uniq_dport",
    "log_iat_cv",
    "log_max_z",
    "log_top3_z",
    "log_sum_z2",
];

/// How many of [`NAMES`] are z-scores; they come first.
pub const Z_COUNT: usize = 16;

/// Inputs of the sequence model: two-sided z-scores clipped to ±6, and the hour of day.
pub const SEQUENCE_NAMES: [&str; 10] = [
    "z_flows_out",
    "z_flows_in",
    "z_bytes_out",
    "z_bytes_in",
    "z_uniq_dst",
    "z_uniq_dport",
    "z_new_dst",
    "z_reject_out",
    "sin_hour",
    "cos_hour",
];

/// The amounts behind the z-scores, in their order.
pub const RAW_NAMES: [&str; 16] = [
    "flows_out",
    "flows_in",
    "bytes_out",
    "ext_bytes_out",
    "uniq_dst",
    "uniq_dport",
    "uniq_src_in",
    "new_dst",
    "reject_out",
    "reject_in",
    "dst_entropy",
    "dport_entropy",
    "avg_bytes_per_flow_out",
    "iat_cv",
    "internal_admin_dst",
    "max_dst_share",
];

/// Those of [`RAW_NAMES`] that are ratios or entropies and stay out of the logarithm.
const LINEAR: [bool; 16] =
    [false, false, false, false, false, false, false, false, false, false, true, true, false, true, false, true];

/// What one host does in one window, while it is open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostWindow {
    flows_out: u32,
    flows_in: u32,
    bytes_out: u64,
    bytes_in: u64,
    ext_bytes_out: u64,
    new_dst: u32,
    reject_out: u32,
    reject_in: u32,
    small_flows: u32,
    destinations: CardinalityEstimator<u64>,
    ports: CardinalityEstimator<u64>,
    sources: CardinalityEstimator<u64>,
    destination_buckets: Buckets,
    port_buckets: Buckets,
    slots: [u16; 30],
    admin: u64,
}

/// Counts in 64 hashed buckets, each held at 65,535; in place, since there is one for every host and window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Buckets([[u16; 32]; 2]);

impl Buckets {
    /// Counts one in the bucket of the hash's upper six bits.
    fn count(&mut self, hash: u64) {
        let bucket = (hash >> 58) as usize;
        let count = &mut self.0[bucket / 32][bucket % 32];
        *count = count.saturating_add(1);
    }

    fn join(&mut self, other: &Buckets) {
        for (mine, &theirs) in self.0.iter_mut().flatten().zip(other.0.iter().flatten()) {
            *mine = theirs.max(*mine);
        }
    }

    fn counts(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flatten().map(|&count| u32::from(count))
    }

    /// Shannon entropy over the buckets, bits.
    fn entropy(&self) -> f64 {
        let total = f64::from(self.counts().sum::<u32>().max(1));
        self.counts().filter(|&n| n > 0).map(|n| f64::from(n) / total).map(|share| -share * share.log2()).sum()
    }
}

impl Default for HostWindow {
    fn default() -> Self {
        HostWindow {
            flows_out: 0,
            flows_in: 0,
            bytes_out: 0,
            bytes_in: 0,
            ext_bytes_out: 0,
            new_dst: 0,
            reject_out: 0,
            reject_in: 0,
            small_flows: 0,
            destinations: CardinalityEstimator::new(),
            ports: CardinalityEstimator::new(),
            sources: CardinalityEstimator::new(),
            destination_buckets: Buckets::default(),
            port_buckets: Buckets::default(),
            slots: [0; 30],
            admin: 0,
        }
    }
}

/// What a host opened.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// A well-mixed hash of the peer's address.
    pub peer_hash: u64,
    /// The service's port.
    pub port: u16,
    /// IP bytes sent.
    pub sent: u64,
    /// IP bytes received.
    pub received: u64,
    /// Packets sent.
    pub packets: u32,
    /// Whether it failed.
    pub failed: bool,
    /// Whether the host never opened to this (peer, port) before.
    pub new: bool,
    /// Whether the peer is one of ours.
    pub internal: bool,
    /// First packet.
    pub start: EventTime,
}

impl HostWindow {
    /// Notes a conversation that the host opened.
    pub fn opened(&mut self, o: &Opened) {
        self.flows_out += 1;
        self.bytes_out += o.sent;
        self.bytes_in += o.received;
        self.ext_bytes_out += if o.internal { 0 } else { o.sent };
        self.new_dst += u32::from(o.new);
        self.reject_out += u32::from(o.failed);
        self.small_flows += u32::from(o.packets <= 3);
        self.destinations.insert_hash(o.peer_hash);
        let port_hash = u64::from(o.port).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let port_hash = port_hash ^ (port_hash >> 29);
        self.ports.insert_hash(port_hash.wrapping_mul(0xbf58_476d_1ce4_e5b9));
        self.destination_buckets.count(o.peer_hash);
        self.port_buckets.count(port_hash);
        let slot = &mut self.slots[(o.start.0 % WINDOW_SECONDS / 10) as usize];
        *slot = slot.saturating_add(1);
        if o.internal && matches!(o.port, 22 | 135 | 445 | 3389 | 5985) {
            self.admin |= 1 << (o.peer_hash & 63);
        }
    }

    /// Notes a conversation that a peer opened towards the host.
    pub fn accepted(&mut self, peer_hash: u64, sent: u64, received: u64, failed: bool, internal: bool) {
        self.flows_in += 1;
        self.bytes_out += sent;
        self.bytes_in += received;
        self.ext_bytes_out += if internal { 0 } else { sent };
        self.reject_in += u32::from(failed);
        self.sources.insert_hash(peer_hash);
    }

    /// Takes over what another engine saw of the same host in the same window. What both saw is not told from what each saw
    /// alone, so of every amount the larger counts.
    pub fn join(&mut self, other: &HostWindow) {
        let larger = |mine: &mut u32, theirs: u32| *mine = theirs.max(*mine);
        larger(&mut self.flows_out, other.flows_out);
        larger(&mut self.flows_in, other.flows_in);
        larger(&mut self.new_dst, other.new_dst);
        larger(&mut self.reject_out, other.reject_out);
        larger(&mut self.reject_in, other.reject_in);
        larger(&mut self.small_flows, other.small_flows);
        self.bytes_out = self.bytes_out.max(other.bytes_out);
        self.bytes_in = self.bytes_in.max(other.bytes_in);
        self.ext_bytes_out = self.ext_bytes_out.max(other.ext_bytes_out);
        self.destinations.merge(&other.destinations);
        self.ports.merge(&other.ports);
        self.sources.merge(&other.sources);
        self.destination_buckets.join(&other.destination_buckets);
        self.port_buckets.join(&other.port_buckets);
        for (mine, &theirs) in self.slots.iter_mut().zip(&other.slots) {
            *mine = theirs.max(*mine);
        }
        self.admin |= other.admin;
    }

    fn raw(&self) -> [f64; 16] {
        let slots = self.slots.iter().map(|&n| f64::from(n));
        let mean = f64::from(self.flows_out) / self.slots.len() as f64;
        let variance = slots.map(|n| (n - mean).powi(2)).sum::<f64>() / self.slots.len() as f64;
        let most = f64::from(self.destination_buckets.counts().max().unwrap_or(0));
        [
            f64::from(self.flows_out),
            f64::from(self.flows_in),
            self.bytes_out as f64,
            self.ext_bytes_out as f64,
            self.destinations.estimate() as f64,
            self.ports.estimate() as f64,
            self.sources.estimate() as f64,
            f64::from(self.new_dst),
            f64::from(self.reject_out),
            f64::from(self.reject_in),
            self.destination_buckets.entropy(),
            self.port_buckets.entropy(),
            self.bytes_out as f64 / f64::from(self.flows_out.max(1)),
            if mean > 0.0 { variance.sqrt() / mean } else { 0.0 },
            f64::from(self.admin.count_ones()),
            most / f64::from(self.flows_out.max(1)),
        ]
    }
}

/// What is normal for one host: mean and variance of each amount, and of `bytes_in` for the sequence model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Baseline {
    /// Windows learned from, saturating.
    pub windows: u32,
    /// Latest window.
    pub last_seen: EventTime,
    mean: [f32; 17],
    variance: [f32; 17],
}

impl Default for Baseline {
    fn default() -> Self {
        Baseline { windows: 0, last_seen: EventTime(0), mean: [0.0; 17], variance: [0.0; 17] }
    }
}

/// Variance is never taken to be smaller: ln-units squared, about ten per cent of an amount.
const VARIANCE_FLOOR: f64 = 0.01;
/// Weight of a window once a host is known: about 50 windows, four hours.
const WEIGHT: f64 = 0.02;

impl Baseline {
    /// Makes a closed window's vector, then learns from the window.
    pub fn vector(&mut self, host: Address, window: EventTime, closed: &HostWindow) -> FeatureVector {
        let raw = closed.raw();
        let mut amounts = [0f64; 17];
        for (at, &value) in raw.iter().enumerate() {
            amounts[at] = if LINEAR[at] { value } else { value.ln_1p() };
        }
        amounts[16] = (closed.bytes_in as f64).ln_1p();
        let z = self.z(&amounts);
        let history = self.windows;
        self.learn(&amounts, window);
        let positive = |z: f64| z.clamp(-1.0, 30.0);
        let mut values: Vec<f32> = z[..16].iter().map(|&z| positive(z) as f32).collect();
        let flows = f64::from(closed.flows_out.max(1));
        let absolute = [
            raw[7].ln_1p(),
            f64::from(closed.reject_out) / flows,
            ((closed.bytes_out as f64 + 1e3) / (closed.bytes_in as f64 + 1e3)).ln(),
            raw[4] / flows,
            f64::from(closed.small_flows) / flows,
            raw[14].ln_1p(),
            raw[5].ln_1p(),
            raw[13].ln_1p(),
        ];
        values.extend(absolute.map(|v| v as f32));
        let mut rises: Vec<f64> = z[..16].iter().map(|&z| positive(z).max(0.0)).collect();
        rises.sort_unstable_by(|a, b| b.total_cmp(a));
        let aggregates = [
            rises[0].ln_1p(),
            rises[..3].iter().sum::<f64>().ln_1p(),
            rises.iter().map(|z| z * z).sum::<f64>().ln_1p(),
        ];
        values.extend(aggregates.map(|v| v as f32));
        let two_sided = |at: usize| z[at].clamp(-6.0, 6.0) as f32;
        let angle = f64::from(window.0 % 86_400) / 86_400.0 * std::f64::consts::TAU;
        let sequence = vec![
            two_sided(0),
            two_sided(1),
            two_sided(2),
            two_sided(16),
            two_sided(4),
            two_sided(5),
            two_sided(7),
            two_sided(8),
            angle.sin() as f32,
            angle.cos() as f32,
        ];
        FeatureVector { host, window, history, values, sequence, raw: raw.map(|v| v as f32).to_vec() }
    }

    /// Takes over what another engine has learned of the same host, where that is better founded: averages cannot be put
    /// together when nobody knows which windows both have seen.
    pub fn join(&mut self, other: Baseline) {
        let founded = |baseline: &Baseline| (baseline.windows, baseline.last_seen);
        if founded(&other) > founded(self) {
            *self = other;
        }
    }

    fn z(&self, amounts: &[f64; 17]) -> [f64; 17] {
        let mut z = [0f64; 17];
        if self.windows < 2 {
            return z;
        }
        for at in 0..17 {
            let sd = f64::from(self.variance[at]).max(VARIANCE_FLOOR).sqrt();
            z[at] = (amounts[at] - f64::from(self.mean[at])) / sd;
        }
        z
    }

    fn learn(&mut self, amounts: &[f64; 17], window: EventTime) {
        let weight = WEIGHT.max(1.0 / f64::from(self.windows + 1));
        for (at, &amount) in amounts.iter().enumerate() {
            let (mean, variance) = (f64::from(self.mean[at]), f64::from(self.variance[at]));
            let sd = variance.max(VARIANCE_FLOOR).sqrt();
            // The first few windows define the scale; after that no window may pull further than four sd.
            let amount = if self.windows < 6 { amount } else { amount.clamp(mean - 4.0 * sd, mean + 4.0 * sd) };
            let step = amount - mean;
            self.mean[at] = (mean + weight * step) as f32;
            self.variance[at] = ((1.0 - weight) * (variance + weight * step * step)) as f32;
        }
        self.windows = self.windows.saturating_add(1);
        self.last_seen = window;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(flows: u32, bytes: u64) -> HostWindow {
        let mut window = HostWindow::default();
        for n in 0..flows {
            window.opened(&Opened {
                peer_hash: u64::from(n % 5).wrapping_mul(0x9e37_79b9_7f4a_7c15),
                port: 443,
                sent: bytes,
                received: bytes,
                packets: 10,
                failed: false,
                new: false,
                internal: false,
                start: EventTime(n * 7 % 300),
            });
        }
        window
    }

    #[test]
    fn a_host_that_does_what_it_always_does_is_not_unusual_and_a_burst_is() {
        let mut baseline = Baseline::default();
        let host = Address::v4(1);
        for n in 0..60 {
            baseline.vector(host, EventTime(n * 300), &window(20 + n % 3, 1_000));
        }
        let calm = baseline.clone().vector(host, EventTime(60 * 300), &window(21, 1_000));
        let burst = baseline.vector(host, EventTime(60 * 300), &window(2_000, 1_000));
        assert_eq!(
            (calm.values.len(), calm.sequence.len(), calm.raw.len()),
            (NAMES.len(), SEQUENCE_NAMES.len(), RAW_NAMES.len())
        );
        assert!(calm.values[..Z_COUNT].iter().all(|z| z.abs() < 1.5), "{:?}", calm.values);
        assert!(burst.values[0] > 10.0 && burst.values[25] > calm.values[25], "{:?}", burst.values);
    }

    #[test]
    fn an_attack_cannot_teach_itself_in_within_an_hour() {
        let mut baseline = Baseline::default();
        let host = Address::v4(1);
        for n in 0..60 {
            baseline.vector(host, EventTime(n * 300), &window(20 + n % 3, 1_000));
        }
        for n in 60..72 {
            let vector = baseline.vector(host, EventTime(n * 300), &window(5_000, 1_000));
            assert!(vector.values[0] > 5.0, "window {n} of the attack passes for normal: {:?}", vector.values);
        }
    }

    #[test]
    fn every_value_is_finite_for_an_empty_window() {
        let vector = Baseline::default().vector(Address::v4(1), EventTime(0), &HostWindow::default());
        assert!(vector.values.iter().chain(&vector.sequence).chain(&vector.raw).all(|v| v.is_finite()));
    }
}
