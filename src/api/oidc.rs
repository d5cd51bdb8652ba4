//! Tokens of an OpenID Connect issuer, such as Amazon Cognito: signed, of the issuer that the settings name, made for this
//! service, not expired, with a role by their groups or scopes.
//!
//! Only RS256 and ES256 are taken, each with a key of its own kind: a token that says `none`, or that is "signed" with a public
//! key as if it were a shared secret, has no verifier here at all. Keys are fetched from the issuer and kept; a token with an
//! unknown key id makes them be fetched again, once in a while, which is how an issuer rotates its keys.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use jiff::SignedDuration;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::problem::Problem;
use super::roles::Role;
use crate::wait::positive;

mod http;
mod ring;

/// Settings `[api.oidc]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The issuer, as in the `iss` of its tokens.
    pub issuer: String,
    /// Who the tokens are made for: one of these is in `aud`.
    pub audience: Vec<String>,
    /// Or which client they were given to: one of these is `client_id` or `azp`.
    pub clients: Vec<String>,
    /// Where the keys are; empty: where the issuer's discovery document says.
    pub jwks_url: String,
    /// The claim with the groups.
    pub groups_claim: String,
    /// Groups or scopes of readers.
    pub readers: Vec<String>,
    /// Groups or scopes of analysts.
    pub analysts: Vec<String>,
    /// Groups or scopes of admins.
    pub admins: Vec<String>,
    /// For how long keys are kept before they are fetched again.
    pub refresh: SignedDuration,
    /// Deadline of fetching them.
    pub timeout: SignedDuration,
}

impl Settings {
    /// What is wrong with values that are each in range, by key.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut wrong = |key: &str, message: &str| found.push((key.to_owned(), message.to_owned()));
        if !is_guarded(&self.issuer) {
            wrong("oidc.issuer", "an issuer begins with https://");
        }
        if !self.jwks_url.is_empty() && !is_guarded(&self.jwks_url) {
            wrong("oidc.jwks_url", "keys come over https://");
        }
        if self.audience.is_empty() && self.clients.is_empty() {
            wrong("oidc.audience", "name who tokens are made for, or in `clients` whom they are given to");
        }
        if self.readers.is_empty() && self.analysts.is_empty() && self.admins.is_empty() {
            wrong("oidc.readers", "name the groups or scopes of at least one role, or no token is taken");
        }
        found
    }
}

/// The token has begun and has not expired, by clocks that differ a little.
fn check_moments(claims: &Map<String, Value>, now: u64) -> Result<(), Problem> {
    let moment = |name: &str| claims.get(name).and_then(Value::as_f64);
    let (now, leeway) = (now as f64, LEEWAY as f64);
    match moment("exp") {
        Some(expires) if expires + leeway > now => {}
        Some(_) => return Err(refused("the token has expired".to_owned())),
        None => return Err(refused("the token does not say when it expires".to_owned())),
    }
    if moment("nbf").is_some_and(|from| from > now + leeway) {
        return Err(refused("the token is not valid yet".to_owned()));
    }
    Ok(())
}

/// Whether what comes from there cannot be changed on the way: TLS, or this machine.
fn is_guarded(url: &str) -> bool {
    let here = ["http://127.0.0.1:", "http://localhost:", "http://[::1]:"];
    url.starts_with("https://") || here.iter().any(|start| url.starts_with(start))
}

/// Seconds by which clocks may differ.
const LEEWAY: u64 = 60;

/// An unknown key id makes the keys be fetched again no more often than this.
const FETCH_PAUSE: Duration = Duration::from_secs(10);

/// Keys that are kept of an issuer at most.
const KEYS_MAX: usize = 100;

/// Who a token is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bearer {
    /// Its `sub`.
    pub subject: String,
    /// What it may do.
    pub role: Role,
}

/// An issuer whose tokens are taken.
#[derive(Debug)]
pub(super) struct Issuer {
    settings: Settings,
    keys: Mutex<Keys>,
    /// One fetches, the others wait for it.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Keys {
    by_id: HashMap<String, Jwk>,
    fetched: Option<Instant>,
    /// Also where it failed.
    tried: Option<Instant>,
}

