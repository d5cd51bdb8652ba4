//! API keys: secrets with a name, a role and an end, of which the settings hold the digest alone.

use axum::http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;

use super::problem::Problem;
use super::roles::Role;

/// One of `[[api.keys]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Whose it is; verdicts, suppressions and the audit trail name it.
    pub name: String,
    /// SHA-256 of the key, in hex.
    pub sha256: Digest,
    /// What it may do.
    pub role: Role,
    /// From when on it is refused; never where it is left out.
    pub expires: Option<Timestamp>,
}

/// A SHA-256 in hex.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest(pub [u8; 32]);

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || serde::de::Error::custom("a SHA-256 is 64 hex digits; `printf %s KEY | sha256sum` makes it");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut digest = [0; 32];
        for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Digest(digest))
    }
}

/// The key of a digest, if there is one. Comparing digests says nothing of a key by its timing.
pub(super) fn find(keys: &[ApiKey], digest: [u8; 32], now: Timestamp) -> Option<Result<&ApiKey, Problem>> {
    let key = keys.iter().find(|key| key.sha256 == Digest(digest))?;
    Some(match key.expires {
        Some(expires) if expires <= now => {
            let detail = format!("the API key `{}` has expired at {expires}", key.name);
            let remedy = "make another key, and put its digest into api.keys";
            Err(Problem::new(StatusCode::UNAUTHORIZED, detail, remedy).of_field("authorization"))
        }
        _ => Ok(key),
    })
}

/// What is wrong with keys that are each well-formed.
pub(super) fn check(keys: &[ApiKey]) -> Option<String> {
    let mut names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    names.sort_unstable();
    if names.iter().any(|name| name.trim().is_empty() || name.chars().count() > 100) {
        return Some("a key has a name of 1 to 100 characters".to_owned());
    }
    let twice = names.windows(2).find(|pair| pair[0] == pair[1])?;
    Some(format!("two keys are named `{}`", twice[0]))
}
