//! The one file that knows the Redis client crate.

use crate::{Error, RedisOptions};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline,
    ServerErrorKind, TlsCertificates, Value,
};
use std::time::Duration;

/// A Redis server that can be connected to.
pub(crate) struct Server {
    client: Client,
    name: String,
}

impl Server {
    /// Reads the address; connects to nothing.
    pub(crate) fn new(options: &RedisOptions) -> Result<Self, Error> {
        let refused = |error: redis::RedisError| Error::Address { reason: error.category().to_owned() };
        let address = options.url.as_str().into_connection_info().map_err(refused)?;
        let mut settings = address.redis_settings().clone();
        if let Some(user) = &options.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &options.password {
            settings = settings.set_password(password);
        }
        let address = address.set_redis_settings(settings);
        let client = match &options.root_certificate {
            None => Client::open(address),
            Some(pem) => {
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) };
                Client::build_with_tls(address, certificates)
            }
        };
        let client = client.map_err(refused)?;
        let name = match client.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                format!("{host}:{port}")
            }
            other => other.to_string(),
        };
        Ok(Self { client, name })
    }

    /// Host and port.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A new connection, with user and database set. The caller limits the time.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await;
        Ok(Connection(connection.map_err(|error| self.hint(Failure::of(error)))?))
    }

    /// A TLS port answers who speaks without TLS by hanging up, which says nothing to a person.
    fn hint(&self, failure: Failure) -> Failure {
        let is_plain = matches!(self.client.get_connection_info().addr(), ConnectionAddr::Tcp(..));
        match failure {
            Failure::Lost(words) if is_plain && !words.contains("refused") => {
                Failure::Lost(format!("{words}; is it a TLS port? then write rediss://"))
            }
            failure => failure,
        }
    }
}

/// What a call brought in place of an answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection is gone.
    Lost(String),
    /// Somebody must change a password or a right.
    Refused(String),
    /// The server's certificate is none that we trust.
    Untrusted(String),
    /// The server answered with an error; the connection works.
    Server(String),
}

impl Failure {
    /// Never with the words of an answer that could not be read, which may hold a value.
    fn of(error: redis::RedisError) -> Self {
        let words = match (error.code(), error.detail()) {
            (Some(code), Some(detail)) => format!("{code} {detail}"),
            (Some(code), None) => code.to_owned(),
            (None, _) if error.is_io_error() => error.to_string(),
            (None, _) => error.category().to_owned(),
        };
        match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => {
                Self::Refused(words)
            }
            _ if words.starts_with("NOAUTH") || words.starts_with("WRONGPASS") => Self::Refused(words),
            // What TLS says comes as an error of the connection.
            _ if words.contains("invalid peer certificate") => Self::Untrusted(words),
            _ if error.is_unrecoverable_error() || error.is_io_error() => Self::Lost(words),
            _ => Self::Server(words),
        }
    }

    fn unexpected() -> Self {
        Self::Server("an answer of a form that the command does not have".to_owned())
    }
}

/// Begins Redis's answer when a key holds a list, a hash or the like.
const WRONG_TYPE: &str = "WRONGTYPE";

/// What stands where the generation should.
enum Found {
    Generation(u64),
    Nothing,
    Garbage,
}

/// An open connection. Cloning shares it; requests of several callers go out without waiting for one another.
#[derive(Clone)]
pub(crate) struct Connection(MultiplexedConnection);

/// An entry as it lies in Redis.
pub(crate) struct RawEntry {
    pub(crate) json: Vec<u8>,
    /// What it has left to live; `None` for one that somebody made permanent.
    pub(crate) left: Option<Duration>,
}

impl Connection {
    /// Asks whether the server answers.
    pub(crate) async fn ping(&mut self) -> Result<(), Failure> {
        self.command(&redis::cmd("PING")).await.map(drop)
    }

    /// The generation at `key`; makes one where there is none, or something else.
    pub(crate) async fn generation(&mut self, key: &str) -> Result<u64, Failure> {
        match self.read_generation(key).await? {
            Found::Generation(generation) => return Ok(generation),
            Found::Nothing => {}
            Found::Garbage => {
                tracing::warn!(
                    key,
                    "what Redis holds under this key was not written by a program of ours; it is replaced, and every \
                     device is looked up anew"
                );
                return self.new_generation(key).await;
            }
        }
        let generation = self.time().await?;
        let mut set = redis::cmd("SET");
        set.arg(key).arg(generation).arg("NX");
        self.command(&set).await?;
        // Somebody else may have been first.
        match self.read_generation(key).await? {
            Found::Generation(generation) => Ok(generation),
            Found::Nothing | Found::Garbage => Err(Failure::unexpected()),
        }
    }

    /// Starts a new generation at `key`.
    pub(crate) async fn new_generation(&mut self, key: &str) -> Result<u64, Failure> {
        let generation = self.time().await?;
        let mut set = redis::cmd("SET");
        set.arg(key).arg(generation);
        self.command(&set).await?;
        Ok(generation)
    }

