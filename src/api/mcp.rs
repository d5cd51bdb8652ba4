//! The API for agents: the Model Context Protocol over HTTP (`POST /mcp`).
//!
//! A tool is an operation of the REST API. Its input schema is made from the operation's own description, and a call of
//! the tool is a request to the route, in the name of the same principal: rights, checks, limits and errors are those of the
//! route, and nothing is implemented twice.
//!
//! There are no sessions and no streams: every message is a request of its own, answered with JSON. A load balancer may
//! therefore give each message to another task.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use axum::{Extension, Router};
use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ErrorData, Implementation, JsonObject, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool, ToolAnnotations,
};
use rmcp::service::{RequestContext, RoleServer};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tower_service::Service;
use utoipa::ToSchema;

use super::auth::Principal;
use super::extract::in_time;
use super::problem::Problem;
use super::{Context, openapi};

/// What an agent reads of the service before it calls a tool.
const INSTRUCTIONS: &str = "Network anomalies in AWS VPC flow logs. Begin with list_anomalies; poll with changed_since. \
    get_anomaly has the evidence. explain_address and host_profile say what is known of an address, reported or not. \
    Flow logs have no payload: a finding is a statement about addresses, ports, amounts and times. \
    propose_suppression only tries a suppression unless `apply` is true; ask a person before you apply one.";

/// The largest answer of a route that is passed on, bytes. A page of 1,000 whole anomalies has some 3 MB.
const ANSWER_MAX: usize = 32 << 20;

/// The argument of `propose_suppression` that keeps it.
const APPLY: &str = "apply";

/// A tool, and the operation of the REST API that it is.
struct Offer {
    name: &'static str,
    title: &'static str,
    /// `operationId` in the description of the API.
    operation: &'static str,
    description: &'static str,
    /// Whether a call changes nothing.
    reads: bool,
    /// Query parameters that have another default than the operation has.
    defaults: &'static [(&'static str, &'static str)],
}

const OFFERS: [Offer; 6] = [
    Offer {
        name: "list_anomalies",
        title: "List anomalies",
        operation: "list_anomalies",
        description: "Reported anomalies, the newest first, in a short form. With changed_since: what has changed since an \
            earlier answer, the oldest change first. `next` holds the cursor of the next page.",
        reads: true,
        defaults: &[("brief", "true")],
    },
    Offer {
        name: "get_anomaly",
        title: "Get an anomaly",
        operation: "get_anomaly",
        description: "One anomaly with its evidence, each number beside its threshold, and the validation stages it passed.",
        reads: true,
        defaults: &[],
    },
    Offer {
        name: "explain_address",
        title: "Explain an address",
        operation: "explain_address",
        description: "Why an address was or was not reported: what was seen of it, what was reported, what was not and why, \
            and how close each detector came.",
        reads: true,
        defaults: &[],
    },
    Offer {
        name: "host_profile",
        title: "Profile of a host",
        operation: "get_host",
        description: "What is known of an address: whether it is ours, what was seen of it, what it opens, serves and sends, how \
            close detectors came, and its open anomalies and signals.",
        reads: true,
        defaults: &[],
    },
    Offer {
        name: "submit_feedback",
        title: "Submit feedback",
        operation: "give_feedback",
        description: "Records whether an anomaly was true. The latest verdict of each principal on an anomaly counts, and \
            verdicts shift the confidence of later anomalies of the same threat.",
        reads: false,
        defaults: &[],
    },
    Offer {
        name: "propose_suppression",
        title: "Propose a suppression",
        operation: "make_suppression",
        description: "Tries a suppression on the stored anomalies and says what it would have hidden. Nothing is kept unless \
            `apply` is true, which needs the rights of POST /v1/suppressions.",
        reads: false,
        defaults: &[],
    },
];

/// A tool that can be called.
struct Known {
    offer: &'static Offer,
    tool: Tool,
    method: Method,
    /// The path of the operation, with its parameters in braces.
    path: String,
    in_path: Vec<String>,
    in_query: Vec<String>,
}

/// All tools, made once from the description of the API.
static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let document =
        serde_json::to_value(openapi::describe()).expect("a description of plain data can always be written");
    OFFERS.iter().map(|offer| Known::of(offer, &document)).collect()
});

