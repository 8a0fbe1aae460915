//! Records as they are sent: read without a tree, checked, and made into points.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::fields::{Fields, Text};
use super::{Amount, Day, KEYS_DAYS, PointKey, fingerprint, metadata};
use crate::names::{Key, Name};
use crate::rfc3339;

/// The most records in one call.
pub const MAX_RECORDS: usize = 10_000;
/// The most tags of one record.
const MAX_TAGS: usize = 16;
/// The longest value of a tag, in bytes.
const MAX_TAG_BYTES: usize = 256;
/// How far ahead of this process's clock a record's time may be, in microseconds.
const AHEAD_US: i64 = 300_000_000;
const DAY_US: i64 = 86_400_000_000;
/// By how much this process's clock and the store's differ at the most.
const CLOCKS_DIFFER_US: i64 = DAY_US;
/// Fields that are named in one answer.
const MAX_WRONG: usize = 100;

/// The body of a call.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Records<'a> {
    /// 1 to 10,000 of them.
    #[serde(borrow)]
    pub records: Vec<Record<'a>>,
}

/// A record as it is sent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record<'a> {
    /// What is counted.
    #[serde(borrow)]
    pub metric: Cow<'a, str>,
    /// How much: a number, read from its text, or a string with one.
    #[serde(borrow)]
    pub value: &'a RawValue,
    /// When it was used, RFC 3339.
    #[serde(borrow)]
    pub time: Cow<'a, str>,
    /// Names it: the same once more is a duplicate.
    #[serde(borrow)]
    pub idempotency_key: Cow<'a, str>,
    /// By what it can be grouped: texts by name.
    #[serde(default, borrow)]
    pub tags: Option<&'a RawValue>,
    /// What the client wants kept with it: an object.
    #[serde(default, borrow)]
    pub metadata: Option<&'a RawValue>,
    /// The key of a record that this one, which is negative, takes back in part or as a whole.
    #[serde(default, borrow)]
    pub corrects: Option<Cow<'a, str>>,
}

/// What is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Its metric's place in the call's list.
    pub metric: u16,
    /// What names it.
    pub key: PointKey,
    /// What tells it from another one of that key.
    pub fingerprint: i64,
    /// How much.
    pub value: Amount,
    /// When it was used.
    pub time: Timestamp,
    /// Its tags, sorted by name, each once.
    pub tags: Vec<(Box<str>, Box<str>)>,
    /// Its metadata as a JSON object; of a correction with the key that it corrects.
    pub metadata: Option<Box<str>>,
    /// What it corrects.
    pub corrects: Option<PointKey>,
}

impl Point {
    /// About what it adds to the store, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let tags: usize = self.tags.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        (tags + self.metadata.as_ref().map_or(0, |text| text.len()) + 512) as u64
    }

    /// Its tags as a JSON object; nothing where it has none.
    #[must_use]
    pub fn tags_text(&self) -> Option<String> {
        let tags: serde_json::Map<_, _> =
            self.tags.iter().map(|(name, value)| (name.to_string(), (**value).into())).collect();
        (!tags.is_empty()).then(|| serde_json::Value::Object(tags).to_string())
    }
}

/// A field that is wrong, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// RFC 6901, from the body's root.
    pub pointer: String,
    /// What would be right.
    pub detail: String,
}

/// What holds for a metric's records.
#[derive(Debug, Clone, Copy)]
pub struct AcceptWindow {
    /// How old a record may be, in microseconds.
    pub accept_late_us: i64,
    /// This process's clock, in microseconds since 1970.
    pub now_us: i64,
}

impl AcceptWindow {
    /// Of records whose time was looked at before.
    pub const EVERYTHING: Self = Self { accept_late_us: i64::MAX / 2, now_us: i64::MAX / 4 };
}

/// A record that came later than its metric's are taken: it may only be one that was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late {
    /// Its number in its call.
    pub number: usize,
    /// How old it might have been, in microseconds.
    pub accept_late_us: i64,
    /// Whether it is later by more than clocks differ: no other clock is asked.
    pub is_far: bool,
}

/// Checks one call's records, and names all that is wrong in them.
#[derive(Default)]
pub struct Checks {
    wrong: Vec<Wrong>,
    count: usize,
    late: Vec<Late>,
}

