//! The description of the API as a page to read, made from the description itself: no script, and nothing from elsewhere.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use axum::body::Bytes;
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use super::{dashboard, openapi, roles};

/// An operation with its place.
struct Operation<'d> {
    method: String,
    path: &'d str,
    value: &'d Value,
}

/// Answers with the page, which is made once.
pub async fn page() -> Response {
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    let make = || {
        let document = serde_json::to_value(openapi::describe()).expect("plain data can always be written");
        render(&document).into_string().into()
    };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, dashboard::POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, TEXT.get_or_init(make).clone()).into_response()
}

fn render(document: &Value) -> Markup {
    let mut tags: BTreeMap<&str, Vec<Operation<'_>>> = BTreeMap::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, value) in item.as_object().into_iter().flatten() {
            let tag = value["tags"][0].as_str().unwrap_or("other");
            tags.entry(tag).or_default().push(Operation { method: method.to_uppercase(), path, value });
        }
    }
    let schemas = document["components"]["schemas"].as_object();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "flowvigil: the API" }
                link rel="stylesheet" href="/dashboard.css";
            }
            body {
                header { div { h1 { "The API of flowvigil" } span.grow {} a href="/openapi.json" { "OpenAPI 3.1" } " " a href="/" { "dashboard" } } }
                main.docs {
                    p { (text(&document["info"]["description"])) }
                    nav aria-label="operations" {
                        @for (tag, operations) in &tags {
                            h3 { (tag) }
                            ul { @for one in operations { li { a href={ "#" (id(one)) } { code { (one.method) " " (one.path) } } " " (text(&one.value["summary"])) } } }
                        }
                    }
                    @for (tag, operations) in &tags {
                        h2 { (tag) }
                        @for one in operations { (operation(one)) }
                    }
                    h2 { "Schemas" }
                    @for (name, schema) in schemas.into_iter().flatten() {
                        section id={ "schema-" (name) } { h3 { (name) } (paragraphs(&schema["description"])) (properties(schema)) }
                    }
                }
            }
        }
    }
}

fn id<'d>(operation: &Operation<'d>) -> &'d str {
    operation.value["operationId"].as_str().unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn paragraphs(value: &Value) -> Markup {
    html! { @for part in text(value).split("\n\n").filter(|part| !part.trim().is_empty()) { p { (part) } } }
}

fn operation(one: &Operation<'_>) -> Markup {
    let parameters = one.value["parameters"].as_array();
    let body = &one.value["requestBody"]["content"]["application/json"]["schema"];
    let open = one.value["security"].as_array().is_some_and(Vec::is_empty);
    let method: Method = one.method.parse().unwrap_or_default();
    html! {
        section id=(id(one)) {
            h3 { code { (one.method) " " (one.path) } }
            p { strong { (text(&one.value["summary"])) } }
            (paragraphs(&one.value["description"]))
            p.note { @if open { "It needs no role." } @else { "Least role: " (roles::least(&method, one.path).name()) "." } }
            @if let Some(parameters) = parameters.filter(|all| !all.is_empty()) {
                div.scroll { table {
                    thead { tr { th { "parameter" } th { "in" } th { "type" } th { "" } } }
                    tbody { @for it in parameters {
                        tr {
                            td { code { (text(&it["name"])) } @if it["required"] == true { " (required)" } }
                            td { (text(&it["in"])) } td { (kind(&it["schema"])) } td { (text(&it["description"])) }
                        }
                    } }
                } }
            }
            @if !body.is_null() { p { "Body: " (kind(body)) } }
            div.scroll { table {
                thead { tr { th { "status" } th { "answer" } th { "" } } }
                tbody { @for (status, response) in one.value["responses"].as_object().into_iter().flatten() {
                    tr { td { (status) } td { (content(response)) } td { (text(&response["description"])) } }
                } }
            } }
        }
    }
}

/// The media type of an answer and its schema.
fn content(response: &Value) -> Markup {
    html! { @for (media_type, content) in response["content"].as_object().into_iter().flatten() { code { (media_type) } " " (kind(&content["schema"])) } }
}

/// The type of a schema in a few words, with a link where it has a name.
fn kind(schema: &Value) -> Markup {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return html! { a href={ "#schema-" (name) } { (name) } };
    }
    for word in ["oneOf", "anyOf", "allOf"] {
        if let Some(parts) = schema[word].as_array() {
            let between = if word == "allOf" { " and " } else { " or " };
            return html! { @for (n, part) in parts.iter().enumerate() { @if n > 0 { (between) } (kind(part)) } };
        }
    }
    if let Some(values) = schema["enum"].as_array() {
        return html! { @for (n, value) in values.iter().enumerate() { @if n > 0 { " | " } code { (value.as_str().map_or_else(|| value.to_string(), str::to_owned)) } } };
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => html! { "list of " (kind(&schema["items"])) },
        Value::String(name) => html! { (name) @if let Some(format) = schema["format"].as_str() { " (" (format) ")" } },
        Value::Array(names) => {
            let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
            html! { @if names.contains(&"array") { "list of " (kind(&schema["items"])) " or null" } @else { (names.join(" or ")) } }
        }
        _ => html! { "anything" },
    }
}

/// The fields of a schema, or its values.
fn properties(schema: &Value) -> Markup {
    let required = schema["required"].as_array();
    let Some(fields) = schema["properties"].as_object() else { return html! { p { (kind(schema)) } } };
    html! {
        div.scroll { table {
            thead { tr { th { "field" } th { "type" } th { "" } } }
            tbody { @for (name, field) in fields {
                tr {
                    td { code { (name) } @if !required.is_some_and(|all| all.iter().any(|one| one == name)) { " (optional)" } }
                    td { (kind(field)) } td { (text(&field["description"])) }
                }
            } }
        } }
    }
}
