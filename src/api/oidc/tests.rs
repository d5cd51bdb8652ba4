use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::ring::rand::SystemRandom;
use ::ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use super::*;

/// A key that was made for these tests and signs nothing else.
const RSA: &str = include_str!("rsa_of_tests.txt");

const NOW: u64 = 1_800_000_000;

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn rsa() -> RsaKeyPair {
    let text: String = RSA.split_whitespace().collect();
    RsaKeyPair::from_pkcs8(&STANDARD.decode(text).unwrap()).unwrap()
}

fn ec() -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap()
}

fn jwk_of_rsa(id: &str, key: &RsaKeyPair) -> Value {
    let public: ::ring::rsa::PublicKeyComponents<Vec<u8>> = key.public().into();
    json!({"kty": "RSA", "kid": id, "use": "sig", "alg": "RS256", "n": encode(&public.n), "e": encode(&public.e)})
}

fn jwk_of_ec(id: &str, key: &EcdsaKeyPair) -> Value {
    let point = key.public_key().as_ref();
    json!({"kty": "EC", "kid": id, "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..])})
}

/// A token of these parts, with what signs it.
fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
    let signature = sign(message.as_bytes());
    format!("{message}.{}", encode(&signature))
}

fn by_rsa(key: &RsaKeyPair, message: &[u8]) -> Vec<u8> {
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
    signature
}

fn by_ec(key: &EcdsaKeyPair, message: &[u8]) -> Vec<u8> {
    key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
}

/// An issuer that serves its discovery document and its keys on this machine.
struct Served {
    url: String,
    keys: Arc<Mutex<Vec<Value>>>,
    asked: Arc<AtomicUsize>,
}

fn serve(keys: Vec<Value>) -> Served {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = Served { url: url.clone(), keys: Arc::new(Mutex::new(keys)), asked: Arc::default() };
    let (keys, asked) = (served.keys.clone(), served.asked.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let length = stream.read(&mut head).unwrap();
            let body = if head[..length].starts_with(b"GET /keys ") {
                asked.fetch_add(1, Ordering::SeqCst);
                json!({"keys": *keys.lock().unwrap()})
            } else {
                json!({"issuer": url, "jwks_uri": format!("{url}/keys")})
            };
            let body = body.to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    served
}

fn issuer(url: &str) -> Issuer {
    let some = |name: &str| vec![name.to_owned()];
    Issuer::new(&Settings {
        issuer: url.to_owned(),
        audience: some("flowvigil"),
        clients: some("client-1"),
        jwks_url: String::new(),
        groups_claim: "cognito:groups".to_owned(),
        readers: some("readers"),
        analysts: some("flowvigil/judge"),
        admins: some("admins"),
        refresh: SignedDuration::from_hours(1),
        timeout: SignedDuration::from_secs(5),
    })
}

/// Claims that are right, with others in their place; null takes one away.
fn claims(url: &str, other: &Value) -> Value {
    let mut claims = json!({
        "iss": url, "sub": "u-1", "aud": "flowvigil", "exp": NOW + 600, "cognito:groups": ["readers"]
    });
    for (name, value) in other.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

#[tokio::test]
async fn signed_tokens_of_the_issuer_have_the_role_of_their_groups_or_scopes() {
    let (rsa, ec) = (rsa(), ec());
    // An encryption key and one of an unknown kind stand beside them.
    let strange = json!({"kty": "OKP", "kid": "x", "crv": "X448", "x": "AA"});
    let served = serve(vec![strange, jwk_of_rsa("r", &rsa), jwk_of_ec("e", &ec)]);
    let issuer = issuer(&served.url);
    for (other, role) in [
        (json!({}), Role::Reader),
        (json!({"cognito:groups": ["readers", "admins"]}), Role::Admin),
        (json!({"cognito:groups": null, "scope": "openid flowvigil/judge"}), Role::Analyst),
        (json!({"aud": ["another", "flowvigil"]}), Role::Reader),
        (json!({"aud": null, "client_id": "client-1", "token_use": "access"}), Role::Reader),
    ] {
        let claims = claims(&served.url, &other);
        for signed in [
            token(&json!({"alg": "RS256", "kid": "r"}), &claims, |message| by_rsa(&rsa, message)),
            token(&json!({"alg": "ES256", "kid": "e", "typ": "at+jwt"}), &claims, |message| by_ec(&ec, message)),
        ] {
            let bearer = issuer.admit(&signed, NOW).await.unwrap_or_else(|problem| panic!("{claims}: {problem:?}"));
            assert_eq!(bearer, Bearer { subject: "u-1".to_owned(), role }, "{claims}");
        }
    }
    assert_eq!(served.asked.load(Ordering::SeqCst), 1, "keys are kept");
}

#[tokio::test]
async fn what_proves_nothing_is_refused_with_what_is_wrong() {
    let (rsa, ec) = (rsa(), ec());
    let served = serve(vec![jwk_of_rsa("r", &rsa), jwk_of_ec("e", &ec)]);
    let issuer = issuer(&served.url);
    let rs256 = json!({"alg": "RS256", "kid": "r"});
    let right = claims(&served.url, &json!({}));
    let good = token(&rs256, &right, |message| by_rsa(&rsa, message));
    let public: ::ring::rsa::PublicKeyComponents<Vec<u8>> = rsa.public().into();
    let hmac = |secret: &[u8], message: &[u8]| {
        ::ring::hmac::sign(&::ring::hmac::Key::new(::ring::hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
    };
    let hs256 = json!({"alg": "HS256", "kid": "r"});
    let longer = |message: &[u8]| {
        let mut signature = vec![0; rsa.public().modulus_len()];
        rsa.sign(&RSA_PKCS1_SHA512, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    };
    let (head, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = head.split_once('.').unwrap();
    let admin = claims(&served.url, &json!({"cognito:groups": ["admins"]}));
    let forged = format!("{header}.{}.{signature}", encode(admin.to_string().as_bytes()));
    let stranger = self::ec();
    let mut refused = vec![
        ("no algorithm", token(&json!({"alg": "none", "kid": "r"}), &right, |_| Vec::new())),
        ("the modulus as a shared secret", token(&hs256, &right, |message| hmac(&public.n, message))),
        ("the public key as a shared secret", token(&hs256, &right, |m| hmac(rsa.public_key().as_ref(), m))),
        ("another algorithm", token(&json!({"alg": "RS512", "kid": "r"}), &right, longer)),
        ("a key of another kind", token(&json!({"alg": "ES256", "kid": "r"}), &right, |m| by_ec(&ec, m))),
        ("a key of somebody else", token(&json!({"alg": "ES256", "kid": "e"}), &right, |m| by_ec(&stranger, m))),
        ("an unknown key", token(&json!({"alg": "RS256", "kid": "z"}), &right, |m| by_rsa(&rsa, m))),
        ("no key id", token(&json!({"alg": "RS256"}), &right, |m| by_rsa(&rsa, m))),
        ("other claims", forged),
        ("no signature", format!("{head}.")),
        ("no token", "a.b.c".to_owned()),
    ];
    for (what, other) in [
        ("expired", json!({"exp": NOW - LEEWAY - 1})),
        ("no end", json!({"exp": null})),
        ("not yet", json!({"nbf": NOW + LEEWAY + 10})),
        ("another issuer", json!({"iss": "https://issuer.example"})),
        ("another audience", json!({"aud": "another"})),
        ("another client", json!({"aud": null, "client_id": "client-2"})),
        ("nobody", json!({"sub": null})),
    ] {
        refused.push((what, token(&rs256, &claims(&served.url, &other), |message| by_rsa(&rsa, message))));
    }
    assert!(issuer.admit(&good, NOW).await.is_ok());
    for (what, token) in refused {
        let problem = issuer.admit(&token, NOW).await.expect_err(what);
        assert_eq!((problem.status, problem.field.as_deref()), (401, Some("authorization")), "{what}: {problem:?}");
    }
    let nothing = claims(&served.url, &json!({"cognito:groups": ["others"]}));
    let problem = issuer.admit(&token(&rs256, &nothing, |m| by_rsa(&rsa, m)), NOW).await.unwrap_err();
    assert_eq!(problem.status, 403, "it is known who it is, and may do nothing: {problem:?}");
}

#[tokio::test]
async fn keys_are_fetched_again_for_an_unknown_one_but_not_for_every_one() {
    let (old, new) = (ec(), ec());
    let served = serve(vec![jwk_of_ec("old", &old)]);
    let issuer = issuer(&served.url);
    let claims = claims(&served.url, &json!({}));
    let of = |id: &str, key: &EcdsaKeyPair| {
        token(&json!({"alg": "ES256", "kid": id}), &claims, |message| by_ec(key, message))
    };
    assert!(issuer.admit(&of("old", &old), NOW).await.is_ok());
    *served.keys.lock().unwrap() = vec![jwk_of_ec("new", &new)];
    for n in 0..5 {
        assert!(issuer.admit(&of(&format!("invented {n}"), &new), NOW).await.is_err());
    }
    assert_eq!(served.asked.load(Ordering::SeqCst), 1, "invented keys do not send us to the issuer each time");
    issuer.lock().tried = Instant::now().checked_sub(FETCH_PAUSE);
    assert!(issuer.admit(&of("new", &new), NOW).await.is_ok());
    assert_eq!(issuer.admit(&of("old", &old), NOW).await.unwrap_err().status, 401, "what the issuer has taken back");
    assert_eq!(served.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn while_the_issuer_is_away_known_keys_count_and_without_any_it_is_said() {
    let key = ec();
    let served = serve(vec![jwk_of_ec("e", &key)]);
    let away = issuer("http://127.0.0.1:9");
    let of = |url: &str| {
        token(&json!({"alg": "ES256", "kid": "e"}), &claims(url, &json!({})), |message| by_ec(&key, message))
    };
    let problem = away.admit(&of("http://127.0.0.1:9"), NOW).await.unwrap_err();
    assert_eq!(problem.status, 503, "{problem:?}");
    let mut here = issuer(&served.url);
    assert!(here.admit(&of(&served.url), NOW).await.is_ok());
    // The keys are too old, and the issuer gives none any more.
    here.settings.refresh = SignedDuration::ZERO;
    here.settings.jwks_url = "http://127.0.0.1:9/keys".to_owned();
    here.lock().tried = None;
    assert!(here.admit(&of(&served.url), NOW).await.is_ok());
}

#[test]
fn settings_that_let_anybody_or_nobody_in_are_refused_by_name() {
    let right = issuer("https://issuer.example").settings;
    assert_eq!(right.check(), []);
    let wrong = |change: &dyn Fn(&mut Settings)| {
        let mut settings = right.clone();
        change(&mut settings);
        settings.check().into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    assert_eq!(wrong(&|s| s.issuer = "http://issuer.example".to_owned()), ["oidc.issuer"]);
    assert_eq!(wrong(&|s| s.jwks_url = "http://issuer.example/keys".to_owned()), ["oidc.jwks_url"]);
    assert_eq!(wrong(&|s| (s.audience, s.clients) = (Vec::new(), Vec::new())), ["oidc.audience"]);
    assert_eq!(wrong(&|s| (s.readers, s.analysts, s.admins) = (Vec::new(), Vec::new(), Vec::new())), ["oidc.readers"]);
}
