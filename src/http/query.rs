//! Query parameters.

use std::str::FromStr;

use percent_encoding::percent_decode_str;
use smallvec::SmallVec;

use super::Problem;
use crate::error::ErrorKind;

/// The most parameters that a query may have.
const MAX_PARAMETERS: usize = 64;

/// A query's parameters, decoded once, in order.
#[derive(Debug, Clone, Default)]
pub struct Query(SmallVec<[(Box<str>, Box<str>); 2]>);

impl Query {
    /// Reads a raw query string (`a=1&b=%20`); `+` is a space, as forms have it.
    pub fn parse(raw: Option<&str>) -> Result<Self, Problem> {
        let mut pairs = SmallVec::new();
        for pair in raw.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == MAX_PARAMETERS {
                return Err(Problem::new(
                    ErrorKind::Malformed,
                    format!("a query has {MAX_PARAMETERS} parameters at most"),
                ));
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(name)?, decode(value)?));
        }
        Ok(Self(pairs))
    }

    /// 400 where there is a parameter that `known` does not list, or one of them twice.
    pub fn expect_only(&self, known: &[&str]) -> Result<(), Problem> {
        for (index, (name, _)) in self.0.iter().enumerate() {
            if !known.contains(&&**name) {
                let right =
                    if known.is_empty() { "none".to_owned() } else { format!("`{}`", known.join("`, `")) };
                return Err(Problem::new(
                    ErrorKind::Malformed,
                    format!("this route's query parameters: {right}"),
                )
                .with_field(format!("?{name}"), "unknown query parameter"));
            }
            if self.0[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(Problem::new(ErrorKind::Malformed, "a query parameter is given twice")
                    .with_field(format!("?{name}"), "give it once"));
            }
        }
        Ok(())
    }

    /// The first parameter of this name, as text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(held, _)| **held == *name).map(|(_, value)| &**value)
    }

    /// The first parameter of this name, read as `T`; 400 where it is not one. `expected` says what would be right.
    pub fn get<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        self.text(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    Problem::new(ErrorKind::Malformed, "a query parameter is wrong")
                        .with_field(format!("?{name}"), format!("expected {expected}"))
                })
            })
            .transpose()
    }

    /// Every parameter, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

fn decode(text: &str) -> Result<Box<str>, Problem> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced)
        .decode_utf8()
        .map(|text| Box::from(&*text))
        .map_err(|_| Problem::new(ErrorKind::Malformed, "the query is not percent-encoded UTF-8"))
}
