//! Exact decimals as PostgreSQL has them.

use std::error::Error;

use bytes::{BufMut as _, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::primitives::usage::amount::DECIMALS;
use crate::primitives::usage::{Amount, Sum};

/// `numeric` as PostgreSQL sends and takes it (`numeric_recv`): digits of base 10,000 from the highest that is not zero.
impl ToSql for Sum {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        const POSITIVE: u16 = 0;
        const NEGATIVE: u16 = 0x4000;
        let (whole, nanos) = self.parts();
        let mut groups = Vec::with_capacity(14);
        let mut left = whole.unsigned_abs();
        while left > 0 {
            groups.push(u16::try_from(left % 10_000)?);
            left /= 10_000;
        }
        let before_point = groups.len();
        groups.reverse();
        // Twelve digits: the nine that there are, and three zeros.
        let fraction = nanos.unsigned_abs() * 1000;
        for unit in [100_000_000, 10_000, 1] {
            groups.push(u16::try_from(fraction / unit % 10_000)?);
        }
        let first = groups.iter().position(|group| *group != 0).unwrap_or(groups.len());
        let end = groups.iter().rposition(|group| *group != 0).map_or(first, |last| last + 1);
        let digits = groups.get(first..end).unwrap_or_default();
        let is_negative = whole < 0 || nanos < 0;
        out.put_i16(i16::try_from(digits.len())?);
        out.put_i16(i16::try_from(before_point)? - i16::try_from(first)? - 1);
        out.put_u16(if is_negative { NEGATIVE } else { POSITIVE });
        out.put_u16(u16::try_from(DECIMALS)?);
        for digit in digits {
            out.put_u16(*digit);
        }
        Ok(IsNull::No)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::NUMERIC
    }

    to_sql_checked!();
}

impl ToSql for Amount {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        Sum::from(*self).to_sql(kind, out)
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::NUMERIC
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_postgres::Row;

    use super::*;
    use crate::primitives::usage::amount::ONE;
    use crate::store::postgres::bench::bench;
    use crate::store::{Reach, Store, StoreError, Tx};

    #[tokio::test]
    async fn postgresql_reads_the_same_number() {
        let bench = bench(1).await;
        let mut random = fastrand::Rng::with_seed(11);
        let most = 10_i128.pow(38) - 1;
        let mut sums: Vec<Sum> =
            [0, 1, -1, 9999, 10_000, ONE, -ONE, 10_000 * ONE, 123 * ONE + 45_000, most, -most]
                .map(|value| Sum::from(Amount(value)))
                .to_vec();
        for _ in 0..500 {
            sums.push(Sum::from(Amount(random.i128(-most..=most) >> random.u32(0..127))));
        }
        let mut large = Sum::default();
        (0..1000).for_each(|_| large += Amount(most));
        sums.push(large);
        let (store, asked) = (Store::Postgres(Arc::clone(&bench.postgres)), sums.clone());
        let read: Result<Vec<Row>, StoreError> = store
            .run(Reach::nobody(), 0, move |tx| {
                let sums = asked.clone();
                Box::pin(async move {
                    let Tx::Postgres(tx) = tx else { panic!("a transaction of PostgreSQL") };
                    let texts = "SELECT trim_scale(number)::text FROM unnest($1::numeric[]) number";
                    Ok(tx.query(texts, &[(&sums, Type::NUMERIC_ARRAY)]).await?)
                })
            })
            .await;
        let rows = read.unwrap();
        let texts: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(texts, sums.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(large.to_string(), "99999999999999999999999999999999.999999");
    }
}
