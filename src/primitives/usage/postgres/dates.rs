//! Days as PostgreSQL has them: since 2000-01-01.

use std::error::Error;

use bytes::{BufMut as _, BytesMut};
use jiff::civil;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::primitives::usage::Day;

/// Days from 1970 to 2000.
const EPOCH: i32 = 10_957;

/// A day, as a parameter.
#[derive(Debug)]
pub(super) struct Date(i32);

impl From<Day> for Date {
    fn from(day: Day) -> Self {
        Self(day.number() - EPOCH)
    }
}

/// `-infinity` where there is none.
impl From<Option<civil::Date>> for Date {
    fn from(date: Option<civil::Date>) -> Self {
        date.map_or(Self(i32::MIN), Self::from)
    }
}

impl From<civil::Date> for Date {
    fn from(date: civil::Date) -> Self {
        let days = (date - civil::date(2000, 1, 1)).get_days();
        Self(days)
    }
}

impl ToSql for Date {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_i32(self.0);
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::DATE
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_days_are_the_same_number() {
        for (text, number) in [("2000-01-01", 0), ("2026-01-31", 9527), ("1999-12-31", -1)] {
            let date: civil::Date = text.parse().unwrap();
            let day = Day::of(format!("{text}T12:00:00Z").parse().unwrap());
            assert_eq!((Date::from(date).0, Date::from(day).0), (number, number), "{text}");
        }
    }
}