impl Issuer {
    pub(super) fn new(settings: &Settings) -> Issuer {
        ring::install();
        Issuer { settings: settings.clone(), keys: Mutex::default(), fetching: tokio::sync::Mutex::default() }
    }

    /// Who a token is of, at a moment (s since 1970).
    ///
    /// # Errors
    /// Why it is refused: 401 where it proves nothing, 403 where it gives no role, 503 where the keys cannot be had.
    pub(super) async fn admit(&self, token: &str, now: u64) -> Result<Bearer, Problem> {
        let header = jsonwebtoken::decode_header(token)
            .map_err(|error| refused(format!("the token is no signed JWT that is taken here: {error}")))?;
        if !matches!(header.alg, Algorithm::RS256 | Algorithm::ES256) {
            return Err(refused(format!("the token is signed with {:?}", header.alg)));
        }
        let id = header.kid.ok_or_else(|| refused("the token names no key (`kid`)".to_owned()))?;
        let key = self.key(&id).await?;
        fits(&key, header.alg)?;
        let key = DecodingKey::from_jwk(&key).map_err(|error| refused(format!("the issuer's key `{id}`: {error}")))?;
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        // Audience and moments are looked at below: Cognito's access tokens have no `aud`, and time comes as an argument.
        (validation.validate_aud, validation.validate_exp, validation.validate_nbf) = (false, false, false);
        let claims: Map<String, Value> = jsonwebtoken::decode(token, &key, &validation)
            .map_err(|error| refused(format!("the token is not valid: {error}")))?
            .claims;
        check_moments(&claims, now)?;
        self.check_audience(&claims)?;
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default().to_owned();
        let role = self.role(&claims).ok_or_else(|| {
            let detail =
                format!("no group in `{}` and no scope of the token has a role here", self.settings.groups_claim);
            let remedy = "add the user to a group, or the client to a scope, that api.oidc names";
            Problem::new(StatusCode::FORBIDDEN, detail, remedy).of_field("authorization")
        })?;
        Ok(Bearer { subject, role })
    }

    fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), Problem> {
        let Settings { audience, clients, .. } = &self.settings;
        let made_for = words(claims.get("aud")).any(|one| audience.iter().any(|known| known == one));
        let mut given_to = ["client_id", "azp"].into_iter().filter_map(|name| claims.get(name)?.as_str());
        if made_for || given_to.any(|client| clients.iter().any(|known| known == client)) {
            return Ok(());
        }
        Err(refused("the token is for another audience or client than api.oidc names".to_owned()))
    }

    /// The highest role that groups and scopes give.
    fn role(&self, claims: &Map<String, Value>) -> Option<Role> {
        let Settings { readers, analysts, admins, groups_claim, .. } = &self.settings;
        let groups = words(claims.get(groups_claim));
        // A client's scopes stand in one text.
        let scopes = claims.get("scope").and_then(Value::as_str).unwrap_or_default().split(' ');
        let given: Vec<&str> = groups.chain(scopes).filter(|name| !name.is_empty()).collect();
        let any = |names: &[String]| names.iter().any(|name| given.contains(&name.as_str()));
        [(admins, Role::Admin), (analysts, Role::Analyst), (readers, Role::Reader)]
            .into_iter()
            .find(|(names, _)| any(names))
            .map(|(_, role)| role)
    }

    /// The key of an id, fetched where it is not known or too old.
    async fn key(&self, id: &str) -> Result<Jwk, Problem> {
        if let Some(key) = self.known(id) {
            return Ok(key);
        }
        let _turn = self.fetching.lock().await;
        if let Some(key) = self.known(id) {
            return Ok(key);
        }
        let tried = self.lock().tried;
        if tried.is_none_or(|tried| tried.elapsed() >= FETCH_PAUSE) {
            self.lock().tried = Some(Instant::now());
            let fetched = self.fetch().await;
            let mut keys = self.lock();
            match fetched {
                Ok(set) => {
                    let named =
                        set.keys.into_iter().take(KEYS_MAX).filter_map(|key| Some((key.common.key_id.clone()?, key)));
                    (keys.by_id, keys.fetched) = (named.collect(), Some(Instant::now()));
                }
                Err(cause) => {
                    let issuer = &self.settings.issuer;
                    tracing::warn!(issuer, cause, "the keys of the OpenID Connect issuer cannot be fetched");
                }
            }
        }
        let keys = self.lock();
        if let Some(key) = keys.by_id.get(id) {
            // Known keys count on while the issuer is away.
            return Ok(key.clone());
        }
        if keys.fetched.is_none() {
            let detail = "the keys of the OpenID Connect issuer cannot be fetched";
            let remedy = "try again in a moment; the log of the service has the cause";
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail, remedy));
        }
        Err(refused(format!("the issuer has no key `{}`", id.chars().take(100).collect::<String>())))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, id: &str) -> Option<Jwk> {
        let keys = self.lock();
        let fresh = keys.fetched.is_some_and(|fetched| fetched.elapsed() < positive(self.settings.refresh));
        keys.by_id.get(id).filter(|_| fresh).cloned()
    }

    async fn fetch(&self) -> Result<JwkSet, String> {
        let timeout = positive(self.settings.timeout);
        let mut url = self.settings.jwks_url.clone();
        if url.is_empty() {
            let issuer = self.settings.issuer.trim_end_matches('/');
            let found = http::get(&format!("{issuer}/.well-known/openid-configuration"), timeout).await?;
            let found: Value = serde_json::from_slice(&found).map_err(|error| error.to_string())?;
            // Another issuer's document would bring another issuer's keys.
            if found["issuer"].as_str().map(|name| name.trim_end_matches('/')) != Some(issuer) {
                return Err("the discovery document is of another issuer".to_owned());
            }
            url = found["jwks_uri"].as_str().unwrap_or_default().to_owned();
            if !is_guarded(&url) {
                return Err("the discovery document names no jwks_uri over https://".to_owned());
            }
        }
        let found = http::get(&url, timeout).await?;
        // A key of a kind that is not known here is no reason to take none.
        let mut found: Value = serde_json::from_slice(&found).map_err(|error| error.to_string())?;
        let keys = found["keys"].as_array_mut().map(std::mem::take).ok_or("it is no set of keys")?;
        let keys = keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect();
        Ok(JwkSet { keys })
    }
}

/// Whether a key is of the kind that an algorithm takes, and made for signatures.
fn fits(key: &Jwk, algorithm: Algorithm) -> Result<(), Problem> {
    let kind = match (&key.algorithm, algorithm) {
        (AlgorithmParameters::RSA(_), Algorithm::RS256) => true,
        (AlgorithmParameters::EllipticCurve(curve), Algorithm::ES256) => curve.curve == EllipticCurve::P256,
        _ => false,
    };
    let signs = key.common.public_key_use.as_ref().is_none_or(|of| *of == PublicKeyUse::Signature);
    if kind && signs {
        return Ok(());
    }
    Err(refused(format!("the issuer's key is not one for {algorithm:?}")))
}

/// The texts of a claim that is one text or a list of them.
fn words(claim: Option<&Value>) -> impl Iterator<Item = &str> {
    let (one, many) = match claim {
        Some(Value::String(one)) => (Some(one.as_str()), None),
        Some(Value::Array(many)) => (None, Some(many)),
        _ => (None, None),
    };
    one.into_iter().chain(many.into_iter().flatten().filter_map(Value::as_str))
}

fn refused(detail: String) -> Problem {
    let remedy = "ask with a token that the issuer of api.oidc has signed for this service and that has not expired";
    Problem::new(StatusCode::UNAUTHORIZED, detail, remedy).of_field("authorization")
}

#[cfg(test)]
mod tests;