impl Checks {
    /// The point of a tenant's record with this number, of a metric that was found; nothing where something in it is wrong.
    pub fn point(
        &mut self,
        tenant: Uuid,
        number: usize,
        record: &Record<'_>,
        metric: (u16, &Name),
        window: AcceptWindow,
    ) -> Option<Point> {
        let before = self.count;
        let value = self.value(number, record.value);
        let time = self.time(number, &record.time, window);
        let place = self.wrong.len();
        if let Err(error) = Key::check(&record.idempotency_key) {
            self.wrong(number, "/idempotency_key", error.to_string());
        }
        let tags = record.tags.map_or_else(|| Some(Vec::new()), |tags| self.tags(number, tags));
        let corrects = record.corrects.as_deref();
        if let Some(corrects) = corrects {
            self.correction(number, corrects, value);
        }
        let metadata = self.metadata(number, record.metadata, corrects);
        if self.count > before {
            // What is wrong was not counted, so that it is too late as well.
            if let Some((_, Some(late))) = time {
                self.wrong_at(place, number, "/time", taken_for(late.accept_late_us));
            }
            return None;
        }
        let (value, (time, late), tags, metadata) = (value?, time?, tags?, metadata?);
        self.late.extend(late);
        let key = |text: &str| PointKey::new(tenant, metric.1.as_str(), Day::of(time), text);
        let time_us = time.as_microsecond();
        let fingerprint =
            fingerprint(value, time_us, &canonical(&tags), metadata.as_deref().unwrap_or_default());
        let (key, corrects) = (key(&record.idempotency_key), corrects.map(key));
        Some(Point { metric: metric.0, key, fingerprint, value, time, tags, metadata, corrects })
    }

    /// The records that may only be known ones; or what is wrong, if anything is: more than a hundred fields are counted and not named.
    pub fn into_result(mut self) -> Result<Vec<Late>, Vec<Wrong>> {
        if self.count > self.wrong.len() {
            let more = self.count - self.wrong.len();
            self.wrong.push(Wrong { pointer: String::new(), detail: format!("and {more} more fields") });
        }
        if self.wrong.is_empty() { Ok(self.late) } else { Err(self.wrong) }
    }

    /// Says that a record's field is wrong.
    pub fn wrong(&mut self, number: usize, field: &str, detail: impl Into<String>) {
        self.wrong_at(self.wrong.len(), number, field, detail);
    }

    /// The same before what was said after that place.
    fn wrong_at(&mut self, place: usize, number: usize, field: &str, detail: impl Into<String>) {
        self.count += 1;
        if self.wrong.len() < MAX_WRONG {
            let pointer = format!("/records/{number}{field}");
            self.wrong.insert(place, Wrong { pointer, detail: detail.into() });
        }
    }

    fn value(&mut self, number: usize, raw: &RawValue) -> Option<Amount> {
        let text = raw.get();
        // A string with an escape is no number either.
        let text = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        let amount = Amount::parse(text);
        amount.map_err(|error| self.wrong(number, "/value", error.to_string())).ok()
    }

    fn time(&mut self, number: usize, text: &str, window: AcceptWindow) -> Option<(Timestamp, Option<Late>)> {
        let Some(time) = rfc3339::instant(text) else {
            self.wrong(
                number,
                "/time",
                "an RFC 3339 time with its offset, such as 2026-01-31T09:30:00Z".to_owned(),
            );
            return None;
        };
        let time_us = time.as_microsecond();
        let late_us = window.now_us - window.accept_late_us - time_us;
        if late_us > 0 {
            let AcceptWindow { accept_late_us, now_us } = window;
            if i64::from(Day::of(time).number()) <= now_us.div_euclid(DAY_US) - i64::from(KEYS_DAYS) {
                let detail = format!(
                    "{}; keys are known for {KEYS_DAYS} days, so that nobody can tell any more whether this one was counted",
                    taken_for(accept_late_us)
                );
                self.wrong(number, "/time", detail);
                return None;
            }
            return Some((time, Some(Late { number, accept_late_us, is_far: late_us > CLOCKS_DIFFER_US })));
        }
        if time_us > window.now_us + AHEAD_US {
            self.wrong(number, "/time", "at most five minutes ahead of this machine's clock");
            return None;
        }
        Some((time, None))
    }

    fn tags(&mut self, number: usize, raw: &RawValue) -> Option<Vec<(Box<str>, Box<str>)>> {
        let Ok(Fields(mut tags)) = serde_json::from_str::<Fields<'_, Text<'_>, MAX_TAGS>>(raw.get()) else {
            self.wrong(
                number,
                "/tags",
                format!("an object of at most {MAX_TAGS} texts, such as {{\"region\": \"eu\"}}"),
            );
            return None;
        };
        let before = self.count;
        tags.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        for (name, Text(value)) in &tags {
            if !Name::is_valid(name) {
                self.wrong(
                    number,
                    "/tags",
                    "a tag's name is 1 to 64 characters of a-z, 0-9, `_`, `.` and `-`, and starts with a letter",
                );
            } else if value.len() > MAX_TAG_BYTES || value.contains('\0') {
                let detail = format!("a text of at most {MAX_TAG_BYTES} bytes without NUL");
                self.wrong(number, &format!("/tags/{name}"), detail);
            }
        }
        if tags.windows(2).any(|pair| matches!(pair, [one, other] if one.0 == other.0)) {
            self.wrong(number, "/tags", "each tag once");
        }
        let owned = |(name, Text(value)): (Cow<'_, str>, Text<'_>)| {
            (Box::from(name.as_ref()), Box::from(value.as_ref()))
        };
        (self.count == before).then(|| tags.into_iter().map(owned).collect())
    }

