//! Isolation forest (Liu, Ting and Zhou, ICDM 2008): a window that few random cuts separate from all others is unusual.
//!
//! Our own, because no crate offers a seeded fit, an exact attribution per feature and a flat form that can be checked
//! before it is used. Parity with scikit-learn is shown by `tests/parity/run.py`. An axis-parallel cut that is drawn
//! uniformly between the smallest and the largest value does not care about affine scaling of a feature, hence there
//! is no scaler.
//!
//! A tree is a flat slice of 8-byte nodes, the two children of a node side by side. A leaf is a node whose threshold is
//! infinite and whose child is itself, so that a walk takes a fixed number of steps without a branch, and several rows
//! walk one tree at a time while it lies in the first-level cache.

use crate::random::Random;

/// How a forest is grown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Growth {
    /// Number of trees, 1 to [`Forest::TREES_MAX`]. 100 in the paper; more did little on flow features.
    pub trees: u32,
    /// Rows that each tree sees, 2 to [`Forest::SAMPLE_MAX`]. The paper's 256 is too few here: at 1,024 the recall at a
    /// 1 % false-positive rate rose from .61 to .68 on simulated hosts, for a third more time.
    pub sample: u32,
    /// Same rows and same seed give the same bytes.
    pub seed: u64,
}

impl Default for Growth {
    fn default() -> Growth {
        Growth { trees: 100, sample: 1024, seed: 27 }
    }
}

/// A fitted forest.
#[derive(Clone, PartialEq, Debug)]
pub struct Forest {
    width: u16,
    sample: u32,
    seed: u64,
    trees: Vec<Tree>,
    nodes: Vec<Node>,
    /// Per node: the mean path length of the training rows that came through it.
    expected: Vec<f32>,
}

/// Where a tree lies in the flat vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tree {
    first: u32,
    len: u32,
    depth: u32,
}

#[derive(Clone, Copy, PartialEq, Debug)]
#[repr(C)]
struct Node {
    /// Rows below it go left; infinite in a leaf.
    threshold: f32,
    feature: u16,
    /// Index of the left child within the tree, the right one follows it; a leaf's own index.
    left: u16,
}

/// Why rows cannot be fitted, or bytes are not a forest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForestError {
    /// There is nothing to cut.
    #[error("grow a forest: {rows} rows of {width} features; at least 2 rows of 1 to {max} features are needed", max = Forest::WIDTH_MAX)]
    TooSmall {
        /// Rows given.
        rows: usize,
        /// Features a row.
        width: usize,
    },
    /// A setting is out of range.
    #[error("grow a forest: {name} is {value}, it must be {from} to {to}")]
    Setting {
        /// Which.
        name: &'static str,
        /// What it was.
        value: u32,
        /// Least.
        from: u32,
        /// Most.
        to: u32,
    },
    /// The bytes are not what [`Forest::to_bytes`] writes.
    #[error("read a forest: {0}")]
    Malformed(String),
}

/// First bytes of the binary form; the last one is its version.
const MAGIC: [u8; 8] = *b"FVIFOR\0\x01";

/// Rows that walk a tree together: enough to hide the latency of a load, few enough to stay in registers.
const LANES: usize = 8;

impl Forest {
    /// Most trees that are grown or read.
    pub const TREES_MAX: u32 = 1_000;
    /// Most rows per tree: a child index has 16 bits, and a tree of n rows has up to 2n - 1 nodes.
    pub const SAMPLE_MAX: u32 = 32_768;
    /// Most features in a row.
    pub const WIDTH_MAX: usize = 1_024;
    /// Most bytes of the binary form.
    pub const BYTES_MAX: usize = 64 << 20;

