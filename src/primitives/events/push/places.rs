//! How many requests go on at once, in all: places in two pools, so that endpoints that are slow or do not answer wait
//! for each other, and those that answer at once wait for none of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An endpoint whose last attempt took no longer is prompt.
pub(super) const PROMPT: Duration = Duration::from_secs(1);

/// The places. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Places {
    prompt: Arc<Semaphore>,
    slow: Arc<Semaphore>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    is_prompt: bool,
}

impl Places {
    /// So many in each of the two pools.
    pub(super) fn new(in_each: usize) -> Self {
        Self { prompt: Arc::new(Semaphore::new(in_each)), slow: Arc::new(Semaphore::new(in_each)) }
    }

    /// One place, for which it waits, and up to `wanted` in all where they are free. None where the pool is closed,
    /// which it never is.
    pub(super) async fn take(&self, is_prompt: bool, wanted: usize) -> Vec<Place> {
        let pool = if is_prompt { &self.prompt } else { &self.slow };
        let place = |permit| Place { _permit: permit, is_prompt };
        let Ok(first) = Arc::clone(pool).acquire_owned().await else { return Vec::new() };
        let more = std::iter::repeat_with(|| Arc::clone(pool).try_acquire_owned());
        let more = more.take(wanted.saturating_sub(1)).map_while(Result::ok);
        std::iter::once(first).chain(more).map(place).collect()
    }

    /// Moves a request that turned out not to be prompt to a place among the slow ones. Where none is free there, it
    /// keeps the one that it has: the bound in all holds.
    pub(super) fn demote(&self, place: &mut Place) {
        if place.is_prompt
            && let Ok(permit) = Arc::clone(&self.slow).try_acquire_owned()
        {
            *place = Place { _permit: permit, is_prompt: false };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_that_takes_long_gives_its_place_back_to_the_prompt_ones() {
        let places = Places::new(2);
        let mut taken = places.take(true, 5).await;
        assert_eq!(taken.len(), 2);
        assert_eq!(places.prompt.available_permits(), 0);
        for place in &mut taken {
            places.demote(place);
        }
        assert_eq!((places.prompt.available_permits(), places.slow.available_permits()), (2, 0));
        let mut third = places.take(true, 1).await;
        places.demote(&mut third[0]);
        assert_eq!(places.prompt.available_permits(), 1, "no place among the slow ones: it keeps its own");
        drop(taken);
        places.demote(&mut third[0]);
        assert_eq!((places.prompt.available_permits(), places.slow.available_permits()), (2, 1));
    }
}
