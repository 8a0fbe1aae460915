//! OpenAPI 3.1, made from the route table.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::problem::appearance;
use super::{Content, Parameter, Route, ndjson, sse};
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
        let described =
            replies.entry(reply.status.to_string()).or_insert_with(|| json!({"description": reply.meaning}));
        if let Some(content) = &reply.content {
            described["content"][content.media_type] = describe_media(content, generator);
        }
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
    json!({content.media_type: describe_media(content, generator)})
}

/// A body's media type object. OpenAPI 3.1 has no word for the items of a stream (3.2 has `itemSchema`).
fn describe_media(content: &Content, generator: &mut SchemaGenerator) -> Value {
    let schema = content.schema.map_or_else(|| json!({}), |schema| schema(generator).to_value());
    let meaning = match content.media_type {
        sse::MEDIA_TYPE => "Server-sent events; the data of each is JSON that fits `x-item-schema`.",
        ndjson::MEDIA_TYPE => "One JSON text a line, each fits `x-item-schema`; empty lines say nothing.",
        _ => return json!({"schema": schema}),
    };
    json!({"schema": {"type": "string", "description": meaning}, "x-item-schema": schema})
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::http::{Broken, Call, Docs, Problem, Reply, ReplyDocs, handler};
    use crate::policy::Action;

    async fn answer(_: &(), _: Box<Call>) -> Result<Reply, Problem> {
        Ok(Reply::stream(ndjson::MEDIA_TYPE, futures_util::stream::pending::<Result<bytes::Bytes, Broken>>()))
    }

    #[test]
    fn a_reply_of_several_forms_has_each_and_a_stream_s_items_are_described() {
        fn item(generator: &mut SchemaGenerator) -> schemars::Schema {
            generator.subschema_for::<u64>()
        }
        const fn form(media_type: &'static str) -> ReplyDocs {
            ReplyDocs {
                status: 200,
                meaning: "Events.",
                content: Some(Content { media_type, schema: Some(item) }),
            }
        }
        const REPLIES: &[ReplyDocs] = &[
            form(sse::MEDIA_TYPE),
            form(ndjson::MEDIA_TYPE),
            ReplyDocs { status: 204, meaning: "Nothing.", content: None },
        ];
        let route = Route {
            method: http::Method::GET,
            pattern: "/v1/tests/{name}",
            action: Action::new("tests", "read"),
            serves_fleets: false,
            operation: "read",
            docs: Docs { replies: REPLIES, ..Docs::default() },
            handler: handler(&Arc::new(()), answer),
        };
        let described = describe(std::iter::once(&route));
        let replies = &described["paths"]["/v1/tests/{name}"]["get"]["responses"];
        let forms = replies["200"]["content"].as_object().unwrap();
        assert_eq!(forms.len(), 2, "{replies}");
        for form in forms.values() {
            assert_eq!(
                (&form["schema"]["type"], &form["x-item-schema"]["type"]),
                (&json!("string"), &json!("integer"))
            );
        }
        assert_eq!(replies["204"], json!({"description": "Nothing."}));
        assert_eq!(replies["503"]["content"].as_object().unwrap().len(), 1);
    }
}