    /// Grows a forest from rows of `width` features laid end to end. Values that are not finite count as [`clamp`] says.
    pub fn grow(rows: &[f32], width: usize, growth: Growth) -> Result<Forest, ForestError> {
        let count = rows.len().checked_div(width).unwrap_or(0);
        if count < 2 || width > Self::WIDTH_MAX {
            return Err(ForestError::TooSmall { rows: count, width });
        }
        within("trees", growth.trees, 1, Self::TREES_MAX)?;
        within("sample", growth.sample, 2, Self::SAMPLE_MAX)?;
        let rows: Vec<f32> = rows.iter().copied().map(clamp).collect();
        let sample = growth.sample.min(u32::try_from(count).unwrap_or(u32::MAX));
        let mut forest = Forest {
            width: width as u16,
            sample,
            seed: growth.seed,
            trees: Vec::with_capacity(growth.trees as usize),
            nodes: Vec::new(),
            expected: Vec::new(),
        };
        let average = average_paths(sample as usize);
        let mut order: Vec<u32> = (0..count as u32).collect();
        for number in 0..growth.trees {
            let seed = growth.seed ^ u64::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut random = Random::seeded(seed);
            (0..sample as usize).for_each(|at| random.draw(&mut order, at));
            let mut grower =
                Grower { rows: &rows, width, random, average: &average, limit: log2_ceil(sample), tree: Vec::new() };
            let mut taken = order[..sample as usize].to_vec();
            grower.grow(&mut taken);
            let depth = grower.tree.iter().map(|n| n.depth).max().unwrap_or(0);
            let first = forest.nodes.len() as u32;
            forest.trees.push(Tree { first, len: grower.tree.len() as u32, depth });
            forest.nodes.extend(grower.tree.iter().map(|n| n.node));
            forest.expected.extend(grower.tree.iter().map(|n| n.expected));
        }
        Ok(forest)
    }

    /// Features a row must have.
    pub fn width(&self) -> usize {
        usize::from(self.width)
    }

    /// How it was grown.
    pub fn growth(&self) -> Growth {
        Growth { trees: self.trees.len() as u32, sample: self.sample, seed: self.seed }
    }

    /// Bytes in memory.
    pub fn size(&self) -> usize {
        self.nodes.len() * size_of::<Node>() + self.expected.len() * size_of::<f32>()
    }

    /// The anomaly score of the paper, `2^(-E(h)/c(psi))`, above 0 and at most 1, for each of the rows laid end to end.
    ///
    /// # Panics
    /// When `rows` is not a whole number of rows.
    pub fn score(&self, rows: &[f32]) -> Vec<f32> {
        let normal = self.normal_path();
        self.paths(rows).into_iter().map(|path| (-path / normal).exp2()).collect()
    }

    /// The mean path length of each of the rows laid end to end: the shorter, the more unusual.
    ///
    /// # Panics
    /// When `rows` is not a whole number of rows.
    pub fn paths(&self, rows: &[f32]) -> Vec<f32> {
        let width = self.width();
        assert!(rows.len().is_multiple_of(width), "{} values are not rows of {width}", rows.len());
        let rows: Vec<f32> = rows.iter().copied().map(clamp).collect();
        let mut sums = vec![0.0f32; rows.len() / width];
        // Blocks of rows that stay in the first-level cache beside one tree.
        for (block, sums) in rows.chunks(width * 64).zip(sums.chunks_mut(64)) {
            for tree in &self.trees {
                self.walk(*tree, block, sums);
            }
        }
        let scale = 1.0 / self.trees.len() as f32;
        sums.iter_mut().for_each(|sum| *sum *= scale);
        sums
    }

    /// What each feature did to the path of one row, positive where it shortened it: the sum over all
    /// features is the mean path of training rows minus the path of this row, exactly (up to rounding). A cut is
    /// credited with the change of the expected path that it brought (Saabas's decomposition of a tree's prediction).
    ///
    /// # Panics
    /// When `row` has another width.
    pub fn attribute(&self, row: &[f32]) -> Vec<f32> {
        assert_eq!(row.len(), self.width(), "a row of another width");
        let mut shares = vec![0.0f64; row.len()];
        for tree in &self.trees {
            let (nodes, expected) = self.slices(*tree);
            let mut at = 0usize;
            for _ in 0..tree.depth {
                let node = nodes[at];
                let next = step(node, clamp(row[usize::from(node.feature)]));
                shares[usize::from(node.feature)] += f64::from(expected[at]) - f64::from(expected[next]);
                at = next;
            }
        }
        shares.into_iter().map(|share| (share / self.trees.len() as f64) as f32).collect()
    }

