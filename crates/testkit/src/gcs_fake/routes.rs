//! From a request to its answer.

use super::http::{Request, Response, decoded};
use super::state::{GcsFault, GcsRequest, Object, Refused, State, Upload};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// Most objects on a page (the service's own limit).
const PAGE: usize = 1_000;

/// What is done with the connection.
pub(super) enum Action {
    Answer(Response),
    Cut,
    Never,
}

pub(super) async fn answer(request: Request, address: SocketAddr, state: &Arc<Mutex<State>>) -> Action {
    let path: Vec<_> = request.path.trim_matches('/').split('/').map(decoded).collect();
    let path: Vec<_> = path.iter().map(String::as_str).collect();
    let Some(kind) = kind(&request, &path) else {
        return Action::Answer(Response::error(404, "the fake does not know this path"));
    };
    let fault = state.lock().count(kind);
    match fault {
        Some(GcsFault::Status(status)) => return Action::Answer(Response::error(status, "made to fail")),
        Some(GcsFault::Cut) => return Action::Cut,
        Some(GcsFault::Never) => return Action::Never,
        Some(GcsFault::Slow(by)) => tokio::time::sleep(by).await,
        Some(GcsFault::LostReply) | None => {}
    }
    let response = respond(request, &path, address, &mut state.lock());
    if fault == Some(GcsFault::LostReply) { Action::Cut } else { Action::Answer(response) }
}

fn kind(request: &Request, path: &[&str]) -> Option<GcsRequest> {
    let media = request.query.get("alt").is_some_and(|alt| alt == "media");
    match (request.method.as_str(), path) {
        ("POST", ["upload", ..]) | ("PUT", ["upload", ..]) => Some(GcsRequest::Upload),
        ("POST", ["storage", "v1", "b"]) | ("GET", ["storage", "v1", "b", _]) => Some(GcsRequest::Bucket),
        ("GET", ["storage", "v1", "b", _, "o"]) => Some(GcsRequest::List),
        ("GET", ["storage", "v1", "b", _, "o", ..]) if media => Some(GcsRequest::Read),
        ("GET", ["storage", "v1", "b", _, "o", ..]) => Some(GcsRequest::Metadata),
        ("DELETE", ["storage", "v1", "b", _, "o", ..]) => Some(GcsRequest::Delete),
        _ => None,
    }
}

fn respond(request: Request, path: &[&str], address: SocketAddr, state: &mut State) -> Response {
    match (request.method.as_str(), path) {
        ("POST", ["upload", "storage", "v1", "b", bucket, "o"]) => begin(&request, bucket, address, state),
        ("PUT", ["upload", "resumable", number]) => resume(&request, number, state),
        ("POST", ["storage", "v1", "b"]) => make_bucket(&request, state),
        ("GET", ["storage", "v1", "b", bucket]) => match state.buckets.contains_key(*bucket) {
            true => Response::json(200, &json!({"kind": "storage#bucket", "name": bucket})),
            false => no_bucket(),
        },
        ("GET", ["storage", "v1", "b", bucket, "o"]) => list(&request, bucket, state),
        ("GET", ["storage", "v1", "b", bucket, "o", name @ ..]) => {
            read(&request, bucket, &name.join("/"), state)
        }
        ("DELETE", ["storage", "v1", "b", bucket, "o", name @ ..]) => {
            let deleted = state.delete(bucket, &name.join("/"));
            if deleted { Response::empty(204) } else { Response::error(404, "no such object") }
        }
        _ => Response::error(404, "the fake does not know this path"),
    }
}

fn no_bucket() -> Response {
    Response::error(404, "The specified bucket does not exist.")
}

fn make_bucket(request: &Request, state: &mut State) -> Response {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let Some(name) = body["name"].as_str() else { return Response::error(400, "a bucket has a name") };
    if !request.query.contains_key("project") {
        return Response::error(400, "Required parameter: project");
    }
    if state.buckets.contains_key(name) {
        return Response::error(409, "The requested bucket name is not available.");
    }
    state.buckets.insert(name.to_owned(), BTreeMap::new());
    Response::json(200, &json!({"kind": "storage#bucket", "name": name}))
}

