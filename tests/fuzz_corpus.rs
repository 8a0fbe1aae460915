//! The fuzz targets on their corpora, and on seeded mutations of them: what a fuzzer once found stays mended.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/mod.rs"]
mod support;
#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;

use support::random::{Random, seed, size};

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 5, "the corpus of {target} is not there");
    paths.into_iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// One of the things that a fuzzer does: a byte changed, taken out or put in, or the tail of another entry.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len() as u64 + 1) as usize;
    let byte = random.next() as u8;
    match random.below(4) {
        0 if at < bytes.len() => bytes[at] = byte,
        1 if at < bytes.len() => {
            bytes.remove(at);
        }
        2 => {
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random.below(other.len() as u64 + 1) as usize..]);
        }
        _ => bytes.insert(at, byte),
    }
}

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = corpus(target);
    for bytes in &corpus {
        run(bytes);
    }
    let seed = seed();
    println!("seed {seed}");
    let mut random = Random::new(seed);
    let entry = |random: &mut Random| corpus[random.below(corpus.len() as u64) as usize].clone();
    for _ in 0..size(3_000, 300_000) {
        let mut bytes = entry(&mut random);
        let other = entry(&mut random);
        for _ in 0..=random.below(6) {
            mutate(&mut bytes, &other, &mut random);
        }
        run(&bytes);
    }
}

#[test]
fn the_path_parser_stands_its_corpus() {
    replay("path", targets::path);
}

#[test]
fn the_token_checks_stand_their_corpus() {
    replay("token", targets::token);
}

#[test]
fn the_policy_parser_stands_its_corpus() {
    replay("policy", targets::policy);
}

#[test]
fn the_cache_envelope_stands_its_corpus() {
    replay("envelope", targets::envelope);
}

#[test]
fn the_reader_of_events_stands_its_corpus() {
    replay("events", targets::events);
}