    async fn read_generation(&mut self, key: &str) -> Result<Found, Failure> {
        match self.command(redis::cmd("GET").arg(key)).await {
            Ok(Value::Nil) => Ok(Found::Nothing),
            Ok(value) => Ok(number(&value).map_or(Found::Garbage, Found::Generation)),
            Err(Failure::Server(words)) if words.starts_with(WRONG_TYPE) => Ok(Found::Garbage),
            Err(failure) => Err(failure),
        }
    }

    /// The server's own time in microseconds: rises without a clock or a counter of ours, which could be lost.
    async fn time(&mut self) -> Result<u64, Failure> {
        let Value::Array(parts) = self.command(&redis::cmd("TIME")).await? else {
            return Err(Failure::unexpected());
        };
        match &parts[..] {
            [seconds, micros] => {
                let (seconds, micros) = (number(seconds), number(micros));
                let time = seconds.zip(micros).and_then(|(s, us)| s.checked_mul(1_000_000)?.checked_add(us));
                time.ok_or_else(Failure::unexpected)
            }
            _ => Err(Failure::unexpected()),
        }
    }

    /// The generation at `generation` and the entries under `keys`, read at one moment, with what they have left.
    pub(crate) async fn read(
        &mut self,
        request: ReadRequest,
    ) -> Result<(Option<u64>, Vec<Option<RawEntry>>), Failure> {
        let mut answers = self.pipeline(&request.pipeline).await?.into_iter();
        let Some(Value::Array(values)) = answers.next() else { return Err(Failure::unexpected()) };
        if values.len() != request.keys + 1 || answers.len() != request.keys {
            return Err(Failure::unexpected());
        }
        let mut values = values.into_iter();
        let generation = values.next().as_ref().and_then(number);
        let entries = values.zip(answers).map(|(value, left)| entry(value, left));
        Ok((generation, entries.collect()))
    }

    /// Writes entries.
    pub(crate) async fn write(&mut self, request: &WriteRequest) -> Result<(), Failure> {
        self.pipeline(&request.pipeline).await.map(drop)
    }

    /// The value of one key.
    pub(crate) async fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        match self.command(redis::cmd("GET").arg(key)).await? {
            Value::BulkString(bytes) => Ok(Some(bytes)),
            _ => Ok(None),
        }
    }

    /// Removes one key without waiting for its memory to be freed.
    pub(crate) async fn unlink(&mut self, key: &str) -> Result<(), Failure> {
        self.command(redis::cmd("UNLINK").arg(key)).await.map(drop)
    }

    async fn command(&mut self, command: &Cmd) -> Result<Value, Failure> {
        command.query_async(&mut self.0).await.map_err(Failure::of)
    }

    async fn pipeline(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, Failure> {
        pipeline.query_async(&mut self.0).await.map_err(Failure::of)
    }
}

/// Asks for many entries at once.
pub(crate) struct ReadRequest {
    pipeline: Pipeline,
    keys: usize,
}

impl ReadRequest {
    /// A request for `keys`, which begin with `prefix`, and for the generation at `generation`.
    pub(crate) fn new(generation: &str, prefix: &str, keys: &[&str]) -> Self {
        let mut buffer = crate::keys::KeyBuffer::new(prefix);
        let mut pipeline = Pipeline::with_capacity(keys.len() + 1);
        let mut get = redis::cmd("MGET");
        get.arg(generation);
        for key in keys {
            get.arg(buffer.of(key));
        }
        pipeline.add_command(get);
        for key in keys {
            pipeline.cmd("PTTL").arg(buffer.of(key));
        }
        Self { pipeline, keys: keys.len() }
    }
}

/// Writes many entries at once.
pub(crate) struct WriteRequest {
    pipeline: Pipeline,
    entries: usize,
}

impl WriteRequest {
    pub(crate) fn with_capacity(entries: usize) -> Self {
        Self { pipeline: Pipeline::with_capacity(entries), entries: 0 }
    }

    /// Adds an entry that lives for `age`. One that would live for less than a millisecond is left out.
    pub(crate) fn set(&mut self, key: &str, json: &[u8], age: Duration) {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        if age > 0 {
            self.pipeline.cmd("SET").arg(key).arg(json).arg("PX").arg(age).ignore();
            self.entries += 1;
        }
    }

    pub(crate) fn entries(&self) -> usize {
        self.entries
    }
}

fn entry(value: Value, left: Value) -> Option<RawEntry> {
    let Value::BulkString(json) = value else { return None };
    let left = match left {
        Value::Int(-1) => None,
        Value::Int(millis) => {
            Some(Duration::from_millis(u64::try_from(millis).ok().filter(|left| *left > 0)?))
        }
        _ => return None,
    };
    Some(RawEntry { json, left })
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}
