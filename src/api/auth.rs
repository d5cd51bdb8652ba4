//! Who may ask, and as whom.
//!
//! Where only this machine is answered, a web page of somebody else that is open on it must not ask: browsers say in
//! `sec-fetch-site` and `origin` whose page it is, and `host` tells a name that was pointed here from this machine's own.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::clients::Client;
use super::keys::{self, ApiKey};
use super::oidc::Issuer;
use super::problem::Problem;
use super::roles::Role;
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
    /// Bearers of a credential that is known.
    Bearer(Box<Credentials>),
    /// Whoever is on this machine.
    Loopback,
    /// Anybody: the settings insist.
    Anybody,
}

/// What is known of those who may ask.
#[derive(Debug, Default)]
pub struct Credentials {
    /// SHA-256 of the token. Comparing digests tells nothing of the token by its timing.
    token: Option<([u8; 32], Role)>,
    keys: Vec<ApiKey>,
    issuer: Option<Issuer>,
}

impl Credentials {
    /// Who brings a bearer token.
    async fn admit(&self, token: &str, now: Timestamp) -> Result<Principal, Problem> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let of = |name: String, role| Principal { bucket: name.clone(), name, role };
        if let Some((known, role)) = self.token
            && known == digest
        {
            return Ok(of("token".to_owned(), role));
        }
        if let Some(key) = keys::find(&self.keys, digest, now) {
            return key.map(|key| of(format!("key {}", key.name), key.role));
        }
        // A signed token has three parts; nothing else does.
        if let Some(issuer) = self.issuer.as_ref().filter(|_| token.split('.').count() == 3) {
            let bearer = issuer.admit(token, u64::try_from(now.as_second()).unwrap_or_default()).await?;
            return Ok(of(format!("oidc {}", bearer.subject), bearer.role));
        }
        let remedy = "bring the token of api.token_file, a key of api.keys, or a token of api.oidc";
        Err(Problem::new(StatusCode::UNAUTHORIZED, "the bearer token is not valid", remedy).of_field("authorization"))
    }
}

impl Access {
    /// Settles it from the settings.
    pub fn settle(settings: &Settings) -> Result<Access, AccessError> {
        let keys = settings.keys.clone();
        let issuer = settings.oidc.as_ref().map(Issuer::new);
        let credentials =
            Credentials { token: token(settings)?.map(|digest| (digest, settings.token_role)), keys, issuer };
        if credentials.token.is_some() || !credentials.keys.is_empty() || credentials.issuer.is_some() {
            return Ok(Access::Bearer(Box::new(credentials)));
        }
        match settings.listen.ip() {
            ip if ip.is_loopback() => Ok(Access::Loopback),
            _ if settings.public_without_token => Ok(Access::Anybody),
            ip => Err(AccessError::Open(ip)),
        }
    }

    /// As whom a request may be answered.
    async fn admit(&self, headers: &HeaderMap, client: Option<Client>) -> Result<Principal, Problem> {
        let from = client.map_or_else(|| "unknown".to_owned(), |client| client.bucket().to_string());
        match self {
            Access::Anybody => {
                self.refuse_foreign_pages(headers)?;
                let name = format!("peer {from}");
                Ok(Principal { bucket: name.clone(), name, role: Role::Analyst })
            }
            Access::Loopback => {
                match text(headers, header::HOST) {
                    Some(host) if is_this_machine(host) => {}
                    _ => {
                        return Err(Problem::new(
                            StatusCode::FORBIDDEN,
                            "the `host` header names neither an address nor localhost",
                            "ask by address, as in http://127.0.0.1:8080/, or set api.token_file",
                        )
                        .of_field("host"));
                    }
                }
                self.refuse_foreign_pages(headers)?;
                Ok(Principal { name: "loopback".to_owned(), bucket: format!("loopback {from}"), role: Role::Admin })
            }
            Access::Bearer(credentials) => match text(headers, header::AUTHORIZATION).and_then(bearer) {
                Some(token) => credentials.admit(token, Timestamp::now()).await,
                None => Err(Problem::new(
                    StatusCode::UNAUTHORIZED,
                    "there is no token in the `authorization` header",
                    "send `authorization: Bearer TOKEN` with the token of api.token_file, a key of api.keys, or a token of \
                     api.oidc",
                )
                .of_field("authorization")),
            },
        }
    }

    /// Whether whoever sent these headers may see what parts of the service say of their troubles.
    pub(super) async fn shows_details(&self, headers: &HeaderMap) -> bool {
        !matches!(self, Access::Anybody) && self.admit(headers, None).await.is_ok()
    }

    /// Where there is no token, a page of somebody else could ask in its visitor's place.
    pub(super) fn refuse_foreign_pages(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let refuse = |field: &str| {
            let detail = format!("`{field}` says that a page of somebody else asks");
            let remedy = "ask from the page of this service, or from a program; or set api.token_file";
            Err(Problem::new(StatusCode::FORBIDDEN, detail, remedy).of_field(field))
        };
        if matches!(self, Access::Bearer(_)) {
            return Ok(());
        }
        if text(headers, HeaderName::from_static("sec-fetch-site"))
            .is_some_and(|site| !matches!(site, "same-origin" | "none"))
        {
            return refuse("sec-fetch-site");
        }
        // A proxy may ask under another name than the page has; on this machine there is none.
        if matches!(self, Access::Loopback)
            && let Some(origin) = headers.get(header::ORIGIN)
        {
            let host = text(headers, header::HOST).unwrap_or_default();
            let same = origin.to_str().is_ok_and(|origin| origin.strip_prefix("http://").is_some_and(|o| o == host));
            if !same {
                return refuse("origin");
            }
        }
        Ok(())
    }
}

