//! Out of the log: a topic's events, in order, of one tenant or of several.

use uuid::Uuid;

use super::audience::Sees;
use super::{Audience, Logged, Position, ReadFrom, postgres, sqlite};
use crate::names::Name;
use crate::store::{Store, StoreError, Tx};

/// How much earlier than its neighbours in the log an event may have been accepted, in milliseconds: its time is that
/// of its transaction's beginning, and its place is drawn at the end.
const SLACK_MS: i64 = 60_000;

/// Rows that one statement looks through at the most, where most of them may be of no use: a tenant's of the topic, beside
/// those of the types that are wanted, or everyone's of the log, beside those of a fleet's topic.
pub(super) const STEP: i64 = 5000;

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
    /// No events of these tenants.
    pub(super) without: Vec<Uuid>,
    /// At most so many events.
    pub max_rows: u32,
    /// And no event behind so many bytes of others.
    pub max_bytes: i64,
}

/// What was read: events, or where a step of the log had none of those that are wanted, how far it was looked through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The events, in order.
    pub events: Vec<Logged>,
    /// From here the next page is read.
    pub next: Position,
    /// [`Scan::after_ms`] of the next page.
    pub next_ms: i64,
    /// Whether there was nothing more. A page without events that is not at the head is followed by another.
    pub at_head: bool,
}

/// The part of the log that the next statement looks through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// Its last position. What is looked for after the scan's place and up to here is found with [`STEP`] rows.
    pub(super) to: Position,
    /// From where to go on, where nothing in it is wanted.
    pub(super) next: Position,
    /// [`Scan::after_ms`] there.
    pub(super) next_ms: i64,
    /// Whether nothing comes after it that may be read.
    pub(super) is_last: bool,
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
            without: Vec::new(),
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
    let step = step(tx, scan, limit).await?;
    let events = if step.to > scan.after { rows(tx, scan, step.to).await? } else { Vec::new() };
    let last = events.last().map(|event| (event.position, event.accepted_ms));
    if events.len() == scan.max_rows as usize || bytes(&events) >= scan.max_bytes {
        let (next, next_ms) = last.unwrap_or((scan.after, scan.after_ms));
        return Ok(Page { events, next, next_ms, at_head: false });
    }
    let (last, last_ms) = last.unwrap_or((scan.after, scan.after_ms));
    let (next, next_ms) =
        if step.next > last { (step.next, step.next_ms.max(last_ms)) } else { (last, last_ms) };
    Ok(Page { events, next, next_ms, at_head: step.is_last })
}

/// The next step of a scan, up to `limit`: what was looked at and not wanted is not looked at again.
///
/// On PostgreSQL no further than to an event, of whomever: the sequence goes back to what a promoted standby knows of it,
/// and of numbers that were drawn and not committed it may know nothing. An event that can be read is there too, and with
/// it all numbers below it.
pub(super) async fn step(tx: &mut Tx<'_>, scan: &Scan, limit: Position) -> Result<Step, StoreError> {
    if let Sees::One(_) = scan.sees {
        if scan.kinds.is_empty() {
            // Every row is of use: it ends by itself.
            let next = if matches!(tx, Tx::Sqlite(_)) { limit.max(scan.after) } else { scan.after };
            return Ok(Step { to: limit, next, next_ms: scan.after_ms, is_last: true });
        }
        let horizon = match tx {
            Tx::Postgres(tx) => postgres::horizon(tx, scan, limit, STEP).await?,
            Tx::Sqlite(tx) => sqlite::horizon(tx, scan, limit, STEP)?,
        };
        return Ok(match horizon {
            Some((to, next_ms, rows)) => Step { to, next: to, next_ms, is_last: rows < STEP },
            None => Step { to: scan.after, next: scan.after, next_ms: scan.after_ms, is_last: true },
        });
    }
    let Some(span) = span(tx, scan.after, limit).await? else {
        return Ok(Step { to: scan.after, next: scan.after, next_ms: scan.after_ms, is_last: true });
    };
    // What retention took from the beginning is no step.
    let end = span.first.number().saturating_add(STEP - 1);
    let to = span.last.min(Position::new(end));
    Ok(Step { to, next: to, next_ms: scan.after_ms.max(span.first_ms), is_last: to == span.last })
}

/// The first and the last event, of whomever, after a position and up to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: Position,
    /// When it was accepted, in milliseconds since 1970.
    pub(super) first_ms: i64,
    pub(super) last: Position,
}

pub(super) async fn span(tx: &mut Tx<'_>, after: Position, to: Position) -> Result<Option<Span>, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::span(tx, after, to).await,
        Tx::Sqlite(tx) => sqlite::span(tx, after, to),
    }
}