impl Known {
    fn of(offer: &'static Offer, document: &Value) -> Known {
        let (path, method, operation) = operation(document, offer.operation).expect("every tool names an operation");
        let (mut in_path, mut in_query) = (Vec::new(), Vec::new());
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap_or_default().to_owned();
            match parameter["in"].as_str() {
                Some("path") => in_path.push(name.clone()),
                Some("query") => in_query.push(name.clone()),
                _ => continue,
            }
            if name == "dry_run" {
                continue;
            }
            let mut schema = inlined(&parameter["schema"], document);
            schema["description"] = parameter["description"].clone();
            if let Some((_, default)) = offer.defaults.iter().find(|(known, _)| *known == name) {
                schema["default"] = serde_json::from_str(default).unwrap_or_else(|_| json!(default));
            }
            if parameter["required"] == true {
                required.push(json!(name));
            }
            properties.insert(name, schema);
        }
        let body = inlined(&operation["requestBody"]["content"]["application/json"]["schema"], document);
        if let Value::Object(mut body) = body {
            if let Some(Value::Object(fields)) = body.remove("properties") {
                properties.extend(fields.into_iter().map(|(name, field)| (name, described(field))));
            }
            required.extend(body.remove("required").and_then(|names| names.as_array().cloned()).unwrap_or_default());
        }
        if in_query.iter().any(|name| name == "dry_run") {
            let description = "true keeps the suppression; otherwise it is only tried";
            properties
                .insert(APPLY.to_owned(), json!({"type": "boolean", "default": false, "description": description}));
        }
        let schema = json!({
            "type": "object", "properties": properties, "required": required, "additionalProperties": false,
        });
        let Value::Object(schema) = schema else { unreachable!("it was written as an object") };
        let hints = ToolAnnotations::new().read_only(offer.reads).destructive(false).idempotent(true).open_world(false);
        let tool = Tool::new(offer.name, offer.description, schema).with_title(offer.title).with_annotations(hints);
        Known { offer, tool, method, path: path.to_owned(), in_path, in_query }
    }

    /// The request that a call is.
    fn request(&self, arguments: JsonObject) -> Result<axum::http::Request<Body>, Problem> {
        let mut path = self.path.clone();
        let mut query = form_urlencoded::Serializer::new(String::new());
        let mut body = Map::new();
        let mut apply = false;
        let tries = self.in_query.iter().any(|name| name == "dry_run");
        for (name, default) in self.offer.defaults {
            if !arguments.contains_key(*name) {
                query.append_pair(name, default);
            }
        }
        for (name, value) in arguments {
            if self.in_path.contains(&name) {
                let text = plain(&name, &value)?;
                let encoded: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
                path = path.replace(&format!("{{{name}}}"), &encoded.replace('+', "%20"));
            } else if tries && name == APPLY {
                apply = value.as_bool().ok_or_else(|| misfit(&name, "is neither true nor false"))?;
            } else if self.method == Method::GET || (self.in_query.contains(&name) && name != "dry_run") {
                // Left out and null are the same to an agent.
                if !value.is_null() {
                    query.append_pair(&name, &plain(&name, &value)?);
                }
            } else {
                body.insert(name, value);
            }
        }
        if let Some(missing) = self.in_path.iter().find(|name| path.contains(&format!("{{{name}}}"))) {
            return Err(misfit(missing, "is missing"));
        }
        if tries {
            query.append_pair("dry_run", if apply { "false" } else { "true" });
        }
        let query = query.finish();
        let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
        let request = axum::http::Request::builder().method(self.method.clone()).uri(uri);
        let request = match self.method {
            Method::GET => request.body(Body::empty()),
            _ => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(Value::Object(body).to_string())),
        };
        request.map_err(|error| {
            let detail = format!("the arguments make no request: {error}");
            Problem::new(StatusCode::BAD_REQUEST, detail, "shorten them; tools/list has the schema")
        })
    }
}

/// Path, method and description of the operation of a name.
fn operation<'a>(document: &'a Value, id: &str) -> Option<(&'a str, Method, &'a Value)> {
    let paths = document["paths"].as_object()?;
    paths.iter().find_map(|(path, item)| {
        let (method, operation) = item.as_object()?.iter().find(|(_, operation)| operation["operationId"] == id)?;
        Some((path.as_str(), method.to_uppercase().parse().ok()?, operation))
    })
}

/// A schema in which references are replaced by what they refer to.
fn inlined(schema: &Value, document: &Value) -> Value {
    match schema {
        Value::Object(parts) => {
            let name = parts.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
            match name {
                Some(name) => {
                    let mut whole = inlined(&document["components"]["schemas"][name], document);
                    // The description of the field goes before that of its type.
                    if let (Some(own), Some(whole)) = (parts.get("description"), whole.as_object_mut()) {
                        whole.insert("description".to_owned(), own.clone());
                    }
                    whole
                }
                None => parts.iter().map(|(key, part)| (key.clone(), inlined(part, document))).collect(),
            }
        }
        Value::Array(parts) => parts.iter().map(|part| inlined(part, document)).collect(),
        _ => schema.clone(),
    }
}

/// A field with its description beside its type, where it stands within: a field that may be null is one of two.
fn described(mut field: Value) -> Value {
    let within = ["oneOf", "anyOf", "allOf"].iter().filter_map(|word| field[word].as_array()).flatten();
    let words = within.filter_map(|part| part["description"].as_str()).next().map(str::to_owned);
    if let (None, Some(words)) = (field["description"].as_str(), words) {
        field["description"] = json!(words);
    }
    field
}

/// An argument as it stands in a path or a query.
fn plain(name: &str, value: &Value) -> Result<String, Problem> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(misfit(name, "is no text, number, true or false")),
    }
}

fn misfit(name: &str, what: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, format!("`{name}` {what}"), "tools/list has the schema").of_field(name)
}

/// The routes of the API as tools.
#[derive(Clone)]
struct Tools {
    routes: Router,
}

