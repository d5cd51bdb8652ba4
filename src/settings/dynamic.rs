//! Settings that change while the service runs: what a new layer would change, and which of it takes a restart.
//!
//! A new layer is accepted or refused as a whole. What was accepted applies from the next batch on where the key is listed
//! in [`CHANGEABLE`]; of other keys it is said that they wait for a restart.

use std::collections::BTreeMap;

use toml::Value;

use super::layer::Tree;
use super::{Layer, Problems, Settings};

/// The tables, and keys, that apply while the service runs. Everything else is read once: windows and tables shape the
/// state that is in memory, and backends hold connections.
pub const CHANGEABLE: &[&str] = &[
    "statistical.port_scan",
    "statistical.ddos",
    "statistical.c2_beacon",
    "statistical.channel",
    "statistical.crypto_mining",
    "statistical.tor",
    "statistical.brute_force",
    "statistical.exfiltration",
    "validation",
    "ml.behavior",
    "ml.sagemaker.breaker",
    "telemetry.log_level",
];

/// Whether a dotted key applies while the service runs.
pub fn is_changeable(key: &str) -> bool {
    CHANGEABLE.iter().any(|known| key.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// All leaves of a document, by dotted key; lists count as one.
type Flat = BTreeMap<String, Value>;

/// The layers that stay, and what came of the last one that does not.
#[derive(Clone, Debug)]
pub struct Dynamic {
    fixed: Vec<Layer>,
    began: Flat,
    current: Flat,
}

/// What a new layer changes.
#[derive(Clone, Debug)]
pub struct Change {
    /// The settings as they are now.
    pub settings: Settings,
    /// Keys that apply at once.
    pub applied: Vec<String>,
    /// Keys that differ from what the process began with, and apply at its next start.
    pub waiting: Vec<String>,
}

impl Dynamic {
    /// Begins with the layers that stay, and the first of the one that changes.
    ///
    /// # Errors
    /// What is wrong with any of them.
    pub fn begin(fixed: Vec<Layer>, changing: Option<&Layer>) -> Result<(Dynamic, Settings), Problems> {
        let mut dynamic = Dynamic { fixed, began: Flat::new(), current: Flat::new() };
        let layers = dynamic.with(changing);
        let settings = Settings::assemble(&layers)?;
        dynamic.began = Tree::of(&layers).flat();
        dynamic.current = dynamic.began.clone();
        Ok((dynamic, settings))
    }

    /// Begins anew with the first of the layer that changes, which was not at hand before.
    ///
    /// # Errors
    /// What is wrong with it; then the process begins without.
    pub fn restart(&mut self, changing: &Layer) -> Result<Settings, Problems> {
        let (dynamic, settings) = Dynamic::begin(self.fixed.clone(), Some(changing))?;
        *self = dynamic;
        Ok(settings)
    }

    /// What would be wrong with another layer.
    ///
    /// # Errors
    /// All of it.
    pub fn check(&self, changing: &Layer) -> Result<(), Problems> {
        Settings::assemble(&self.with(Some(changing))).map(drop)
    }

    /// Takes another layer in place of the last; nothing where it says the same.
    ///
    /// # Errors
    /// What is wrong with it; then the last one stays.
    pub fn replace(&mut self, changing: &Layer) -> Result<Option<Change>, Problems> {
        let layers = self.with(Some(changing));
        let settings = Settings::assemble(&layers)?;
        let now = Tree::of(&layers).flat();
        if now == self.current {
            return Ok(None);
        }
        let applied = differing(&self.current, &now).filter(|key| is_changeable(key)).collect();
        let waiting = differing(&self.began, &now).filter(|key| !is_changeable(key)).collect();
        self.current = now;
        Ok(Some(Change { settings, applied, waiting }))
    }

    fn with(&self, changing: Option<&Layer>) -> Vec<Layer> {
        self.fixed.iter().chain(changing).cloned().collect()
    }
}

/// The keys whose values differ, or that only one side has.
fn differing<'f>(before: &'f Flat, after: &'f Flat) -> impl Iterator<Item = String> + 'f {
    let new = after.iter().filter(|(key, value)| before.get(*key) != Some(value)).map(|(key, _)| key.clone());
    new.chain(before.keys().filter(|key| !after.contains_key(*key)).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(entries: &[(&str, &str)]) -> Layer {
        let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), format!("/f/{key}"), (*value).to_owned()));
        Layer::from_texts("store", entries)
    }

    #[test]
    fn thresholds_apply_at_once_and_windows_wait_for_a_restart() {
        let (mut dynamic, settings) = Dynamic::begin(Vec::new(), None).unwrap();
        assert_eq!(settings.statistical.port_scan.ports, 15);
        let changed = layer(&[("statistical.port_scan.ports", "40"), ("statistical.window", "2m")]);
        let change = dynamic.replace(&changed).unwrap().unwrap();
        assert_eq!(change.settings.statistical.port_scan.ports, 40);
        assert_eq!(change.applied, ["statistical.port_scan.ports"]);
        assert_eq!(change.waiting, ["statistical.window"]);
        assert!(dynamic.replace(&changed).unwrap().is_none());
    }

    #[test]
    fn a_layer_that_goes_away_brings_the_value_below_back() {
        let (mut dynamic, _) =
            Dynamic::begin(vec![layer(&[("statistical.ddos.sources", "500")])], Some(&layer(&[]))).unwrap();
        dynamic.replace(&layer(&[("statistical.ddos.sources", "700")])).unwrap().unwrap();
        let change = dynamic.replace(&layer(&[])).unwrap().unwrap();
        assert_eq!(change.settings.statistical.ddos.sources, 500);
        assert_eq!((change.applied.len(), change.waiting.len()), (1, 0));
    }

    #[test]
    fn one_bad_value_refuses_the_whole_layer_and_the_old_one_stays() {
        let (mut dynamic, _) = Dynamic::begin(Vec::new(), None).unwrap();
        let bad = layer(&[("statistical.ddos.sources", "700"), ("validation.update_interval", "soon")]);
        let problems = dynamic.replace(&bad).unwrap_err();
        assert_eq!(problems.0.len(), 1, "{problems}");
        assert!(problems.to_string().contains("store: /f/validation.update_interval: "), "{problems}");
        assert!(dynamic.replace(&layer(&[])).unwrap().is_none(), "nothing of the refused layer was kept");
    }

    #[test]
    fn lists_can_be_written_as_json() {
        let list = r#"[{"name": "vulnerability scanner", "addresses": ["10.0.9.9"], "threats": ["port_scan"]}]"#;
        let (mut dynamic, _) = Dynamic::begin(Vec::new(), None).unwrap();
        let change = dynamic.replace(&layer(&[("validation.allow_list", list)])).unwrap().unwrap();
        assert_eq!(change.settings.validation.allow_list[0].name, "vulnerability scanner");
    }

    #[test]
    fn every_changeable_name_stands_in_the_defaults() {
        let keys = super::super::documented_keys();
        for name in CHANGEABLE {
            let known = keys.iter().any(|(key, _)| key == name || key.starts_with(&format!("{name}.")));
            assert!(known, "{name} is not in defaults.toml");
        }
    }
}