/// The place of the newest event of a topic that may be read, or one after it where no event can come any more.
pub(super) async fn newest(
    tx: &mut Tx<'_>,
    sees: &Sees,
    topic: &str,
    readable: Position,
) -> Result<Position, StoreError> {
    match (tx, sees) {
        (Tx::Postgres(tx), Sees::One(tenant)) => postgres::newest(tx, *tenant, topic, readable).await,
        // Of a fleet's topic the newest may be far back: the newest of any topic does as well.
        (Tx::Postgres(tx), Sees::Every | Sees::These(_)) => {
            let span = postgres::span(tx, Position::START, readable).await?;
            Ok(span.map_or(Position::START, |span| span.last))
        }
        (Tx::Sqlite(_), _) => Ok(readable),
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

pub(super) fn bytes(events: &[Logged]) -> i64 {
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
        ReadFrom::Time(time_ms) => place_of_time(store, audience, time_ms).await,
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
    topic: &Topic<'_>,
    position: Position,
    to: Position,
    not_before_ms: i64,
) -> Result<Option<(Position, i64)>, StoreError> {
    match tx {
        Tx::Postgres(tx) => postgres::first_after(tx, topic, position, to, not_before_ms).await,
        Tx::Sqlite(tx) => sqlite::first_after(tx, topic, position, to, not_before_ms),
    }
}

/// Whose events of which topic.
pub(super) struct Topic<'t> {
    pub(super) sees: &'t Sees,
    pub(super) name: &'t str,
}

/// The last place before every event that was accepted at `time_ms` or later: halved towards it by position, since
/// times are nearly in the order of positions, and then looked for among its neighbours. For a fleet it is halved by the
/// events of the whole log. The neighbours are looked through in steps, a transaction each: others go between.
async fn place_of_time(store: &Store, audience: &Audience, time_ms: i64) -> Result<Position, StoreError> {
    let scan = Scan::new(audience);
    let halving = scan.clone();
    let halved: Result<_, StoreError> = store
        .read(audience, move |tx| {
            let scan = halving.clone();
            Box::pin(async move { halved(tx, &scan, time_ms).await })
        })
        .await;
    let (mut after, end) = halved?;
    loop {
        let scan = Scan { after, ..scan.clone() };
        let looked: Result<_, StoreError> = store
            .read(audience, move |tx| {
                let scan = scan.clone();
                Box::pin(async move { look_for_time(tx, &scan, end, time_ms).await })
            })
            .await;
        match looked? {
            Looked::Found(place) => return Ok(place),
            Looked::On(next) => after = next,
        }
    }
}

/// A place before every event of that time or later, though not the last such, and the end of what can be read.
async fn halved(tx: &mut Tx<'_>, scan: &Scan, time_ms: i64) -> Result<(Position, Position), StoreError> {
    let end = readable(tx).await?;
    let end = newest(tx, &scan.sees, scan.topic.as_str(), end).await?;
    let topic = Topic { sees: &scan.sees, name: scan.topic.as_str() };
    let (mut low, mut high) = (Position::START.number(), end.number());
    let near_ms = time_ms.saturating_sub(SLACK_MS);
    while low < high {
        let middle = low + (high - low) / 2;
        let found = if matches!(scan.sees, Sees::One(_)) {
            first_after(tx, &topic, Position::new(middle), end, 0).await?
        } else {
            span(tx, Position::new(middle), end).await?.map(|span| (span.first, span.first_ms))
        };
        match found {
            // All that is after the middle is too early until past this event.
            Some((found, accepted_ms)) if accepted_ms < near_ms => low = found.number().min(high),
            Some(_) | None => high = middle,
        }
    }
    Ok((Position::new(low), end))
}

/// What a step of a look for a time found.
enum Looked {
    /// The place.
    Found(Position),
    /// Nothing: it goes on after this.
    On(Position),
}

/// Looks for the first event of that time or later among the next of a scan.
async fn look_for_time(
    tx: &mut Tx<'_>,
    scan: &Scan,
    end: Position,
    time_ms: i64,
) -> Result<Looked, StoreError> {
    let topic = Topic { sees: &scan.sees, name: scan.topic.as_str() };
    let (to, is_last) = if matches!(scan.sees, Sees::One(_)) {
        let horizon = match tx {
            Tx::Postgres(tx) => postgres::horizon(tx, scan, end, STEP).await?,
            Tx::Sqlite(tx) => sqlite::horizon(tx, scan, end, STEP)?,
        };
        let Some((to, _, rows)) = horizon else { return Ok(Looked::Found(end)) };
        (to, rows < STEP)
    } else {
        let Some(ahead) = span(tx, scan.after, end).await? else { return Ok(Looked::Found(end)) };
        // Its neighbours are behind: no event of that time or later was passed.
        if ahead.first_ms >= time_ms.saturating_add(SLACK_MS) {
            return Ok(Looked::Found(scan.after));
        }
        (ahead.last.min(Position::new(ahead.first.number().saturating_add(STEP - 1))), false)
    };
    Ok(match first_after(tx, &topic, scan.after, to, time_ms).await? {
        Some((found, _)) => Looked::Found(Position::new(found.number() - 1)),
        None if is_last => Looked::Found(end),
        None => Looked::On(to),
    })
}
