//! A layer of settings before it is resolved: a tree of values in which each one remembers where it was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_path_to_error::{Path, Segment};
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Value};

use super::{DEFAULTS, Problem};

/// What environment variables of ours begin with.
pub(super) const PREFIX: &str = "FLOWVIGIL__";

/// The table of the defaults whose tables count only once another layer names them.
const WHEN: &str = "when";

/// Where a value was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Origin {
    /// File name, `environment`, or the name of another layer.
    pub place: Arc<str>,
    /// 1-based line, where the place has lines.
    pub line: Option<usize>,
    /// The key as it was written there: dotted, or the variable's name.
    pub key: String,
}

/// A value with its origin.
#[derive(Clone, Debug)]
pub(super) struct Node {
    origin: Origin,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Table(BTreeMap<String, Node>),
    Array(Vec<Node>),
    Leaf(Value),
}

/// One source of settings, as text that was parsed but not yet resolved.
#[derive(Clone, Debug)]
pub struct Layer {
    root: Node,
}

impl Layer {
    /// A TOML document; `place` is what problems call it. What cannot be parsed is left out and reported.
    pub fn from_toml(place: &str, text: &str) -> (Layer, Vec<Problem>) {
        let place: Arc<str> = place.into();
        let (table, errors) = DeTable::parse_recoverable(text);
        let lines = Lines::of(text);
        let problems = errors
            .iter()
            .map(|error| Problem {
                place: place.to_string(),
                line: error.span().map(|span| lines.at(span.start)),
                key: String::new(),
                message: error.message().to_owned(),
            })
            .collect();
        let origin = Origin { place, line: None, key: String::new() };
        (Layer { root: Node::from_table(table.into_inner(), &origin, &lines) }, problems)
    }

    /// The variables that begin with `FLOWVIGIL__`.
    pub fn from_environment(variables: impl IntoIterator<Item = (String, String)>) -> Layer {
        let ours = variables.into_iter().filter_map(|(name, text)| {
            let path = name.strip_prefix(PREFIX)?.to_ascii_lowercase().replace("__", ".");
            Some((path, name, text))
        });
        Layer::from_texts("environment", ours)
    }

    /// Dotted keys, the names by which problems call them, and values as text, e.g. of a parameter store.
    pub fn from_texts(place: &str, entries: impl IntoIterator<Item = (String, String, String)>) -> Layer {
        let place: Arc<str> = place.into();
        let defaults = Tree::defaults();
        let origin = |key: &str| Origin { place: place.clone(), line: None, key: key.to_owned() };
        let mut root = Node { origin: origin(""), kind: Kind::Table(BTreeMap::new()) };
        for (path, name, text) in entries {
            let value = typed(&text, defaults.find(&path));
            let mut node = &mut root;
            for part in path.split('.') {
                if !matches!(node.kind, Kind::Table(_)) {
                    node.kind = Kind::Table(BTreeMap::new());
                }
                let Kind::Table(table) = &mut node.kind else { unreachable!("made a table just above") };
                let empty = || Node { origin: origin(&name), kind: Kind::Table(BTreeMap::new()) };
                node = table.entry(part.to_owned()).or_insert_with(empty);
            }
            *node = Node::from_value(value, &origin(&name));
        }
        Layer { root }
    }

    /// Every text in the layer that `wanted` picks.
    pub fn texts(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut found = Vec::new();
        self.root.each_text(&mut |text| {
            if wanted(text) {
                found.push(text.to_owned());
            }
        });
        found
    }

    /// The layer with other texts in the place of those that are known.
    #[must_use]
    pub fn with_texts(mut self, known: &BTreeMap<String, String>) -> Layer {
        self.root.replace_texts(known);
        self
    }
}

/// Text without a type takes that of the default: where that is a string, the text is the value; else the text is TOML,
/// or, if it is not, a string.
fn typed(text: &str, default: Option<&Node>) -> Value {
    if let Some(Node { kind: Kind::Leaf(Value::String(_)), .. }) = default {
        return Value::String(text.to_owned());
    }
    let parsed: Option<toml::Table> = toml::from_str(&format!("value = {text}")).ok();
    let toml = parsed.and_then(|mut table| table.remove("value"));
    // Tables within lists are written in JSON by most programs that write parameters.
    toml.or_else(|| serde_json::from_str(text).ok()).unwrap_or_else(|| Value::String(text.to_owned()))
}

/// All layers as one document.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    root: Node,
    when: Option<Node>,
}

impl Tree {
    /// The embedded defaults.
    pub(super) fn defaults() -> Tree {
        let (layer, problems) = Layer::from_toml("defaults.toml", DEFAULTS);
        assert!(problems.is_empty(), "the embedded defaults are TOML: {problems:?}");
        let mut root = layer.root;
        let when = root.table_mut().and_then(|table| table.remove(WHEN));
        Tree { root, when }
    }

    /// The defaults under layers, of which later ones win.
    pub(super) fn of(layers: &[Layer]) -> Tree {
        let mut tree = Tree::defaults();
        for layer in layers {
            tree.merge(layer);
        }
        tree
    }