fn begin(request: &Request, bucket: &str, address: SocketAddr, state: &mut State) -> Response {
    if !state.buckets.contains_key(bucket) {
        return no_bucket();
    }
    let if_generation = request.query.get("ifGenerationMatch").and_then(|text| text.parse().ok());
    let mut upload = Upload { bucket: bucket.to_owned(), if_generation, ..Upload::default() };
    let kind = request.query.get("uploadType").map_or("media", String::as_str);
    let described = match kind {
        "multipart" => match parts(request) {
            Some((description, content)) => {
                upload.received = content.to_vec();
                description.to_vec()
            }
            None => return Response::error(400, "two parts are needed"),
        },
        "resumable" => request.body.clone(),
        _ => {
            upload.received = request.body.clone();
            b"{}".to_vec()
        }
    };
    let description: Value = serde_json::from_slice(&described).unwrap_or_default();
    describe(&mut upload, request, &description);
    if kind == "resumable" {
        let number = state.number();
        state.uploads.insert(number, upload);
        let location = format!("http://{address}/upload/resumable/{number}");
        return Response { headers: vec![("location", location)], ..Response::empty(200) };
    }
    let wanted = description["crc32c"].as_str().map(str::to_owned);
    finish(state, upload, wanted)
}

fn describe(upload: &mut Upload, request: &Request, description: &Value) {
    let text = |name: &str| description[name].as_str().map(str::to_owned);
    upload.name = request.query.get("name").cloned().or_else(|| text("name")).unwrap_or_default();
    upload.object.content_type = text("contentType").unwrap_or_else(|| "application/octet-stream".to_owned());
    upload.object.content_encoding = text("contentEncoding");
    let metadata = description["metadata"].as_object().into_iter().flatten();
    upload.object.metadata =
        metadata.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
}

/// The description and the content of a multipart upload (RFC 2046, section 5.1).
fn parts(request: &Request) -> Option<(&[u8], &[u8])> {
    let boundary = request.headers.get("content-type")?.split("boundary=").nth(1)?.trim_matches('"');
    let separator = format!("--{boundary}");
    let first = find(&request.body, separator.as_bytes())? + separator.len();
    let behind = &request.body[first..];
    let between = format!("\r\n{separator}");
    let second = find(behind, between.as_bytes())?;
    let content = &behind[second + between.len()..];
    // The content may hold what looks like a separator; its end is the last one.
    let end = content.windows(between.len()).rposition(|window| window == between.as_bytes())?;
    Some((body_of(&behind[..second])?, body_of(&content[..end])?))
}

