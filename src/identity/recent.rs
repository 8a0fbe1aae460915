//! The token that a connection carried last: most connections carry one and the same, and comparing it is
//! fifty times cheaper than its digest.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Principal;
use super::cache::{Digest, Entry, Generation};

/// A longer token is looked up by its digest each time: connections are many, and this is memory.
const MAX_BYTES: usize = 1024;

/// What one connection's last token was.
#[derive(Default)]
pub struct Recent(Mutex<Last>);

#[derive(Default)]
enum Last {
    #[default]
    Nothing,
    /// Seen once: a connection of a single call is not worth a copy of its token.
    Once(Digest),
    Held {
        token: Box<[u8]>,
        entry: Entry,
    },
}

impl Recent {
    /// The principal of the token that was last, if `token` is that one and is still accepted.
    pub(super) fn get(&self, token: &[u8], now_ms: i64, generation: Generation) -> Option<Arc<Principal>> {
        match &*self.0.lock() {
            Last::Held { token: held, entry } if **held == *token => entry.principal(now_ms, generation),
            _ => None,
        }
    }

    /// Notes a token that was accepted.
    pub(super) fn note(&self, token: &[u8], digest: Digest, entry: Entry) {
        let mut last = self.0.lock();
        let again = matches!(&*last, Last::Once(held) if *held == digest);
        *last = if again && token.len() <= MAX_BYTES {
            Last::Held { token: Box::from(token), entry: entry.apart() }
        } else {
            Last::Once(digest)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::TokenCache;
    use super::super::cache::tests::verified;
    use super::*;

    #[test]
    fn a_token_is_held_from_its_second_use_and_void_with_its_time_and_its_keys() {
        let (cache, recent) = (TokenCache::new(16), Recent::default());
        let entry = cache.insert(Digest::of(b"a"), verified(1000), cache.generation());
        recent.note(b"a", Digest::of(b"a"), entry.clone());
        assert!(recent.get(b"a", 0, cache.generation()).is_none(), "after one use");
        recent.note(b"a", Digest::of(b"a"), entry.clone());
        assert!(recent.get(b"a", 999, cache.generation()).is_some());
        assert!(recent.get(b"b", 999, cache.generation()).is_none(), "another token");
        assert!(recent.get(b"a", 1000, cache.generation()).is_none(), "its time is over");
        cache.flush();
        assert!(recent.get(b"a", 999, cache.generation()).is_none(), "its keys are gone");
    }

    #[test]
    fn a_long_token_is_not_kept() {
        let (cache, recent) = (TokenCache::new(16), Recent::default());
        let token = b"t".repeat(MAX_BYTES + 1);
        let digest = Digest::of(&token);
        let entry = cache.insert(digest, verified(1000), cache.generation());
        for _ in 0..3 {
            recent.note(&token, digest, entry.clone());
        }
        assert!(recent.get(&token, 0, cache.generation()).is_none());
    }
}