    /// The mean path of the training rows, what [`Forest::attribute`] is relative to.
    pub fn expected_path(&self) -> f32 {
        let sum: f64 = self.trees.iter().map(|t| f64::from(self.expected[t.first as usize])).sum();
        (sum / self.trees.len() as f64) as f32
    }

    /// The binary form: little-endian, the same bytes for the same forest on every machine.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + self.trees.len() * 4 + self.nodes.len() * 12);
        bytes.extend(MAGIC);
        bytes.extend(u32::from(self.width).to_le_bytes());
        bytes.extend(self.sample.to_le_bytes());
        bytes.extend(self.seed.to_le_bytes());
        bytes.extend((self.trees.len() as u32).to_le_bytes());
        for tree in &self.trees {
            bytes.extend(tree.len.to_le_bytes());
        }
        for node in &self.nodes {
            bytes.extend(node.threshold.to_le_bytes());
            bytes.extend(node.feature.to_le_bytes());
            bytes.extend(node.left.to_le_bytes());
        }
        for expected in &self.expected {
            bytes.extend(expected.to_le_bytes());
        }
        bytes
    }

    /// Reads the binary form. Whatever the bytes are, the result is a forest that can be walked, or an error: every
    /// index is checked, children come after their parent (so a walk ends), and nothing is allocated beyond the input.
    pub fn from_bytes(bytes: &[u8]) -> Result<Forest, ForestError> {
        let mut reader = Reader { bytes };
        if bytes.len() > Self::BYTES_MAX {
            return Err(malformed(format!("{} bytes, more than {}", bytes.len(), Self::BYTES_MAX)));
        }
        if reader.take::<8>()? != MAGIC {
            return Err(malformed("not a forest, or of another version"));
        }
        let width = reader.u32()?;
        let sample = reader.u32()?;
        let seed = u64::from_le_bytes(reader.take::<8>()?);
        let count = reader.u32()?;
        if width == 0 || width as usize > Self::WIDTH_MAX {
            return Err(malformed(format!("{width} features")));
        }
        if !(2..=Self::SAMPLE_MAX).contains(&sample) || !(1..=Self::TREES_MAX).contains(&count) {
            return Err(malformed(format!("{count} trees of {sample} rows")));
        }
        let mut trees = Vec::with_capacity(count as usize);
        let mut first = 0u32;
        for _ in 0..count {
            let len = reader.u32()?;
            if len == 0 || len > 2 * sample {
                return Err(malformed(format!("a tree of {len} nodes from {sample} rows")));
            }
            trees.push(Tree { first, len, depth: 0 });
            first += len;
        }
        if reader.bytes.len() != first as usize * 12 {
            return Err(malformed(format!(
                "{} bytes of nodes where {} were announced",
                reader.bytes.len(),
                first as usize * 12
            )));
        }
        let mut nodes = Vec::with_capacity(first as usize);
        for _ in 0..first {
            let threshold = f32::from_le_bytes(reader.take::<4>()?);
            let feature = u16::from_le_bytes(reader.take::<2>()?);
            let left = u16::from_le_bytes(reader.take::<2>()?);
            nodes.push(Node { threshold, feature, left });
        }
        let mut expected = Vec::with_capacity(first as usize);
        for _ in 0..first {
            expected.push(f32::from_le_bytes(reader.take::<4>()?));
        }
        if let Some(bad) = expected.iter().find(|e| !e.is_finite() || **e < 0.0) {
            return Err(malformed(format!("an expected path of {bad}")));
        }
        for tree in &mut trees {
            tree.depth = check_tree(&nodes[tree.first as usize..(tree.first + tree.len) as usize], width)?;
        }
        Ok(Forest { width: width as u16, sample, seed, trees, nodes, expected })
    }

    /// `c(psi)` of the paper: the mean path of an unsuccessful search among psi rows.
    pub(super) fn normal_path(&self) -> f32 {
        average_paths(self.sample as usize)[self.sample as usize]
    }

    fn slices(&self, tree: Tree) -> (&[Node], &[f32]) {
        let range = tree.first as usize..(tree.first + tree.len) as usize;
        (&self.nodes[range.clone()], &self.expected[range])
    }

    /// Adds the path of each row of a block through one tree.
    fn walk(&self, tree: Tree, block: &[f32], sums: &mut [f32]) {
        let width = self.width();
        let (nodes, expected) = self.slices(tree);
        let mut groups = block.chunks_exact(width * LANES);
        let mut sums_of = sums.chunks_exact_mut(LANES);
        for (rows, sums) in (&mut groups).zip(&mut sums_of) {
            let mut at = [0usize; LANES];
            for _ in 0..tree.depth {
                for lane in 0..LANES {
                    let node = nodes[at[lane]];
                    at[lane] = step(node, rows[lane * width + usize::from(node.feature)]);
                }
            }
            for lane in 0..LANES {
                sums[lane] += expected[at[lane]];
            }
        }
        for (row, sum) in groups.remainder().chunks_exact(width).zip(sums_of.into_remainder()) {
            let mut at = 0usize;
            for _ in 0..tree.depth {
                let node = nodes[at];
                at = step(node, row[usize::from(node.feature)]);
            }
            *sum += expected[at];
        }
    }
}