fn body_of(part: &[u8]) -> Option<&[u8]> {
    Some(&part[find(part, b"\r\n\r\n")? + 4..])
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

fn resume(request: &Request, number: &str, state: &mut State) -> Response {
    let number = number.parse().unwrap_or(0);
    let Some(upload) = state.uploads.get_mut(&number) else { return Response::error(410, "no such upload") };
    let range = request.headers.get("content-range").map_or("", String::as_str);
    let (part, total) = range.trim_start_matches("bytes ").split_once('/').unwrap_or(("*", "*"));
    if part != "*" {
        let begin = part.split('-').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        if begin != upload.received.len() {
            return Response::error(400, "the range does not begin where the upload is");
        }
        upload.received.extend_from_slice(&request.body);
    }
    if total.parse() != Ok(upload.received.len()) {
        let mut incomplete = Response::empty(308);
        if let Some(last) = upload.received.len().checked_sub(1) {
            incomplete.headers.push(("range", format!("bytes=0-{last}")));
        }
        return incomplete;
    }
    let wanted = request.headers.get("x-goog-hash").and_then(|hash| hash.strip_prefix("crc32c="));
    let wanted = wanted.map(str::to_owned);
    match state.uploads.remove(&number) {
        Some(upload) => finish(state, upload, wanted),
        None => Response::error(410, "no such upload"),
    }
}

fn finish(state: &mut State, upload: Upload, wanted: Option<String>) -> Response {
    if wanted.is_some_and(|wanted| wanted != checksum(super::state::crc32c(&upload.received))) {
        return Response::error(400, "Provided CRC32C does not match.");
    }
    let (bucket, name) = (upload.bucket.clone(), upload.name.clone());
    match state.finish(upload) {
        Ok(object) => Response::json(200, &described(&bucket, &name, &object)),
        Err(Refused::NoBucket) => no_bucket(),
        Err(Refused::Precondition) => {
            Response::error(412, "At least one of the pre-conditions you specified did not hold.")
        }
        Err(Refused::Full) => Response::error(429, "the fake holds as much as it may"),
    }
}

fn described(bucket: &str, name: &str, object: &Object) -> Value {
    let mut description = json!({
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "generation": object.generation.to_string(),
        "metageneration": "1",
        "size": object.bytes.len().to_string(),
        "contentType": object.content_type,
        "timeCreated": object.created,
        "crc32c": checksum(object.crc32c),
        "metadata": object.metadata,
    });
    if let Some(encoding) = &object.content_encoding {
        description["contentEncoding"] = json!(encoding);
    }
    description
}

/// Big-endian in Base64, as the API writes it.
fn checksum(crc32c: u32) -> String {
    base64_simd::STANDARD.encode_to_string(crc32c.to_be_bytes())
}

fn read(request: &Request, bucket: &str, name: &str, state: &State) -> Response {
    let Some(objects) = state.buckets.get(bucket) else { return no_bucket() };
    let Some(object) = objects.get(name) else { return Response::error(404, "No such object") };
    if request.query.get("alt").is_none_or(|alt| alt != "media") {
        return Response::json(200, &described(bucket, name, object));
    }
    let whole = object.bytes.len();
    let range = request.headers.get("range").and_then(|text| span(text, whole));
    let body = range.map_or_else(|| object.bytes.clone(), |(begin, end)| object.bytes.slice(begin..end));
    let mut headers = vec![
        ("content-type", object.content_type.clone()),
        ("x-goog-generation", object.generation.to_string()),
        ("x-goog-metageneration", "1".to_owned()),
        ("x-goog-stored-content-length", whole.to_string()),
        ("x-goog-hash", format!("crc32c={}", checksum(object.crc32c))),
    ];
    if let Some((begin, end)) = range {
        headers.push(("content-range", format!("bytes {begin}-{}/{whole}", end.saturating_sub(1))));
    }
    Response { status: if range.is_some() { 206 } else { 200 }, headers, body }
}

/// Begin and end of `bytes=a-b`, `bytes=a-` or `bytes=-n`.
fn span(text: &str, whole: usize) -> Option<(usize, usize)> {
    let (begin, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (begin, end) = match (begin.parse::<usize>(), end.parse::<usize>()) {
        (Ok(begin), Ok(last)) => (begin, last + 1),
        (Ok(begin), Err(_)) => (begin, whole),
        (Err(_), Ok(tail)) => (whole.saturating_sub(tail), whole),
        (Err(_), Err(_)) => return None,
    };
    Some((begin.min(whole), end.min(whole)))
}

fn list(request: &Request, bucket: &str, state: &State) -> Response {
    let Some(objects) = state.buckets.get(bucket) else { return no_bucket() };
    let asked = |name: &str| request.query.get(name).map_or("", String::as_str);
    let (prefix, delimiter, end) = (asked("prefix"), asked("delimiter"), asked("endOffset"));
    let limit = asked("maxResults").parse().unwrap_or(PAGE).min(PAGE);
    let (mut items, mut prefixes, mut next) = (Vec::new(), BTreeSet::new(), None);
    for (name, object) in objects {
        let outside = !name.starts_with(prefix) || name.as_str() < asked("startOffset");
        if outside || name.as_str() <= asked("pageToken") || (!end.is_empty() && name.as_str() >= end) {
            continue;
        }
        let below = &name[prefix.len()..];
        if let Some(at) = below.find(delimiter).filter(|_| !delimiter.is_empty()) {
            prefixes.insert(format!("{prefix}{}", &below[..at + delimiter.len()]));
            continue;
        }
        if items.len() == limit {
            next = items.last().and_then(|item: &Value| item["name"].as_str()).map(str::to_owned);
            break;
        }
        items.push(described(bucket, name, object));
    }
    let mut page = json!({"kind": "storage#objects", "items": items, "prefixes": prefixes});
    if let Some(next) = next {
        page["nextPageToken"] = json!(next);
    }
    Response::json(200, &page)
}
