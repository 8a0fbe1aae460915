//! The compiled route table: patterns checked once at start, looked up once a request.

use std::collections::BTreeMap;

use compact_str::CompactString;
use http::Method;
use smallvec::SmallVec;

use super::path::ParsedPath;
use super::{Params, Problem, Route};
use crate::error::ErrorKind;

/// A pattern that cannot be compiled: a defect in a primitive's route list, found at start.
#[derive(Debug, thiserror::Error)]
#[error("route {method} {pattern}: {reason}")]
pub struct RouteError {
    method: Method,
    pattern: &'static str,
    reason: &'static str,
}

/// Every route, by the resource its second segment names (`/v1/cache/…` is `cache`).
pub struct RouteTable {
    routes: Vec<Compiled>,
    by_resource: BTreeMap<&'static str, Vec<usize>>,
}

struct Compiled {
    route: Route,
    segments: Vec<Segment>,
    verb: Option<&'static str>,
}

enum Segment {
    Literal(&'static str),
    Parameter(&'static str),
}

/// A route that fits a request.
pub struct Found<'t> {
    /// Its place in the table: what metrics are indexed by.
    pub index: usize,
    /// The route.
    pub route: &'t Route,
    /// The path's parameters.
    pub params: Params,
}

impl RouteTable {
    /// Compiles `routes`; two that could fit the same request are refused.
    pub fn new(routes: Vec<Route>) -> Result<Self, RouteError> {
        let mut table = Self { routes: Vec::with_capacity(routes.len()), by_resource: BTreeMap::new() };
        for route in routes {
            let error = |reason| RouteError { method: route.method.clone(), pattern: route.pattern, reason };
            let (segments, verb) = compile(route.pattern);
            if verb.is_some() && route.method != Method::POST {
                return Err(error("a custom verb is POST only"));
            }
            let Some(Segment::Literal(resource)) = segments.get(1) else {
                return Err(error("the second segment must be a literal"));
            };
            let siblings = table.by_resource.entry(resource).or_default();
            let clash = siblings.iter().filter_map(|at| table.routes.get(*at)).any(|other| {
                other.route.method == route.method
                    && other.verb == verb
                    && same_shape(&other.segments, &segments)
            });
            if clash {
                return Err(error("another route fits the same requests"));
            }
            siblings.push(table.routes.len());
            table.routes.push(Compiled { route, segments, verb });
        }
        Ok(table)
    }

    /// The route for a method and path: 404 where no pattern fits, 405 with `Allow` where only the method does not.
    pub fn find(&self, method: &Method, path: &ParsedPath<'_>) -> Result<Found<'_>, Problem> {
        let mut allowed: SmallVec<[Method; 4]> = SmallVec::new();
        let resource = path.segments.get(1).map_or("", |segment| segment.as_ref());
        for index in self.by_resource.get(resource).into_iter().flatten() {
            let Some(compiled) = self.routes.get(*index) else { continue };
            if !compiled.fits(path) {
                continue;
            }
            let route = &compiled.route;
            if route.method == *method || (route.method == Method::GET && *method == Method::HEAD) {
                return Ok(Found { index: *index, route, params: compiled.params(path) });
            }
            allowed.push(route.method.clone());
            if route.method == Method::GET {
                allowed.push(Method::HEAD);
            }
        }
        if allowed.is_empty() {
            Err(Problem::new(ErrorKind::NotFound, "no route has this path; `/openapi.json` lists them"))
        } else {
            Err(Problem::method_not_allowed(&allowed))
        }
    }

    /// Every route, in the order of the table.
    pub fn routes(&self) -> impl ExactSizeIterator<Item = &Route> {
        self.routes.iter().map(|compiled| &compiled.route)
    }
}

impl Compiled {
    fn fits(&self, path: &ParsedPath<'_>) -> bool {
        self.verb == path.verb
            && self.segments.len() == path.segments.len()
            && self.segments.iter().zip(&path.segments).all(|(pattern, segment)| match pattern {
                Segment::Literal(text) => text == segment,
                Segment::Parameter(_) => true,
            })
    }

