//! OpenAPI 3.1, made from the route table.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::problem::appearance;
use super::{Content, Parameter, Route};
use crate::error::ErrorKind;

/// The problems that any route can answer.
const COMMON: [ErrorKind; 11] = [
    ErrorKind::Malformed,
    ErrorKind::Unauthenticated,
    ErrorKind::Forbidden,
    ErrorKind::NotFound,
    ErrorKind::MethodNotAllowed,
    ErrorKind::TooLarge,
    ErrorKind::UnsupportedMediaType,
    ErrorKind::Misdirected,
    ErrorKind::Invalid,
    ErrorKind::BackendUnavailable,
    ErrorKind::DeadlineExceeded,
];

/// The description of `routes`.
#[must_use]
pub fn describe<'r>(routes: impl Iterator<Item = &'r Route>) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for route in routes {
        let operation = describe_route(route, &mut generator);
        let methods = paths.entry(route.pattern).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(methods) = methods {
            if route.method == http::Method::GET {
                let mut head = operation.clone();
                head["operationId"] = json!(format!("{}.{}.head", route.action.primitive, route.operation));
                methods.insert("head".to_owned(), head);
            }
            methods.insert(route.method.as_str().to_ascii_lowercase(), operation);
        }
    }
    let mut schemas = generator.take_definitions(true);
    schemas.insert("Problem".to_owned(), problem_schema());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Outrigger",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A data-access sidecar. Errors are problem documents (RFC 9457).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:7780"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    })
}

fn describe_route(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let docs = &route.docs;
    let path_parameters = parameters_of(route.pattern).map(|name| {
        let schema = if name == "key" || name == "id" {
            json!({"type": "string", "minLength": 1, "maxLength": 512})
        } else {
            json!({"type": "string", "pattern": "^[a-z][a-z0-9_.-]{0,63}$"})
        };
        json!({"name": name, "in": "path", "required": true, "schema": schema})
    });
    let query = docs.query.iter().map(|parameter| describe_parameter(parameter, "query"));
    let headers = docs.headers.iter().map(|parameter| describe_parameter(parameter, "header"));
    let mut replies = Map::new();
    for reply in docs.replies {
        let mut described = json!({"description": reply.meaning});
        if let Some(content) = &reply.content {
            described["content"] = describe_content(content, generator);
        }
        replies.insert(reply.status.to_string(), described);
    }
    let problem_statuses = COMMON.iter().map(|kind| appearance(*kind).status.as_u16());
    for status in problem_statuses.chain(docs.problems.iter().copied()) {
        let key = status.to_string();
        if !replies.contains_key(&key) {
            replies.insert(key, json!({
                "description": http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Problem"),
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            }));
        }
    }
    let mut operation = json!({
        "operationId": format!("{}.{}", route.action.primitive, route.operation),
        "summary": docs.summary,
        "description": format!("Needs the action `{}`.", route.action),
        "tags": [route.action.primitive],
        "parameters": path_parameters.chain(query).chain(headers).collect::<Vec<_>>(),
        "responses": replies,
    });
    if let Some(content) = &docs.request {
        operation["requestBody"] = json!({"required": true, "content": describe_content(content, generator)});
    }
    operation
}

fn describe_parameter(parameter: &Parameter, place: &str) -> Value {
    json!({
        "name": parameter.name,
        "in": place,
        "required": false,
        "description": parameter.meaning,
        "schema": {"type": parameter.kind},
    })
}

fn describe_content(content: &Content, generator: &mut SchemaGenerator) -> Value {
    let schema = content.schema.map_or_else(|| json!({}), |schema| schema(generator).to_value());
    json!({content.media_type: {"schema": schema}})
}

fn parameters_of(pattern: &str) -> impl Iterator<Item = &str> {
    pattern.split(['/', ':']).filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457.",
        "required": ["type", "title", "status", "detail", "code", "retryable", "trace_id"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "code": {"type": "string"},
            "retryable": {"type": "boolean"},
            "trace_id": {"type": "string"},
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["pointer", "detail"],
                    "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
                },
            },
        },
    })
}