    /// All leaves by dotted key; a list is one.
    pub(super) fn flat(&self) -> BTreeMap<String, Value> {
        let mut leaves = BTreeMap::new();
        self.root.flatten(String::new(), &mut leaves);
        leaves
    }

    /// Lays a layer over this one.
    pub(super) fn merge(&mut self, layer: &Layer) {
        overlay(&mut self.root, &layer.root, self.when.as_ref());
    }

    /// The document, for serde.
    pub(super) fn value(&self) -> Value {
        self.root.value()
    }

    /// The value at a dotted path, where it is one alone.
    pub(super) fn leaf(&self, path: &str) -> Option<Value> {
        match &self.find(path)?.kind {
            Kind::Leaf(value) => Some(value.clone()),
            _ => None,
        }
    }

    /// The node at a dotted path, in the defaults that always hold or under `when`.
    fn find(&self, path: &str) -> Option<&Node> {
        descend(&self.root, path).or_else(|| descend(self.when.as_ref()?, path))
    }

    /// Where the value at a dotted path was written.
    pub(super) fn origin(&self, path: &str) -> Origin {
        self.find(path).unwrap_or(&self.root).origin.clone()
    }

    /// Removes the value that serde refused at `path` and puts the default in its place, if there is one. Answers where
    /// the value was written, and whether the document has changed by it.
    pub(super) fn take_out(&mut self, path: &Path, defaults: &Tree) -> (Origin, bool) {
        let steps: Vec<Step> = path.iter().filter_map(Step::of).collect();
        let mut node = &mut self.root;
        let mut default = Some(&defaults.root);
        // The defaults of a backend that was chosen.
        let mut conditional = defaults.when.as_ref();
        let mut depth = 0;
        // Down to the parent of the deepest value that the document really has.
        while depth + 1 < steps.len()
            && node.has(&steps[depth])
            && node.at(&steps[depth]).is_some_and(|n| n.has(&steps[depth + 1]))
        {
            default = default.and_then(|d| d.at(&steps[depth]));
            conditional = conditional.and_then(|d| d.at(&steps[depth]));
            node = node.at_mut(&steps[depth]).expect("has() said so");
            depth += 1;
        }
        let Some(step) = steps.get(depth).filter(|step| node.has(step)) else {
            return (node.origin.clone(), false);
        };
        let origin = node.at(step).expect("has() said so").origin.clone();
        match (&mut node.kind, step) {
            (Kind::Array(items), Step::Index(index)) => {
                items.remove(*index);
            }
            (Kind::Table(table), Step::Key(key)) => {
                match default.and_then(|d| d.at(step)).or_else(|| conditional?.at(step)) {
                    // The default itself was refused: going on would never end.
                    Some(good) if good.origin == origin => return (origin, false),
                    Some(good) => {
                        table.insert(key.clone(), good.clone());
                    }
                    None => {
                        table.remove(key);
                    }
                }
            }
            _ => return (origin, false),
        }
        (origin, true)
    }
}

fn descend<'n>(root: &'n Node, path: &str) -> Option<&'n Node> {
    path.split('.').try_fold(root, |node, part| node.at(&Step::Key(part.to_owned())))
}

/// Tables merge, anything else replaces; a table that is named for the first time brings its `when` defaults with it.
fn overlay(below: &mut Node, above: &Node, when: Option<&Node>) {
    let (Kind::Table(lower), Kind::Table(upper)) = (&mut below.kind, &above.kind) else {
        *below = above.clone();
        return;
    };
    for (key, value) in upper {
        let conditional = when.and_then(|node| node.at(&Step::Key(key.clone())));
        match lower.get_mut(key) {
            Some(known) => overlay(known, value, conditional),
            None => {
                let mut fresh = value.clone();
                if let (Some(defaults), Kind::Table(_)) = (conditional, &value.kind) {
                    fresh = Node { origin: value.origin.clone(), kind: defaults.kind.clone() };
                    overlay(&mut fresh, value, conditional);
                }
                lower.insert(key.clone(), fresh);
            }
        }
    }
}

/// One step down a path.
enum Step {
    Key(String),
    Index(usize),
}

impl Step {
    fn of(segment: &Segment) -> Option<Step> {
        match segment {
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { variant } => Some(Step::Key(variant.clone())),
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Unknown => None,
        }
    }
}

// === impl Node ===

impl Node {
    fn from_table(table: DeTable<'_>, origin: &Origin, lines: &Lines) -> Node {
        let children = table.into_iter().map(|(key, value)| {
            let name = key.get_ref().to_string();
            let dotted = if origin.key.is_empty() { name.clone() } else { format!("{}.{name}", origin.key) };
            let here = Origin { place: origin.place.clone(), line: Some(lines.at(key.span().start)), key: dotted };
            (name, Node::from_spanned(value, here, lines))
        });
        Node { origin: origin.clone(), kind: Kind::Table(children.collect()) }
    }