/// Replaces what is not a number by 0 (unknown is unremarkable) and holds the rest within ±1e30, so that no value meets
/// the infinite threshold of a leaf.
pub fn clamp(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(-1e30, 1e30) }
}

/// Where a row goes from a node; a leaf keeps it.
#[inline(always)]
fn step(node: Node, value: f32) -> usize {
    usize::from(node.left) + usize::from(value >= node.threshold)
}

/// Mean path lengths `c(0..=n)`: `c(n) = 2 H(n-1) - 2 (n-1)/n` (equation 1 of the paper, with the exact harmonic number
/// in place of its approximation, so that no logarithm of some machine's library gets into the bytes).
fn average_paths(n: usize) -> Vec<f32> {
    let mut paths = vec![0.0f32; n + 1];
    let mut harmonic = 0.0f64;
    for (size, path) in paths.iter_mut().enumerate().skip(2) {
        harmonic += 1.0 / (size - 1) as f64;
        *path = (2.0 * harmonic - 2.0 * (size - 1) as f64 / size as f64) as f32;
    }
    paths
}

fn log2_ceil(n: u32) -> u32 {
    u32::BITS - (n - 1).leading_zeros()
}

fn within(name: &'static str, value: u32, from: u32, to: u32) -> Result<(), ForestError> {
    if (from..=to).contains(&value) { Ok(()) } else { Err(ForestError::Setting { name, value, from, to }) }
}

fn malformed(cause: impl Into<String>) -> ForestError {
    ForestError::Malformed(cause.into())
}

/// Checks every node of a tree and returns its depth.
fn check_tree(nodes: &[Node], width: u32) -> Result<u32, ForestError> {
    let mut depth = vec![0u32; nodes.len()];
    let mut deepest = 0;
    for (at, node) in nodes.iter().enumerate() {
        if u32::from(node.feature) >= width {
            return Err(malformed(format!("a cut of feature {} of {width}", node.feature)));
        }
        let left = usize::from(node.left);
        if node.threshold == f32::INFINITY && left == at {
            deepest = deepest.max(depth[at]);
            continue;
        }
        if !node.threshold.is_finite() || left <= at || left + 1 >= nodes.len() {
            return Err(malformed(format!("node {at} of {} leads to {left} at {}", nodes.len(), node.threshold)));
        }
        depth[left] = depth[at] + 1;
        depth[left + 1] = depth[at] + 1;
    }
    // A fitted tree is no deeper than log2 of its sample; a chain would make every walk long.
    if deepest > log2_ceil(Forest::SAMPLE_MAX) {
        return Err(malformed(format!("a tree {deepest} deep")));
    }
    Ok(deepest)
}

// === impl Grower ===

/// Grows one tree.
struct Grower<'a> {
    rows: &'a [f32],
    width: usize,
    random: Random,
    average: &'a [f32],
    limit: u32,
    tree: Vec<Grown>,
}

struct Grown {
    node: Node,
    depth: u32,
    expected: f32,
}

