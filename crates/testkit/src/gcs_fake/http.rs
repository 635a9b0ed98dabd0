//! HTTP/1.1 as far as it is needed: requests with a length or in chunks, answers with a length, kept connections.

use super::routes::{self, Action};
use super::state::State;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Longest head of a request, and largest body.
const MAX_HEAD: u64 = 64 * 1024;
const MAX_BODY: usize = 512 << 20;

/// One request.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) method: String,
    /// Still percent-encoded, without the query.
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    /// Names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

/// One answer.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

impl Response {
    pub(super) fn json(status: u16, body: &serde_json::Value) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { status, headers, body: body.to_string().into() }
    }

    pub(super) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }

    /// An error as the service words it.
    pub(super) fn error(status: u16, message: &str) -> Self {
        let error = serde_json::json!({"error": {"code": status, "message": message}});
        Self::json(status, &error)
    }
}

pub(super) async fn accept(listener: TcpListener, address: SocketAddr, state: Arc<Mutex<State>>) {
    // Its connections end with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else { continue };
        let state = Arc::clone(&state);
        connections.spawn(async move {
            // A client that goes away needs no answer.
            let _ = serve(stream, address, state).await;
        });
    }
}

async fn serve(stream: TcpStream, address: SocketAddr, state: Arc<Mutex<State>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await? {
        match routes::answer(request, address, &state).await {
            Action::Answer(response) => write_response(stream.get_mut(), response).await?,
            Action::Cut => return Ok(()),
            Action::Never => std::future::pending().await,
        }
    }
    Ok(())
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        let room = MAX_HEAD.saturating_sub(before as u64);
        if (&mut *stream).take(room).read_line(&mut head).await? == 0 {
            return if head.is_empty() { Ok(None) } else { Err(malformed("the head ends early")) };
        }
        if &head[before..] == "\r\n" {
            break;
        }
    }
    let mut request = parse_head(&head)?;
    request.body = read_body(stream, &request.headers).await?;
    Ok(Some(request))
}

fn parse_head(head: &str) -> io::Result<Request> {
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(malformed("no request line"));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let query = pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(&name.replace('+', " ")), decoded(&value.replace('+', " ")))
    });
    let headers = lines.filter_map(|line| line.split_once(':'));
    Ok(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.collect(),
        headers: headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect(),
        body: Vec::new(),
    })
}

async fn read_body(
    stream: &mut BufReader<TcpStream>,
    headers: &BTreeMap<String, String>,
) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let length = usize::from_str_radix(line.trim(), 16).map_err(|_| malformed("no chunk length"))?;
            append(stream, &mut body, length).await?;
            // The line break behind the chunk, and behind the last one.
            stream.read_line(&mut String::new()).await?;
            if length == 0 {
                return Ok(body);
            }
        }
    }
    let length = headers.get("content-length").map_or(Ok(0), |text| text.parse());
    append(stream, &mut body, length.map_err(|_| malformed("no length"))?).await?;
    Ok(body)
}

async fn append(stream: &mut BufReader<TcpStream>, body: &mut Vec<u8>, length: usize) -> io::Result<()> {
    if body.len() + length > MAX_BODY {
        return Err(malformed("too large"));
    }
    let begin = body.len();
    body.resize(begin + length, 0);
    stream.read_exact(&mut body[begin..]).await?;
    Ok(())
}

async fn write_response(stream: &mut TcpStream, response: Response) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {} .\r\ncontent-length: {}\r\n", response.status, response.body.len());
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&response.body).await?;
    stream.flush().await
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Without percent-encoding (RFC 3986, section 2.1).
pub(super) fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match digits.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                bytes.push(decoded);
                rest = &behind[2..];
            }
            _ => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