/// Who asks, as far as that is proven.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    /// What verdicts and suppressions are kept under: `token`, `key` and its name, `oidc` and the subject, `loopback`, or `peer`
    /// and from where.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// What counts as one for the rate limit.
    bucket: String,
}

/// The digest of the token of the settings, if there is one.
fn token(settings: &Settings) -> Result<Option<[u8; 32]>, AccessError> {
    let path = settings.token_file.clone();
    let (place, token) = match path.as_os_str().is_empty() {
        true => ("api.token".to_owned(), settings.token.0.clone()),
        false => match std::fs::read_to_string(&path) {
            Ok(text) => (path.display().to_string(), text),
            Err(cause) => return Err(AccessError::Unreadable { path, cause }),
        },
    };
    let token = token.trim();
    if token.is_empty() && path.as_os_str().is_empty() {
        return Ok(None);
    }
    if token.len() < TOKEN_MIN {
        return Err(AccessError::Short { place });
    }
    Ok(Some(Sha256::digest(token).into()))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The token of an `authorization` header; the name of a scheme is written in any case (RFC 9110).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Says so where others on the machine can read the token: then it is no secret.
pub(super) fn warn_of_readers(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let Ok(about) = std::fs::metadata(path) else { return };
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            file = %path.display(),
            mode = format!("{mode:04o}"),
            "OTHERS CAN READ OR WRITE api.token_file: chmod 600 it, and take another token if this machine has other users"
        );
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

/// Lets a request through as whoever it is of, or answers why not, or when to come again.
pub async fn guard(State(context): State<Context>, mut request: Request, next: Next) -> Response {
    let client = Client::of(request.extensions(), request.headers(), &context.proxies);
    let admitted = context.access.admit(request.headers(), client).await;
    match admitted {
        Ok(principal) => match context.limiter.admit(&principal.bucket) {
            Ok(()) => {
                request.extensions_mut().insert(principal);
                next.run(request).await
            }
            Err(too_many) => too_many.into_response(),
        },
        Err(problem) => match context.limiter.fail(client.map(Client::bucket)) {
            Ok(()) => problem.into_response(),
            Err(too_many) => too_many.into_response(),
        },
    }
}

/// The same for pages that hold nothing and ask for no token.
pub async fn open(State(context): State<Context>, request: Request, next: Next) -> Response {
    let client = Client::of(request.extensions(), request.headers(), &context.proxies);
    // Whoever follows a link to the page comes from another site; a script there has no business here.
    let follows = text(request.headers(), HeaderName::from_static("sec-fetch-mode")) == Some("navigate");
    if !follows && let Err(problem) = context.access.refuse_foreign_pages(request.headers()) {
        return match context.limiter.fail(client.map(Client::bucket)) {
            Ok(()) => problem.into_response(),
            Err(too_many) => too_many.into_response(),
        };
    }
    match context.limiter.open(client.map(Client::bucket)) {
        Ok(()) => next.run(request).await,
        Err(too_many) => too_many.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[tokio::test]
    async fn a_page_of_somebody_else_is_refused_and_our_own_and_programs_are_not() {
        for (ask, refused) in [
            (&[("host", "127.0.0.1:8080")][..], None),
            (
                &[("host", "127.0.0.1:8080"), ("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1:8080")],
                None,
            ),
            (&[("host", "127.0.0.1:8080"), ("sec-fetch-site", "none")], None),
            (&[("host", "127.0.0.1:8080"), ("sec-fetch-site", "cross-site")], Some("sec-fetch-site")),
            (&[("host", "127.0.0.1:8080"), ("sec-fetch-site", "same-site")], Some("sec-fetch-site")),
            (&[("host", "127.0.0.1:8080"), ("origin", "https://evil.example")], Some("origin")),
            (&[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:3000")], Some("origin")),
            (&[("host", "127.0.0.1:8080"), ("origin", "null")], Some("origin")),
            (&[("host", "evil.example"), ("origin", "http://evil.example")], Some("host")),
            (&[], Some("host")),
        ] {
            let admitted = Access::Loopback.admit(&headers(ask), None).await;
            assert_eq!(admitted.err().and_then(|problem| problem.field).as_deref(), refused, "{ask:?}");
        }
        let cross = headers(&[("sec-fetch-site", "cross-site")]);
        assert!(Access::Anybody.admit(&cross, None).await.is_err());
        let token = Some((Sha256::digest("a-token-of-some-length").into(), Role::Reader));
        let token = Access::Bearer(Box::new(Credentials { token, ..Credentials::default() }));
        let brought = headers(&[("sec-fetch-site", "cross-site"), ("authorization", "bEaReR a-token-of-some-length")]);
        assert_eq!(token.admit(&brought, None).await.unwrap().name, "token");
    }

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