    fn correction(&mut self, number: usize, corrects: &str, value: Option<Amount>) {
        if let Err(error) = Key::check(corrects) {
            self.wrong(number, "/corrects", error.to_string());
        }
        if value.is_some_and(|value| !value.is_negative()) {
            self.wrong(number, "/value", "what a correction takes back is negative");
        }
    }

    /// Without spaces and with sorted names, so that a client that writes it anew at a retry says the same; and with what is
    /// corrected, so that whoever reads raw records sees it.
    fn metadata(
        &mut self,
        number: usize,
        raw: Option<&RawValue>,
        corrects: Option<&str>,
    ) -> Option<Option<Box<str>>> {
        let own = corrects.map(|key| ("corrects", key));
        if raw.is_none() && own.is_none() {
            return Some(None);
        }
        match metadata::canonical(raw.map_or("{}", RawValue::get), own) {
            Ok(text) => Some(Some(text.into())),
            Err(detail) => {
                self.wrong(number, "/metadata", detail);
                None
            }
        }
    }
}

/// For how long a metric's records are taken, in words.
pub(super) fn taken_for(accept_late_us: i64) -> String {
    let late = match accept_late_us {
        days if days % DAY_US == 0 => format!("{} days", days / DAY_US),
        other => format!("{} ms", other / 1000),
    };
    format!("records of this metric are taken for {late}")
}

