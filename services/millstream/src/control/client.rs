//! The side of the command.

use super::{Answer, Contact, Request};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

/// For connecting, on the same machine.
const CONNECT: Duration = Duration::from_secs(2);
/// For an answer; the other side gives up sooner.
const ANSWER: Duration = Duration::from_secs(30);
/// No answer is longer.
const LONGEST: u64 = 4 * 1024 * 1024;

/// Knows where a running process takes orders.
#[derive(Debug)]
pub struct Client(Contact);

impl Client {
    /// Reads `control.json`; `None` when nobody has written one.
    ///
    /// # Errors
    /// When it cannot be read, most likely because the process belongs to another user.
    pub fn find(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok().map(Self)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether somebody listens there.
    #[must_use]
    pub fn answers(&self) -> bool {
        TcpStream::connect_timeout(&self.0.address, CONNECT).is_ok()
    }

    /// Has one page of work done and waits for its outcome.
    ///
    /// # Errors
    /// When there is no answer, or it is a refusal; for people.
    pub fn ask(&self, request: &Request) -> Result<Answer, String> {
        let body = serde_json::to_string(request).map_err(|error| error.to_string())?;
        let (status, text) = self.post(&body).map_err(|error| format!("the running process: {error}"))?;
        if status != 200 {
            let error = serde_json::from_str::<serde_json::Value>(&text)
                .ok()
                .and_then(|answer| Some(answer.get("error")?.as_str()?.to_owned()));
            return Err(error.unwrap_or_else(|| format!("the running process answers with status {status}")));
        }
        serde_json::from_str(&text).map_err(|error| format!("the running process: {error}"))
    }

    /// One HTTP/1.1 request on a connection of its own (RFC 9112). The server answers with a length, never chunked.
    fn post(&self, body: &str) -> io::Result<(u16, String)> {
        let Contact { address, token } = &self.0;
        let mut stream = TcpStream::connect_timeout(address, CONNECT)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        write!(
            stream,
            "POST /dead-letters HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        let mut text = String::new();
        stream.take(LONGEST).read_to_string(&mut text)?;
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "broken answer");
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(broken)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(broken)?;
        Ok((status, body.to_owned()))
    }
}
