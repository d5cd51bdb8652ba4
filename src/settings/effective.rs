//! The settings in effect as they may be shown: each with where it was written, and without secrets.

use serde_json::Value;

use super::Layer;
use super::dynamic::is_changeable;
use super::layer::{Origin, Tree};
use crate::api::config::Setting;

/// What stands in place of a secret.
const HIDDEN: &str = "(not shown)";

/// The last parts of keys that hold secrets, or what is made of them.
const SECRETS: [&str; 3] = ["token", "password", "sha256"];

/// The settings that layers come to. `is_encrypted` says of a name, as origins have it, whether its value was encrypted. Where a text
/// is to be the ARN of a secret, the layers hold the ARN and not what it stands for.
pub fn effective(layers: &[Layer], is_encrypted: impl Fn(&str) -> bool) -> Vec<Setting> {
    let tree = Tree::of(layers);
    let shown = |(key, value): (String, toml::Value)| {
        let origin = tree.origin(&key);
        let value = match is_encrypted(&origin.key) {
            true => Value::from(HIDDEN),
            false => hidden(&key, serde_json::to_value(value).unwrap_or_default()),
        };
        Setting { changeable: is_changeable(&key), from: from(&origin), key, value }
    };
    tree.flat().into_iter().map(shown).collect()
}

fn from(origin: &Origin) -> String {
    match (&*origin.place, origin.line) {
        ("defaults.toml", _) => origin.place.to_string(),
        (place, Some(line)) => format!("{place}:{line}"),
        (place, None) => format!("{place} {}", origin.key),
    }
}

/// A value without the secrets in it.
fn hidden(key: &str, value: Value) -> Value {
    let name = key.rsplit('.').next().unwrap_or_default();
    match value {
        Value::String(text) if super::secrets::is_secret(&text) => Value::String(text),
        Value::String(text) if SECRETS.contains(&name) && !text.is_empty() => Value::from(HIDDEN),
        Value::String(text) => Value::String(without_password(text)),
        Value::Array(items) => items.into_iter().map(|item| hidden(key, item)).collect(),
        Value::Object(parts) => parts.into_iter().map(|(name, part)| (name.clone(), hidden(&name, part))).collect(),
        other => other,
    }
}

/// An address without the password in it.
fn without_password(text: String) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Some((user, host)) = authority.rsplit_once('@') else { return text };
    let Some((user, _)) = user.split_once(':') else { return text };
    let path = &rest[authority.len()..];
    format!("{scheme}://{user}:{HIDDEN}@{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_shown_with_its_place_and_no_secret_is() {
        let file = r#"
            [api]
            token = "a-token-of-some-length"
            keys = [{ name = "ci", sha256 = "aa", role = "reader" }]
            [correlation.redis]
            url = "rediss://user:hunter2@cache.example:6379/0"
        "#;
        let (file, problems) = Layer::from_toml("flowvigil.toml", file);
        assert!(problems.is_empty(), "{problems:?}");
        let environment = Layer::from_environment([("FLOWVIGIL__STATISTICAL__WINDOW".to_owned(), "2m".to_owned())]);
        let texts = [("telemetry.log_level", "/f/level", "hunter3"), ("publish.sqlite.path", "/f/path", "there.db")];
        let texts = texts.map(|(key, name, value)| (key.to_owned(), name.to_owned(), value.to_owned()));
        let store = Layer::from_texts("Parameter Store", texts);
        let all = effective(&[file, environment, store], |name| name == "/f/level");
        let of = |key: &str| {
            let found = all.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("{key}: {all:?}"));
            (found.value.clone(), found.from.as_str(), found.changeable)
        };
        let text = |text: &str| Value::from(text);
        assert_eq!(of("api.token"), (text(HIDDEN), "flowvigil.toml:3", false));
        assert_eq!(of("correlation.redis.url").0, "rediss://user:(not shown)@cache.example:6379/0");
        assert_eq!(of("statistical.window"), (text("2m"), "environment FLOWVIGIL__STATISTICAL__WINDOW", false));
        assert_eq!(of("telemetry.log_level"), (text(HIDDEN), "Parameter Store /f/level", true));
        assert_eq!(of("publish.sqlite.path").0, "there.db");
        assert_eq!(of("api.page_max"), (Value::from(500), "defaults.toml", false));
        assert_eq!(of("api.keys").0[0]["name"], "ci");
        let written = serde_json::to_string(&all.iter().map(|setting| &setting.value).collect::<Vec<_>>()).unwrap();
        for secret in ["a-token-of", "hunter", "aa\""] {
            assert!(!written.contains(secret), "{secret}: {written}");
        }
        let (arn, _) = Layer::from_toml("f", "[api]\ntoken = \"arn:aws:secretsmanager:eu-west-1:1:secret:t\"");
        let shown = effective(&[arn], |_| false).into_iter().find(|setting| setting.key == "api.token");
        assert_eq!(shown.unwrap().value, "arn:aws:secretsmanager:eu-west-1:1:secret:t");
    }
}