/// The tags as one text, for comparing.
fn canonical(tags: &[(Box<str>, Box<str>)]) -> String {
    let length = |text: &str| u16::try_from(text.len()).unwrap_or(u16::MAX);
    tags.iter().map(|(name, value)| format!("{}:{name}{}:{value}", length(name), length(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-31T12:00:00Z";

    fn window() -> AcceptWindow {
        let now_us = rfc3339::instant(NOW).unwrap().as_microsecond();
        AcceptWindow { accept_late_us: 35 * 86_400_000_000, now_us }
    }

    type Checked = Result<(Vec<Point>, Vec<Late>), Vec<(String, String)>>;

    fn checked(body: &str) -> Checked {
        let records: Records<'_> = serde_json::from_str(body).unwrap();
        let mut checks = Checks::default();
        let tenant = Uuid::from_u128(1);
        let name = Name::parse("calls").unwrap();
        let points: Vec<_> = records
            .records
            .iter()
            .enumerate()
            .filter_map(|(number, record)| checks.point(tenant, number, record, (0, &name), window()))
            .collect();
        let named = |wrong: Vec<Wrong>| wrong.into_iter().map(|one| (one.pointer, one.detail)).collect();
        checks.into_result().map(|late| (points, late)).map_err(named)
    }

    /// Of what is not late.
    fn check(body: &str) -> Result<Vec<Point>, Vec<(String, String)>> {
        checked(body).map(|(points, late)| {
            assert_eq!(late, []);
            points
        })
    }

    fn record(fields: &str) -> String {
        format!(
            "{{\"records\": [{{\"metric\": \"calls\", \"time\": \"2026-01-31T09:30:00Z\", \"idempotency_key\": \"k\"{fields}}}]}}"
        )
    }

    #[test]
    fn a_record_is_the_same_point_however_it_is_written() {
        let one = check(&record(
            ", \"value\": 1.50, \"tags\": {\"b\": \"2\", \"a\": \"1\"}, \"metadata\": {\"x\": [1, 2], \"a\": {\"c\": 1, \"b\": 2}}",
        ))
        .unwrap();
        let other = check(&record(
            ", \"metadata\":{\"a\":{\"b\":2,\"c\":1},\"x\":[1,2]},\"tags\":{\"\\u0061\":\"1\",\"b\":\"2\"},\"value\":\"15e-1\"",
        ))
        .unwrap();
        assert_eq!(one, other);
        let [point] = &one[..] else { panic!("{one:?}") };
        assert_eq!(point.value.to_string(), "1.5");
        assert_eq!(point.metadata.as_deref(), Some("{\"a\":{\"b\":2,\"c\":1},\"x\":[1,2]}"));
        assert_eq!(point.time.as_microsecond(), 1_769_851_800_000_000);
        let later = check(&record(", \"value\": 1.51")).unwrap();
        assert_eq!(later[0].key, point.key, "its key is the client's");
        assert_ne!(later[0].fingerprint, point.fingerprint);
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_be_right() {
        let long = "x".repeat(MAX_TAG_BYTES + 1);
        for (fields, pointer, detail) in [
            (", \"value\": \"1,5\"", "/records/0/value", "a decimal number"),
            (", \"value\": 1e-10", "/records/0/value", "at most 9 digits after the point"),
            (", \"value\": true", "/records/0/value", "a decimal number"),
            (", \"value\": 1, \"tags\": {\"a\": 1}", "/records/0/tags", "an object of at most 16 texts"),
            (", \"value\": 1, \"tags\": [\"a\"]", "/records/0/tags", "an object of at most 16 texts"),
            (", \"value\": 1, \"tags\": {\"A\": \"x\"}", "/records/0/tags", "a tag's name"),
            (", \"value\": 1, \"tags\": {\"a\": \"x\", \"a\": \"y\"}", "/records/0/tags", "each tag once"),
            (
                &format!(", \"value\": 1, \"tags\": {{\"a\": \"{long}\"}}"),
                "/records/0/tags/a",
                "at most 256 bytes",
            ),
            (", \"value\": 1, \"tags\": {\"a\": \"\\u0000\"}", "/records/0/tags/a", "without NUL"),
            (", \"value\": 1, \"metadata\": 5", "/records/0/metadata", "an object of at most 4096 bytes"),
            (", \"value\": 1, \"metadata\": {\"a\": \"\\u0000\"}", "/records/0/metadata", "no NUL"),
        ] {
            let wrong = check(&record(fields)).unwrap_err();
            assert_eq!(wrong.len(), 1, "{fields}: {wrong:?}");
            assert!(wrong[0].0 == pointer && wrong[0].1.contains(detail), "{fields}: {wrong:?}");
        }
        let many = format!("{{\"records\": [{}]}}", vec![record(", \"value\": 1"); 1].join(","));
        assert!(serde_json::from_str::<Records<'_>>(&many).is_err(), "an unknown field");
    }

    #[test]
    fn a_record_is_taken_from_35_days_before_to_five_minutes_ahead() {
        let at = |time: &str| {
            checked(&format!(
                "{{\"records\": [{{\"metric\": \"calls\", \"value\": 1, \"idempotency_key\": \"k\", \"time\": \"{time}\"}}]}}"
            ))
        };
        for time in ["2025-12-27T12:00:00Z", NOW, "2026-01-31T12:05:00Z", "2026-01-31T13:05:00+01:00"] {
            assert_eq!(at(time).unwrap().1, []);
        }
        // Whether these are known the store is asked; of some by its own clock.
        for (time, is_far) in [
            ("2025-12-27T11:59:59.999999Z", false),
            ("2025-12-26T12:00:00Z", false),
            ("2025-12-26T11:59:59.999999Z", true),
            ("2025-10-24T00:00:00Z", true),
        ] {
            let (points, late) = at(time).unwrap();
            assert_eq!(points.len(), 1, "{time}");
            assert_eq!(late, [Late { number: 0, accept_late_us: 35 * 86_400_000_000, is_far }], "{time}");
        }
        for (time, detail) in [
            ("2025-10-23T23:59:59.999999Z", "taken for 35 days; keys are known for 100 days"),
            ("2026-01-31T12:05:00.000001Z", "five minutes ahead"),
            ("2026-01-31", "RFC 3339"),
            ("2026-02-30T00:00:00Z", "RFC 3339"),
        ] {
            let wrong = at(time).unwrap_err();
            assert!(wrong[0].0 == "/records/0/time" && wrong[0].1.contains(detail), "{time}: {wrong:?}");
        }
    }

    #[test]
    fn what_is_wrong_and_late_is_both() {
        let wrong = check(
            "{\"records\": [{\"metric\": \"calls\", \"value\": \"x\", \"idempotency_key\": \"k\", \"time\": \"2025-12-20T00:00:00Z\"}]}",
        );
        let pointers: Vec<String> = wrong.unwrap_err().into_iter().map(|(pointer, _)| pointer).collect();
        assert_eq!(pointers, ["/records/0/value", "/records/0/time"]);
    }

    #[test]
    fn all_that_is_wrong_is_named_at_once_up_to_a_hundred_fields() {
        let one = "{\"metric\": \"calls\", \"value\": \"x\", \"time\": \"x\", \"idempotency_key\": \"\"}";
        let wrong = check(&format!("{{\"records\": [{}]}}", [one; 40].join(","))).unwrap_err();
        assert_eq!(wrong.len(), MAX_WRONG + 1);
        assert_eq!(wrong[2], ("/records/0/idempotency_key".to_owned(), "a key is 1 to 512 bytes".to_owned()));
        assert_eq!(wrong[MAX_WRONG], (String::new(), "and 20 more fields".to_owned()));
    }
}
