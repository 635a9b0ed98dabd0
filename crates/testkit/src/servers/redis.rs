//! The Redis server.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::server::Description;
use super::{Server, find_program, left_out};

/// How long Redis may take to answer a command.
const PATIENCE: Duration = Duration::from_secs(30);

/// A Redis server that keeps nothing on disk, so that it is empty after each restart; it lives as long as this value.
#[derive(Debug)]
pub struct Redis {
    server: Server,
}

impl Redis {
    /// Starts a server. `None` means that Redis is not installed, which has been said with the name of `test`.
    ///
    /// # Panics
    /// When it is installed but does not start, or is required and not installed.
    #[must_use]
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, &[])
    }

    /// As [`Redis::start`], with further arguments such as `--maxmemory 1mb`, each word one item.
    ///
    /// # Panics
    /// As [`Redis::start`].
    #[must_use]
    pub fn start_with(test: &str, arguments: &[&str]) -> Option<Self> {
        Self::launch(test, arguments, None)
    }

    /// As [`Redis::start`], with a second port that speaks TLS under this certificate and asks clients for none.
    ///
    /// # Panics
    /// As [`Redis::start`].
    #[must_use]
    pub fn start_with_tls(test: &str, certificate: &Path, key: &Path) -> Option<Self> {
        Self::launch(test, &[], Some((certificate.to_owned(), key.to_owned())))
    }

    fn launch(test: &str, arguments: &[&str], tls: Option<(PathBuf, PathBuf)>) -> Option<Self> {
        let program = find_program("redis-server").or_else(|| left_out(test, "redis-server"))?;
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let description = Description {
            name: "redis-server",
            ports: if tls.is_some() { 2 } else { 1 },
            command: Box::new(move |folder, ports| {
                let mut command = Command::new(&program);
                command.args(["--bind", "127.0.0.1", "--port", &ports[0].to_string()]);
                if let Some((certificate, key)) = &tls {
                    command.args(["--tls-port", &ports[1].to_string(), "--tls-auth-clients", "no"]);
                    command.arg("--tls-cert-file").arg(certificate).arg("--tls-key-file").arg(key);
                }
                command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(folder).args(&arguments);
                Ok(command)
            }),
            // Any answer will do: with a password it refuses.
            ready: Box::new(|ports| call(ports[0], &["PING"]).is_ok()),
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        Some(Self { server: Server::start(description, folder) })
    }

    /// Its address for a client: `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.server.address())
    }

    /// Its address with TLS, by the name that its certificate holds: `rediss://localhost:PORT`.
    ///
    /// # Panics
    /// When it was started without.
    #[must_use]
    pub fn tls_url(&self) -> String {
        format!("rediss://localhost:{}", self.server.ports()[1])
    }

    /// Sends one command, such as `["DBSIZE"]` or `["SET", "key", "value"]`, on a connection of its own and answers
    /// what Redis replied, as text: a status, a number, a string, or the items of an array, one a line. A missing value
    /// is `None`.
    ///
    /// # Panics
    /// When Redis does not answer or refuses.
    pub fn command(&self, words: &[&str]) -> Option<String> {
        let reply = call(self.server.port(), words).and_then(|reply| reply.map_err(io::Error::other));
        reply.unwrap_or_else(|error| panic!("Redis command {}: {error}", words[0]))
    }
}

impl Deref for Redis {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Redis {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// What Redis said: a value, nothing, or the text of its refusal.
type Reply = Result<Option<String>, String>;

fn call(port: u16, words: &[&str]) -> io::Result<Reply> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(request.as_bytes())?;
    read_reply(&mut BufReader::new(stream))
}

/// One reply of the protocol's second version (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).
fn read_reply(input: &mut impl BufRead) -> io::Result<Reply> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(io::ErrorKind::UnexpectedEof)?;
    let length = || rest.parse::<i64>().map_err(io::Error::other);
    match kind {
        "-" => Ok(Err(rest.to_owned())),
        "$" => match usize::try_from(length()?) {
            Err(_negative) => Ok(Ok(None)),
            Ok(length) => {
                let mut bytes = vec![0; length + "\r\n".len()];
                input.read_exact(&mut bytes)?;
                Ok(Ok(Some(String::from_utf8_lossy(&bytes[..length]).into_owned())))
            }
        },
        "*" => {
            let mut items = Vec::new();
            for _ in 0..length()? {
                match read_reply(input)? {
                    Ok(item) => items.push(item.unwrap_or_default()),
                    Err(refusal) => return Ok(Err(refusal)),
                }
            }
            Ok(Ok(Some(items.join("\n"))))
        }
        _ => Ok(Ok(Some(rest.to_owned()))),
    }
}