    fn from_spanned(value: Spanned<DeValue<'_>>, origin: Origin, lines: &Lines) -> Node {
        let kind = match value.into_inner() {
            DeValue::Table(table) => return Node::from_table(table, &origin, lines),
            DeValue::Array(items) => Kind::Array(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| {
                        let line = Some(lines.at(item.span().start));
                        let here = Origin { line, key: format!("{}[{index}]", origin.key), ..origin.clone() };
                        Node::from_spanned(item, here, lines)
                    })
                    .collect(),
            ),
            leaf => Kind::Leaf(plain(leaf)),
        };
        Node { origin, kind }
    }

    fn from_value(value: Value, origin: &Origin) -> Node {
        let kind = match value {
            Value::Table(table) => {
                Kind::Table(table.into_iter().map(|(key, value)| (key, Node::from_value(value, origin))).collect())
            }
            Value::Array(items) => Kind::Array(items.into_iter().map(|v| Node::from_value(v, origin)).collect()),
            leaf => Kind::Leaf(leaf),
        };
        Node { origin: origin.clone(), kind }
    }

    fn value(&self) -> Value {
        match &self.kind {
            Kind::Table(table) => Value::Table(table.iter().map(|(key, node)| (key.clone(), node.value())).collect()),
            Kind::Array(items) => Value::Array(items.iter().map(Node::value).collect()),
            Kind::Leaf(value) => value.clone(),
        }
    }

    fn flatten(&self, key: String, leaves: &mut BTreeMap<String, Value>) {
        let Kind::Table(table) = &self.kind else {
            leaves.insert(key, self.value());
            return;
        };
        for (name, node) in table {
            let below = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            node.flatten(below, leaves);
        }
    }

    fn each_text(&self, visit: &mut impl FnMut(&str)) {
        match &self.kind {
            Kind::Table(table) => table.values().for_each(|node| node.each_text(visit)),
            Kind::Array(items) => items.iter().for_each(|node| node.each_text(visit)),
            Kind::Leaf(Value::String(text)) => visit(text),
            Kind::Leaf(_) => {}
        }
    }

    fn replace_texts(&mut self, known: &BTreeMap<String, String>) {
        match &mut self.kind {
            Kind::Table(table) => table.values_mut().for_each(|node| node.replace_texts(known)),
            Kind::Array(items) => items.iter_mut().for_each(|node| node.replace_texts(known)),
            Kind::Leaf(Value::String(text)) => {
                if let Some(other) = known.get(text) {
                    other.clone_into(text);
                }
            }
            Kind::Leaf(_) => {}
        }
    }

    fn table_mut(&mut self) -> Option<&mut BTreeMap<String, Node>> {
        if let Kind::Table(table) = &mut self.kind { Some(table) } else { None }
    }

    fn at(&self, step: &Step) -> Option<&Node> {
        match (&self.kind, step) {
            (Kind::Table(table), Step::Key(key)) => table.get(key),
            (Kind::Array(items), Step::Index(index)) => items.get(*index),
            _ => None,
        }
    }

    fn at_mut(&mut self, step: &Step) -> Option<&mut Node> {
        match (&mut self.kind, step) {
            (Kind::Table(table), Step::Key(key)) => table.get_mut(key),
            (Kind::Array(items), Step::Index(index)) => items.get_mut(*index),
            _ => None,
        }
    }

    fn has(&self, step: &Step) -> bool {
        self.at(step).is_some()
    }
}

/// A leaf as the owned kind of value. Numbers were checked for form by the parser, not for range.
fn plain(leaf: DeValue<'_>) -> Value {
    match leaf {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::String(number.as_str().to_owned()), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::String(number.as_str().to_owned()), Value::Float)
        }
        DeValue::Boolean(flag) => Value::Boolean(flag),
        DeValue::Datetime(moment) => Value::Datetime(moment),
        DeValue::Array(_) | DeValue::Table(_) => unreachable!("the caller has taken these"),
    }
}

/// Byte offsets to line numbers.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Lines {
        Lines(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    /// The 1-based line of a byte offset.
    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|&end| end < offset) + 1
    }
}

/// See [`super::documented_keys`].
pub(super) fn documented_keys(text: &str) -> Vec<(String, String)> {
    let mut table = String::new();
    let mut comment = String::new();
    // Of a list's entry, `[[…]]`, the comment above it speaks for all its keys.
    let mut entry = String::new();
    let mut keys = Vec::new();
    for line in text.lines() {
        if let Some(words) = line.strip_prefix('#') {
            comment.push_str(words);
        } else if let Some(name) = line.strip_prefix('[') {
            table = name.trim_matches(['[', ']']).to_owned();
            table = table.strip_prefix("when.").unwrap_or(&table).to_owned();
            entry = if name.starts_with('[') { comment.trim().to_owned() } else { String::new() };
            comment.clear();
        } else if line.is_empty() {
            comment.clear();
        } else if let Some((key, _)) = line.split_once(" = ") {
            let words = if comment.is_empty() { entry.clone() } else { comment.trim().to_owned() };
            keys.push((format!("{table}.{key}"), words));
            comment.clear();
        }
    }
    keys
}