impl Grower<'_> {
    fn grow(&mut self, sample: &mut [u32]) {
        self.tree.push(Grown { node: Node { threshold: f32::INFINITY, feature: 0, left: 0 }, depth: 0, expected: 0.0 });
        self.split(0, sample);
    }

    /// Cuts the rows of node `at` until they are alone or as deep as the limit; the recursion is as deep as the limit.
    fn split(&mut self, at: usize, rows: &mut [u32]) {
        let depth = self.tree[at].depth;
        let cut = if depth < self.limit && rows.len() > 1 { self.cut(rows) } else { None };
        let Some((feature, threshold)) = cut else {
            self.tree[at].node.left = at as u16;
            self.tree[at].expected = depth as f32 + self.average[rows.len()];
            return;
        };
        let boundary = partition(rows, |row| self.rows[row as usize * self.width + feature] < threshold);
        let left = self.tree.len();
        for child in [left, left + 1] {
            let node = Node { threshold: f32::INFINITY, feature: 0, left: child as u16 };
            self.tree.push(Grown { node, depth: depth + 1, expected: 0.0 });
        }
        self.tree[at].node = Node { threshold, feature: feature as u16, left: left as u16 };
        let (low, high) = rows.split_at_mut(boundary);
        self.split(left, low);
        self.split(left + 1, high);
        let share = low.len() as f64 / rows.len() as f64;
        let (low, high) = (f64::from(self.tree[left].expected), f64::from(self.tree[left + 1].expected));
        self.tree[at].expected = (share * low + (1.0 - share) * high) as f32;
    }

    /// A feature that is not constant among the rows, and a threshold above its least value; features are drawn until
    /// one fits (a leaf at the first constant one would cost .07 AUC on sparse sets).
    fn cut(&mut self, rows: &[u32]) -> Option<(usize, f32)> {
        let mut features: Vec<u32> = (0..self.width as u32).collect();
        for drawn in 0..features.len() {
            self.random.draw(&mut features, drawn);
            let feature = features[drawn] as usize;
            let value = |row: &u32| self.rows[*row as usize * self.width + feature];
            let low = rows.iter().map(value).fold(f32::INFINITY, f32::min);
            let high = rows.iter().map(value).fold(f32::NEG_INFINITY, f32::max);
            if low < high {
                let threshold = (f64::from(low) + self.random.unit() * (f64::from(high) - f64::from(low))) as f32;
                return Some((feature, if threshold > low { threshold } else { high }));
            }
        }
        None
    }
}

/// Moves rows that are `left` to the front and returns how many they are.
fn partition(rows: &mut [u32], left: impl Fn(u32) -> bool) -> usize {
    let mut boundary = 0;
    for at in 0..rows.len() {
        if left(rows[at]) {
            rows.swap(boundary, at);
            boundary += 1;
        }
    }
    boundary
}

