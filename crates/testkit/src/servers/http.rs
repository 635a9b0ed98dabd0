//! Just enough HTTP/1.1 for the emulators' REST interfaces.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// How long an emulator may take to answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// An answer: the status code and the body, `Null` where there is none or it is not JSON.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

/// Sends one request on a connection of its own.
pub(super) fn request(port: u16, method: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n");
    // The Firestore emulator takes this bearer for its owner, whom no security rule stops.
    head.push_str("Authorization: Bearer owner\r\nContent-Type: application/json\r\n");
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    (&stream).write_all((head + &body).as_bytes())?;
    read_answer(&mut BufReader::new(stream))
}

/// As [`request`], for a call that has to succeed.
///
/// # Panics
/// When there is no answer or its status is not 200 to 299.
pub(super) fn call(port: u16, method: &str, path: &str, body: Option<&Value>) -> Value {
    let answer = request(port, method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    assert!(
        (200..300).contains(&answer.status),
        "{method} {path} answers {}: {}",
        answer.status,
        answer.body
    );
    answer.body
}

fn read_answer(input: &mut impl BufRead) -> io::Result<Answer> {
    let malformed = || io::Error::other("not an HTTP answer");
    let mut line = String::new();
    input.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    let mut chunked = false;
    let mut length = None;
    loop {
        line.clear();
        input.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "transfer-encoding" => chunked = value.trim().eq_ignore_ascii_case("chunked"),
            "content-length" => length = Some(value.trim().parse::<u64>().map_err(io::Error::other)?),
            _ => {}
        }
    }
    let mut body = Vec::new();
    match length {
        _ if chunked => read_chunks(input, &mut body)?,
        Some(length) => _ = input.take(length).read_to_end(&mut body)?,
        None => _ = input.read_to_end(&mut body)?,
    }
    Ok(Answer { status, body: serde_json::from_slice(&body).unwrap_or(Value::Null) })
}

fn read_chunks(input: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
        input.by_ref().take(length).read_to_end(body)?;
        input.read_line(&mut String::new())?;
        if length == 0 {
            return Ok(());
        }
    }
}
