//! Key sets: what makes a key usable, and what makes a set none.

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use super::super::keys::{KeySet, KeySetError};
use super::*;

fn parse(keys: &[Value]) -> Result<usize, KeySetError> {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes(), true).map(|set| set.len())
}

fn with(jwk: &Value, member: &str, value: Value) -> Value {
    let mut jwk = jwk.clone();
    jwk[member] = value;
    jwk
}

#[test]
fn a_key_that_is_weak_or_for_something_else_is_left_out() {
    let ec = Signer::es256("e").jwk;
    let rsa = Signer::rsa("r", Algorithm::RS256, "RS256").jwk;
    let ed = Signer::ed25519("o").jwk;
    let oct = Signer::hs256("h", &[1; 32]).jwk;
    let good = Signer::es384("good").jwk;
    for bad in [
        with(&ec, "use", json!("enc")),
        with(&ec, "use", json!(7)),
        with(&ec, "key_ops", json!(["sign"])),
        with(&ec, "key_ops", json!("verify")),
        with(&ec, "kty", json!("XYZ")),
        with(&ec, "kty", json!(null)),
        with(&ec, "crv", json!("P-521")),
        with(&ec, "crv", json!("P-384")),
        with(&ec, "alg", json!("RS256")),
        with(&ec, "alg", json!("none")),
        with(&ec, "alg", json!(7)),
        with(&ec, "kid", json!(7)),
        with(&ec, "kid", json!("")),
        with(&ec, "x", ec["y"].clone()),
        with(&ec, "x", json!(encode([0; 32]))),
        with(&ec, "x", json!("AA")),
        with(&ec, "x", json!(null)),
        with(&rsa, "n", json!(encode([0xff; 128]))),
        with(&rsa, "n", json!(encode([0xff; 1025]))),
        with(&rsa, "n", json!(encode([&[0; 200][..], &[0xff; 128]].concat()))),
        with(&rsa, "n", json!(format!("{}=", rsa["n"].as_str().unwrap()))),
        with(&rsa, "e", json!(encode([1]))),
        with(&rsa, "e", json!(encode([1, 0]))),
        with(&rsa, "e", json!("")),
        with(&rsa, "alg", json!("HS256")),
        with(&rsa, "alg", json!("RSA-OAEP")),
        with(&ed, "crv", json!("X25519")),
        with(&ed, "x", json!(encode([7; 31]))),
        with(&oct, "k", json!(encode([1; 31]))),
        with(&oct, "alg", json!("HS512")),
        with(&oct, "alg", json!("RS256")),
    ] {
        assert!(matches!(parse(std::slice::from_ref(&bad)), Err(KeySetError::NoUsableKey(_))), "{bad}");
        assert_eq!(parse(&[bad, good.clone()]), Ok(1));
    }
    let others = [with(&ec, "key_ops", json!(["verify"])), with(&ec, "use", json!("sig"))];
    for fine in others.iter().chain([&rsa, &ed, &oct]) {
        assert_eq!(parse(&[fine.clone(), good.clone()]), Ok(2), "{fine}");
    }
}

#[test]
fn a_document_is_bounded_and_unambiguous() {
    let (a, b) = (Signer::es256("a").jwk, Signer::es256("b").jwk);
    assert_eq!(parse(&[a.clone(), b.clone()]), Ok(2));
    assert_eq!(parse(&[a.clone(), with(&b, "kid", json!("a"))]), Err(KeySetError::DoubledKeyId));
    assert_eq!(parse(&vec![json!({"kty": "x"}); 65]), Err(KeySetError::TooMany));
    assert_eq!(parse(&[]), Err(KeySetError::Empty));
    let padded = format!("{{\"keys\":[{a}]}}{}", " ".repeat(256 * 1024));
    assert_eq!(KeySet::parse(padded.as_bytes(), true).err(), Some(KeySetError::TooLong));
    let doubled = format!("{{\"keys\":[],\"keys\":[{a}]}}");
    let null_member = format!("{{\"keys\":[{a},null]}}");
    for document in ["", "[]", "{}", "{\"keys\":{}}", doubled.as_str(), null_member.as_str()] {
        assert_eq!(KeySet::parse(document.as_bytes(), true).err(), Some(KeySetError::Shape), "{document}");
    }
}

#[test]
fn symmetric_keys_are_refused_by_name_unless_they_are_asked_for() {
    let (good, oct) = (Signer::es256("good").jwk, Signer::hs256("h", &[1; 32]).jwk);
    let set = KeySet::parse(json!({ "keys": [good, oct] }).to_string().as_bytes(), false).ok().unwrap();
    let refused: Vec<String> = set.symmetric().map(ToString::to_string).collect();
    assert_eq!((set.len(), refused.len()), (1, 1));
    assert!(refused[0].starts_with("key 1 is symmetric (`oct`)") && refused[0].contains("hs256: true"));
    let alone = KeySet::parse(json!({ "keys": [oct] }).to_string().as_bytes(), false).err().unwrap();
    assert!(alone.to_string().contains("key 0 is symmetric"), "{alone}");
}