// === impl Reader ===

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ForestError> {
        let (head, rest) = self.bytes.split_first_chunk::<N>().ok_or_else(|| malformed("the bytes end too early"))?;
        self.bytes = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, ForestError> {
        Ok(u32::from_le_bytes(self.take::<4>()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A cloud of `count` rows around 0 with the last one far out in feature 1.
    fn cloud(count: usize, width: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::seeded(seed);
        let mut rows: Vec<f32> = (0..count * width).map(|_| (0..4).map(|_| random.unit() as f32 - 0.5).sum()).collect();
        let last = rows.len() - width;
        rows[last + 1] = 25.0;
        rows
    }

    fn small() -> Growth {
        Growth { trees: 40, sample: 128, seed: 9 }
    }

    #[test]
    fn the_outlier_scores_highest_and_is_explained_by_its_feature() {
        let rows = cloud(600, 5, 1);
        let forest = Forest::grow(&rows, 5, Growth { sample: 512, ..small() }).unwrap();
        let scores = forest.score(&rows);
        let outlier = *scores.last().unwrap();
        assert!(scores[..599].iter().all(|s| *s < outlier), "{outlier}");
        let shares = forest.attribute(&rows[rows.len() - 5..]);
        assert!(shares.iter().enumerate().all(|(f, s)| f == 1 || *s < shares[1]), "{shares:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_gives_others() {
        let rows = cloud(300, 4, 2);
        let bytes = |seed| Forest::grow(&rows, 4, Growth { seed, ..small() }).unwrap().to_bytes();
        assert_eq!(bytes(5), bytes(5));
        assert_ne!(bytes(5), bytes(6));
    }

    #[test]
    fn the_shares_of_the_features_sum_to_the_path() {
        let rows = cloud(400, 6, 3);
        let forest = Forest::grow(&rows, 6, small()).unwrap();
        let paths = forest.paths(&rows);
        for (row, path) in rows.chunks(6).zip(paths) {
            let sum: f32 = forest.attribute(row).iter().sum();
            assert!((forest.expected_path() - sum - path).abs() < 1e-3, "{sum} {path}");
        }
    }

    #[test]
    fn a_batch_scores_as_its_rows_do() {
        let rows = cloud(203, 3, 4);
        let forest = Forest::grow(&rows, 3, small()).unwrap();
        let alone: Vec<f32> = rows.chunks(3).flat_map(|row| forest.paths(row)).collect();
        assert_eq!(forest.paths(&rows), alone);
    }

    #[test]
    fn constant_rows_are_all_equally_usual() {
        let forest = Forest::grow(&[1.0; 60], 3, small()).unwrap();
        let scores = forest.score(&[1.0, 1.0, 1.0, 9.0, 9.0, 9.0]);
        assert_eq!(scores[0], scores[1]);
    }

    #[test]
    fn values_that_are_not_finite_are_walked_all_the_same() {
        let rows = cloud(300, 3, 5);
        let forest = Forest::grow(&rows, 3, small()).unwrap();
        for row in [[f32::NAN; 3], [f32::INFINITY; 3], [f32::NEG_INFINITY; 3]] {
            let score = forest.score(&row)[0];
            assert!(score > 0.0 && score <= 1.0, "{score}");
            assert!(forest.attribute(&row).iter().all(|s| s.is_finite()));
        }
    }

    #[test]
    fn settings_out_of_range_and_too_few_rows_are_refused() {
        assert!(matches!(Forest::grow(&[1.0], 1, small()), Err(ForestError::TooSmall { .. })));
        assert!(matches!(Forest::grow(&[], 0, small()), Err(ForestError::TooSmall { .. })));
        let growth = Growth { trees: 0, ..small() };
        assert!(matches!(Forest::grow(&[1.0, 2.0], 1, growth), Err(ForestError::Setting { name: "trees", .. })));
        let growth = Growth { sample: 40_000, ..small() };
        assert!(matches!(Forest::grow(&[1.0, 2.0], 1, growth), Err(ForestError::Setting { name: "sample", .. })));
    }

    #[test]
    fn the_binary_form_round_trips() {
        let rows = cloud(300, 4, 6);
        let forest = Forest::grow(&rows, 4, small()).unwrap();
        assert_eq!(Forest::from_bytes(&forest.to_bytes()).unwrap(), forest);
    }

    #[test]
    fn a_child_before_its_parent_is_refused() {
        let forest = Forest::grow(&cloud(50, 2, 7), 2, Growth { trees: 1, sample: 16, seed: 1 }).unwrap();
        let mut bytes = forest.to_bytes();
        let root = 8 + 4 + 4 + 8 + 4 + 4;
        bytes[root + 6..root + 8].copy_from_slice(&0u16.to_le_bytes());
        assert!(matches!(Forest::from_bytes(&bytes), Err(ForestError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_can_be_walked(
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<Option<proptest::sample::Index>>(),
            row in proptest::array::uniform3(proptest::num::f32::ANY),
        ) {
            let forest = Forest::grow(&cloud(60, 3, 8), 3, Growth { trees: 3, sample: 32, seed: 1 }).unwrap();
            let mut bytes = forest.to_bytes();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok(forest) = Forest::from_bytes(&bytes)
                && forest.width() == 3
            {
                prop_assert!(forest.paths(&row)[0].is_finite());
                prop_assert_eq!(forest.attribute(&row).len(), 3);
            }
        }

        #[test]
        fn noise_is_never_a_forest(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Forest::from_bytes(&noise).is_err());
        }
    }
}