    fn params(&self, path: &ParsedPath<'_>) -> Params {
        let pairs = self.segments.iter().zip(&path.segments).filter_map(|(pattern, segment)| match pattern {
            Segment::Literal(_) => None,
            Segment::Parameter(name) => Some((*name, CompactString::new(segment))),
        });
        Params(pairs.collect())
    }
}

fn compile(pattern: &'static str) -> (Vec<Segment>, Option<&'static str>) {
    let (path, verb) = match pattern.rfind(':') {
        Some(colon) => (&pattern[..colon], Some(&pattern[colon + 1..])),
        None => (pattern, None),
    };
    let segments = path.trim_start_matches('/').split('/').map(|segment| {
        match segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(name) => Segment::Parameter(name),
            None => Segment::Literal(segment),
        }
    });
    (segments.collect(), verb)
}

fn same_shape(a: &[Segment], b: &[Segment]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|pair| match pair {
            (Segment::Literal(a), Segment::Literal(b)) => a == b,
            (Segment::Parameter(_), _) | (_, Segment::Parameter(_)) => true,
        })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::path::parse;
    use super::*;
    use crate::http::{Call, Docs, Reply, handler};
    use crate::policy::Action;

    fn route(method: Method, pattern: &'static str) -> Route {
        Route {
            method,
            pattern,
            action: Action::new("cache", "read"),
            serves_fleets: false,
            operation: pattern,
            docs: Docs::default(),
            handler: handler(&Arc::new(()), nothing),
        }
    }

    async fn nothing(_: &(), _: Box<Call>) -> Result<Reply, Problem> {
        Ok(Reply::no_content())
    }

    fn table() -> RouteTable {
        RouteTable::new(vec![
            route(Method::GET, "/v1/cache/{namespace}/{key}"),
            route(Method::PUT, "/v1/cache/{namespace}/{key}"),
            route(Method::POST, "/v1/cache/{namespace}:batchGet"),
            route(Method::POST, "/v1/ratelimit/check"),
        ])
        .unwrap()
    }

    #[test]
    fn a_request_finds_its_route_404_or_405() {
        let table = table();
        for (method, raw, expected) in [
            (Method::GET, "/v1/cache/scoring/a", Ok("/v1/cache/{namespace}/{key}")),
            (Method::HEAD, "/v1/cache/scoring/a", Ok("/v1/cache/{namespace}/{key}")),
            (Method::POST, "/v1/cache/scoring:batchGet", Ok("/v1/cache/{namespace}:batchGet")),
            (Method::POST, "/v1/cache/scoring%3AbatchGet", Err(404)),
            (Method::POST, "/v1/cache/scoring:other", Err(404)),
            (Method::GET, "/v1/cache/scoring:batchGet", Err(404)),
            (Method::DELETE, "/v1/cache/scoring/a", Err(405)),
            (Method::POST, "/v1/cache/scoring/a", Err(405)),
            (Method::GET, "/v1/ratelimit/check", Err(405)),
            (Method::GET, "/v2/cache/scoring/a", Err(404)),
            (Method::GET, "/v1/events/leads", Err(404)),
            (Method::GET, "/v1", Err(404)),
        ] {
            let path = parse(raw, method == Method::POST).unwrap();
            let found = table.find(&method, &path).map(|found| found.route.pattern);
            let found =
                found.map_err(|problem| crate::http::problem::appearance(problem.kind()).status.as_u16());
            assert_eq!(found, expected, "{method} {raw}");
        }
    }

    #[test]
    fn parameters_are_taken_from_the_path() {
        let table = table();
        let path = parse("/v1/cache/scoring/a%2Fb", false).unwrap();
        let found = table.find(&Method::GET, &path).unwrap();
        assert_eq!((found.params.get("namespace"), found.params.get("key")), ("scoring", "a/b"));
    }

    #[test]
    fn two_routes_for_the_same_request_are_refused() {
        let twice = vec![route(Method::GET, "/v1/cache/{a}"), route(Method::GET, "/v1/cache/{b}")];
        assert!(RouteTable::new(twice).is_err());
        assert!(RouteTable::new(vec![route(Method::GET, "/v1/cache/{a}:verb")]).is_err());
    }
}
