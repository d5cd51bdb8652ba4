//! Who may ask.

use std::net::IpAddr;
use std::path::PathBuf;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::problem::Problem;
use super::{Context, Settings};

/// The shortest token that is taken: 16 characters of base64 are 96 bits.
const TOKEN_MIN: usize = 16;

/// Why it cannot be settled who may ask.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The token file cannot be read.
    #[error("read api.token_file {}: {cause}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Too short to be a secret.
    #[error("the token in {place} has fewer than {TOKEN_MIN} characters; `openssl rand -base64 24` makes a good one")]
    Short {
        /// Which file, or setting.
        place: String,
    },
    /// Anybody who reaches the address could read and judge anomalies.
    #[error(
        "{0} can be reached by others and there is no token: set api.token_file or api.token, listen on 127.0.0.1, or set \
         api.public_without_token = true behind something that asks who is there"
    )]
    Open(IpAddr),
}

/// A token in the settings, which nothing prints.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "(not shown)" })
    }
}

/// Who may ask.
#[derive(Debug)]
pub enum Access {
    /// Whoever brings the token with this SHA-256. Comparing digests tells nothing of the token by its timing.
    Token([u8; 32]),
    /// Whoever is on this machine.
    Loopback,
    /// Anybody: the settings insist.
    Anybody,
}

impl Access {
    /// Settles it from the settings.
    pub fn settle(settings: &Settings) -> Result<Access, AccessError> {
        let path = settings.token_file.clone();
        if path.as_os_str().is_empty() && !settings.token.0.trim().is_empty() {
            let token = settings.token.0.trim();
            if token.len() < TOKEN_MIN {
                return Err(AccessError::Short { place: "api.token".to_owned() });
            }
            return Ok(Access::Token(Sha256::digest(token).into()));
        }
        if path.as_os_str().is_empty() {
            return match settings.listen.ip() {
                ip if ip.is_loopback() => Ok(Access::Loopback),
                _ if settings.public_without_token => Ok(Access::Anybody),
                ip => Err(AccessError::Open(ip)),
            };
        }
        match std::fs::read_to_string(&path) {
            Ok(text) if text.trim().len() < TOKEN_MIN => Err(AccessError::Short { place: path.display().to_string() }),
            Ok(text) => Ok(Access::Token(Sha256::digest(text.trim()).into())),
            Err(cause) => Err(AccessError::Unreadable { path, cause }),
        }
    }

    /// Whether a request with these headers may be answered.
    fn admits(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
        match self {
            Access::Anybody => Ok(()),
            Access::Loopback => match text(header::HOST) {
                Some(host) if is_this_machine(host) => Ok(()),
                _ => Err(Problem::new(
                    StatusCode::FORBIDDEN,
                    "the `host` header names neither an address nor localhost",
                    "ask by address, as in http://127.0.0.1:8080/, or set api.token_file",
                )),
            },
            Access::Token(digest) => {
                let brought = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
                match brought {
                    Some(token) if <[u8; 32]>::from(Sha256::digest(token.trim())) == *digest => Ok(()),
                    Some(_) => Err(Problem::new(
                        StatusCode::UNAUTHORIZED,
                        "the token is another one",
                        "bring the token of api.token_file",
                    )),
                    None => Err(Problem::new(
                        StatusCode::UNAUTHORIZED,
                        "there is no token in the `authorization` header",
                        "send `authorization: Bearer TOKEN` with the token of api.token_file",
                    )),
                }
            }
        }
    }
}

/// Whether a `host` header is an address or `localhost`, with or without a port.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

/// Lets a request through, or answers why not.
pub async fn guard(State(context): State<Context>, request: Request, next: Next) -> Response {
    match context.access.admits(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_this_machine() {
        for host in ["localhost", "localhost:8080", "127.0.0.1", "127.0.0.1:1", "[::1]:80", "[::1]"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", ""] {
            assert!(!is_this_machine(host), "{host}");
        }
    }
}