impl Tools {
    /// Calls the route that a tool is, in the name of the principal.
    async fn call(&self, known: &Known, arguments: JsonObject, principal: Principal) -> Result<Value, Value> {
        let written = |problem: Problem| serde_json::to_value(problem).unwrap_or_default();
        let mut request = known.request(arguments).map_err(written)?;
        request.extensions_mut().insert(principal);
        // A router is always ready.
        let response = match self.routes.clone().call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let status = response.status();
        let read = match to_bytes(response.into_body(), ANSWER_MAX).await {
            Ok(body) => serde_json::from_slice(&body).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(body) if status.is_success() => Ok(body),
            Ok(body) => Err(body),
            Err(cause) => {
                let detail = format!("the answer cannot be passed on: {cause}");
                Err(written(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail, "ask for less, with `limit`")))
            }
        }
    }
}

impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("flowvigil", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        KNOWN.iter().find(|known| known.offer.name == name).map(|known| known.tool.clone())
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(KNOWN.iter().map(|known| known.tool.clone()).collect()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(known) = KNOWN.iter().find(|known| known.offer.name == request.name) else {
            let detail = format!("there is no tool `{}`; tools/list names those there are", request.name);
            return Err(ErrorData::invalid_params(detail, None));
        };
        let principal =
            context.extensions.get::<Parts>().and_then(|parts| parts.extensions.get::<Principal>().cloned());
        let Some(principal) = principal else {
            return Err(ErrorData::internal_error("the request has no principal", None));
        };
        let result = match self.call(known, request.arguments.unwrap_or_default(), principal).await {
            Ok(answer) => CallToolResult::structured(answer),
            Err(problem) => CallToolResult::structured_error(problem),
        };
        Ok(result.into())
    }
}

/// The protocol over HTTP, on top of the routes.
#[derive(Clone)]
pub(super) struct Endpoint {
    service: Arc<StreamableHttpService<Tools, NeverSessionManager>>,
}

impl Endpoint {
    /// On routes that check the rights of a principal and nothing else of who asks: that is done before a message comes here.
    pub(super) fn new(routes: Router, body_max: usize) -> Endpoint {
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_json_response(true)
            .with_max_request_body_bytes(body_max)
            // `auth` has looked at the host, and `refuse_other_origins` at the origin.
            .disable_allowed_hosts();
        let tools = Tools { routes };
        let service = StreamableHttpService::new(move || Ok(tools.clone()), Arc::default(), config);
        Endpoint { service: Arc::new(service) }
    }
}

/// A message of the protocol, JSON-RPC 2.0.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = McpMessage)]
pub struct Message {
    /// Always `2.0`.
    pub jsonrpc: String,
    /// The id of a request: a text or a number. A notification has none.
    pub id: Option<Value>,
    /// Of a request: `initialize`, `tools/list`, `tools/call` and what else the protocol names.
    pub method: Option<String>,
    /// Of a request: what the method takes.
    pub params: Option<BTreeMap<String, Value>>,
    /// Of a response: what came of it.
    pub result: Option<BTreeMap<String, Value>>,
    /// Of a response: `code`, `message` and `data`, where it is no result.
    pub error: Option<BTreeMap<String, Value>>,
}

/// The API for agents: the Model Context Protocol, streamable HTTP without sessions
///
/// Tools are operations of this API, with the same rights, limits and problems; `tools/list` describes them. An error of a
/// tool is a problem document in `structuredContent`.
#[utoipa::path(
    post, path = "/mcp", operation_id = "model_context_protocol", tag = "agents", request_body = Message,
    responses(
        (status = 200, body = Message, description = "the response to a request"),
        (status = 202, description = "a notification was taken"),
        (status = 406, body = super::problem::Problem, description = "`accept` lacks application/json or text/event-stream")
    )
)]
pub(super) async fn answer(
    State(context): State<Context>,
    Extension(endpoint): Extension<Endpoint>,
    request: Request,
) -> Result<Response, Problem> {
    refuse_other_origins(request.headers())?;
    let (parts, body) = request.into_parts();
    let body = in_time(Bytes::from_request(Request::new(body), &context), context.body_timeout).await?;
    let answer = endpoint.service.handle(Request::from_parts(parts, Body::from(body))).await;
    let (parts, body) = answer.into_parts();
    let is_json = parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if !parts.status.is_client_error() || is_json {
        return Ok(Response::from_parts(parts, Body::new(body)));
    }
    let text = to_bytes(Body::new(body), ANSWER_MAX).await.unwrap_or_default();
    let remedy = "POST one JSON-RPC 2.0 message with `content-type: application/json` and `accept: application/json, \
                  text/event-stream`";
    Err(Problem::new(parts.status, String::from_utf8_lossy(&text), remedy))
}

/// The protocol asks for this besides what `auth` does: no page of another origin may ask, also where it holds a token.
fn refuse_other_origins(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let own = origin.to_str().ok().and_then(|origin| origin.split_once("://")).is_some_and(|(_, name)| name == host);
    if own {
        return Ok(());
    }
    let detail = "`origin` says that a page of another site asks";
    Err(Problem::new(StatusCode::FORBIDDEN, detail, "ask from a program, which sends no `origin`").of_field("origin"))
}
