//! Settings in Systems Manager's Parameter Store: read at the start, and again and again while the service runs.
//!
//! A parameter's name below the path is the key with slashes for dots: `/flowvigil/validation/storm/anomalies_max`. Its
//! value is written as in the environment; lists also as JSON or as a `StringList`.

use std::collections::BTreeSet;

use aws_config::SdkConfig;
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::json;

use super::{Layer, Problems};
use crate::aws::Fault;
use crate::aws::json::{JsonClient, SSM};

/// What problems call this layer.
const PLACE: &str = "Parameter Store";

/// Settings `[settings.ssm]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What the names of the parameters begin with.
    pub path: String,
    /// How often they are read.
    pub interval: SignedDuration,
    /// Deadline of one attempt of a call.
    pub timeout: SignedDuration,
}

/// The parameters below a path.
#[derive(Clone, Debug)]
pub struct Parameters {
    client: JsonClient,
    path: String,
}

/// The parameters as they were at a moment.
#[derive(Clone, Debug)]
pub struct Read {
    /// Ready to be laid over the other layers.
    pub layer: Layer,
    /// How many there were.
    pub count: usize,
    /// The names of those that were encrypted.
    encrypted: BTreeSet<String>,
}

impl Parameters {
    /// The parameters of the settings' path, in the account of the configuration.
    pub fn new(aws: &SdkConfig, settings: &Settings) -> Parameters {
        let path = format!("/{}", settings.path.trim_matches('/'));
        Parameters { client: JsonClient::new(aws, SSM, settings.timeout), path }
    }

    /// Reads all of them, page by page, decrypted.
    ///
    /// # Errors
    /// What the service said; no value stands in it.
    pub async fn read(&self) -> Result<Read, Fault> {
        let mut entries = Vec::new();
        let mut encrypted = BTreeSet::new();
        let mut token: Option<String> = None;
        loop {
            let mut input = json!({"Path": self.path, "Recursive": true, "WithDecryption": true, "MaxResults": 10});
            if let Some(token) = &token {
                input["NextToken"] = json!(token);
            }
            let page: Page = self.client.call("GetParametersByPath", &input).await?;
            for parameter in page.parameters {
                if parameter.kind == "SecureString" {
                    encrypted.insert(parameter.name.clone());
                }
                entries.push(self.entry(parameter));
            }
            // A page may be empty and still not be the last (SSM API reference, `GetParametersByPath`).
            token = page.next_token.filter(|token| !token.is_empty());
            if token.is_none() {
                break;
            }
        }
        entries.sort();
        let count = entries.len();
        Ok(Read { layer: Layer::from_texts(PLACE, entries), count, encrypted })
    }

    /// Key, name and value.
    fn entry(&self, parameter: Parameter) -> (String, String, String) {
        let below = parameter.name.strip_prefix(&self.path).unwrap_or(&parameter.name);
        let key = below.trim_matches('/').replace('/', ".");
        let value = if parameter.kind == "StringList" { list(&parameter.value) } else { parameter.value };
        (key, parameter.name, value)
    }
}

impl Read {
    /// Whether the parameter of a name was encrypted.
    pub fn is_encrypted(&self, name: &str) -> bool {
        self.encrypted.contains(name)
    }

    /// The problems without what an encrypted parameter holds.
    pub fn hide(&self, problems: Problems) -> Problems {
        let hidden = |mut problem: super::Problem| {
            if self.encrypted.contains(&problem.key) {
                problem.message = "its value is refused, and not shown since it is encrypted".to_owned();
            }
            problem
        };
        Problems(problems.0.into_iter().map(hidden).collect())
    }
}

/// A `StringList` as a list in TOML: what reads as a number stays one.
fn list(value: &str) -> String {
    let item = |item: &str| match item.trim() {
        number if number.parse::<f64>().is_ok() => number.to_owned(),
        text => toml::Value::String(text.to_owned()).to_string(),
    };
    let items: Vec<String> = value.split(',').filter(|item| !item.trim().is_empty()).map(item).collect();
    format!("[{}]", items.join(", "))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    parameters: Vec<Parameter>,
    next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Parameter {
    name: String,
    #[serde(default, rename = "Type")]
    kind: String,
    #[serde(default)]
    value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_list_is_a_list_whose_numbers_stay_numbers() {
        assert_eq!(list("10.0.0.0/8, fd00::/8"), r#"["10.0.0.0/8", "fd00::/8"]"#);
        assert_eq!(list("53,443"), "[53, 443]");
        assert_eq!(list(""), "[]");
    }
}
