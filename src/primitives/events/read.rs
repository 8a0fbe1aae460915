//! Out of the log: a topic's events, in order, of one tenant or of several.

use super::audience::Sees;
use super::{Audience, Logged, Position, ReadFrom, postgres, sqlite};
use crate::names::Name;
use crate::store::{Store, StoreError, Tx};

/// How much earlier than its neighbours in the log an event may have been accepted, in milliseconds: its time is that
/// of its transaction's beginning, and its place is drawn at the end.
const SLACK_MS: i64 = 60_000;

/// What is read next.
#[derive(Debug, Clone)]
pub struct Scan {
    pub(super) sees: Sees,
    pub(super) topic: Name,
    /// What comes after this.
    pub after: Position,
    /// When the event at that place was accepted, where that is known.
    pub after_ms: i64,
    /// Only events of these types; of all where it is empty.
    pub kinds: Vec<String>,
    /// At most so many events.
    pub max_rows: u32,
    /// And no event behind so many bytes of others.
    pub max_bytes: i64,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The events, in order.
    pub events: Vec<Logged>,
    /// From here the next page is read.
    pub next: Position,
    /// Whether there was nothing more.
    pub at_head: bool,
}

/// Events that were asked for by their positions.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// In order.
    pub(super) events: Vec<Logged>,
    /// Kept too, and not read, for their bytes.
    pub(super) unread: Vec<Position>,
}

impl Scan {
    /// Of the audience's topic, from the beginning.
    #[must_use]
    pub fn new(audience: &Audience) -> Self {
        Self {
            sees: audience.sees(),
            topic: audience.topic().clone(),
            after: Position::START,
            after_ms: 0,
            kinds: Vec::new(),
            max_rows: 500,
            max_bytes: 1024 * 1024,
        }
    }
}

/// Reads the next page.
pub async fn page(store: &Store, audience: &Audience, scan: &Scan) -> Result<Page, StoreError> {
    let scan = scan.clone();
    store
        .read(audience, move |tx| {
            let scan = scan.clone();
            Box::pin(async move { page_in(tx, &scan).await })
        })
        .await
}

async fn page_in(tx: &mut Tx<'_>, scan: &Scan) -> Result<Page, StoreError> {
    let limit = readable(tx).await?;
    let events = rows(tx, scan, limit).await?;
    let full = events.len() == scan.max_rows as usize || bytes(&events) >= scan.max_bytes;
    let last = events.last().map_or(scan.after, |event| event.position);
    let next = if full { last } else { passed(tx, scan, last, limit).await? };
    Ok(Page { events, next, at_head: !full })
}

/// How far a scan has come that found nothing after `last`: what was looked at and not wanted is not looked at again.
///
/// On PostgreSQL no further than to an event: the sequence goes back to what a promoted standby knows of it, and of numbers
/// that were drawn and not committed it may know nothing. An event that can be read is there too.
async fn passed(
    tx: &mut Tx<'_>,
    scan: &Scan,
    last: Position,
    limit: Position,
) -> Result<Position, StoreError> {
    match tx {
        Tx::Postgres(_) if scan.kinds.is_empty() => Ok(last),
        Tx::Postgres(tx) => postgres::newest(tx, &scan.sees, scan.topic.as_str(), last, limit).await,
        Tx::Sqlite(_) => Ok(last.max(limit)),
    }
}

/// The place of the newest event of a topic that may be read, or one after it where no event can come any more.
pub(super) async fn newest(
    tx: &mut Tx<'_>,
    sees: &Sees,
    topic: &str,
    readable: Position,
) -> Result<Position, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::newest(tx, sees, topic, Position::START, readable).await,
        Tx::Sqlite(_) => Ok(readable),
    }
}

/// The scan's next events up to `limit`, which was found before this statement.
pub(super) async fn rows(tx: &mut Tx<'_>, scan: &Scan, limit: Position) -> Result<Vec<Logged>, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::page(tx, scan, limit).await,
        Tx::Sqlite(tx) => sqlite::page(tx, scan, limit),
    }
}

pub(super) async fn at(
    tx: &mut Tx<'_>,
    sees: &Sees,
    topic: &str,
    positions: &[Position],
    max_bytes: i64,
) -> Result<Kept, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::at(tx, sees, topic, positions, max_bytes).await,
        Tx::Sqlite(tx) => sqlite::at(tx, sees, topic, positions, max_bytes),
    }
}

fn bytes(events: &[Logged]) -> i64 {
    let bytes: usize = events.iter().map(|event| event.attributes.len() + event.data.bytes().len()).sum();
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The place after which a read from there begins.
pub async fn place(store: &Store, audience: &Audience, from: ReadFrom) -> Result<Position, StoreError> {
    let (sees, topic) = (audience.sees(), audience.topic().clone());
    match from {
        ReadFrom::Earliest => Ok(Position::START),
        ReadFrom::Cursor(cursor) => Ok(cursor.position),
        ReadFrom::Latest => {
            store
                .read(audience, move |tx| {
                    let (sees, topic) = (sees.clone(), topic.clone());
                    Box::pin(async move {
                        let end = readable(tx).await?;
                        newest(tx, &sees, topic.as_str(), end).await
                    })
                })
                .await
        }
        ReadFrom::Time(time_ms) => {
            store
                .read(audience, move |tx| {
                    let (sees, topic) = (sees.clone(), topic.clone());
                    Box::pin(async move { place_of_time(tx, &sees, topic.as_str(), time_ms).await })
                })
                .await
        }
    }
}

pub(super) async fn readable(tx: &mut Tx<'_>) -> Result<Position, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::readable(tx).await,
        Tx::Sqlite(tx) => sqlite::readable(tx),
    }
}

async fn first_after(
    tx: &mut Tx<'_>,
    sees: &Sees,
    topic: &str,
    position: Position,
    not_before_ms: i64,
) -> Result<Option<(Position, i64)>, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::first_after(tx, sees, topic, position, not_before_ms).await,
        Tx::Sqlite(tx) => sqlite::first_after(tx, sees, topic, position, not_before_ms),
    }
}

/// The last place before every event that was accepted at `time_ms` or later: halved towards it by position, since
/// times are nearly in the order of positions, and then looked for among its neighbours.
pub(super) async fn place_of_time(
    tx: &mut Tx<'_>,
    sees: &Sees,
    topic: &str,
    time_ms: i64,
) -> Result<Position, StoreError> {
    let end = readable(tx).await?;
    let end = newest(tx, sees, topic, end).await?;
    let (mut low, mut high) = (Position::START.number(), end.number());
    let near_ms = time_ms.saturating_sub(SLACK_MS);
    while low < high {
        let middle = low + (high - low) / 2;
        match first_after(tx, sees, topic, Position::new(middle), 0).await? {
            // All that is after the middle is too early until past this event.
            Some((found, accepted_ms)) if accepted_ms < near_ms => low = found.number().min(high),
            Some(_) | None => high = middle,
        }
    }
    let found = first_after(tx, sees, topic, Position::new(low), time_ms).await?;
    // What is visible beyond the end may have neighbours that are not yet.
    Ok(found.map_or(end, |(found, _)| Position::new(found.number() - 1).min(end)))
}
