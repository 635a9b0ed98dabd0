//! Look-up answers in Redis.

use crate::client::{RawEntry, ReadRequest};
use crate::link::{Link, Session};
use crate::value;
use crate::writer::{Entries, Writer};
use crate::{CachedValue, Error, RedisOptions};
use cache::{FetchError, Fetched, Store};
use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Look-up answers in Redis, shared by all replicas that use one namespace.
///
/// Entries that cannot be read count as misses and are written over. While Redis is down, every call fails at once
/// except one probe at growing intervals, so that the layer above loses no time with it. A removal that fails starts a
/// new generation as soon as Redis is back: what could not be removed is never read again.
pub struct RedisStore<V> {
    link: Arc<Link>,
    writer: Writer<V>,
    chunk: usize,
    max_age: Duration,
    negative_age: Duration,
}

impl<V: CachedValue> RedisStore<V> {
    /// A store over the Redis that `options` name, and the task that writes to it, which ends with the store. Redis is
    /// tried once; one that does not answer is told in the log and tried again later.
    ///
    /// # Errors
    /// When the URL, the certificate or the namespace cannot be used.
    pub async fn open(options: &RedisOptions) -> Result<Self, Error> {
        let store = Self::new(options)?;
        if let Err(error) = store.link.call(|_| std::future::ready(Ok(()))).await {
            tracing::warn!(%error, "the Redis cache cannot be reached; look-ups go on without it until it can");
        }
        Ok(store)
    }

    /// As [`open`](Self::open), without trying Redis. Needs a Tokio runtime around it for the task.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new(options: &RedisOptions) -> Result<Self, Error> {
        let link = Arc::new(Link::for_entries(options)?);
        let chunk = options.chunk.max(1);
        let writer = Writer::start(Arc::clone(&link), chunk, options.max_queued);
        Ok(Self { link, writer, chunk, max_age: options.max_age, negative_age: options.negative_age })
    }

    /// Waits until all that was put before is written or given up.
    ///
    /// # Errors
    /// When that takes longer than twice the timeout of a call.
    pub async fn flush(&self) -> Result<(), Error> {
        self.writer.flush().await
    }

    async fn read(&self, keys: &[&str]) -> Result<Vec<Option<Fetched<V>>>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let generation_key = self.link.generation_key();
        // One call for all chunks, so that they share a connection that is just being made.
        let (session, chunks) = self
            .link
            .call(|session| async move {
                let chunks = keys.chunks(self.chunk).map(|keys| {
                    let mut connection = session.connection.clone();
                    let request = ReadRequest::new(generation_key, &session.prefix, keys);
                    async move { connection.read(request).await }
                });
                let chunks = try_join_all(chunks).await?;
                Ok((session, chunks))
            })
            .await?;
        let other =
            chunks.iter().map(|(generation, _)| *generation).find(|it| *it != Some(session.generation));
        if let Some(other) = other {
            self.follow(&session, other).await?;
            return Ok(keys.iter().map(|_| None).collect());
        }
        let entries = chunks.into_iter().flat_map(|(_, entries)| entries);
        Ok(entries.map(|entry| self.decode(entry?)).collect())
    }

    /// Goes over to the generation that somebody else has begun; begins one when Redis has forgotten which it was.
    async fn follow(&self, session: &Session, generation: Option<u64>) -> Result<(), Error> {
        let generation = match generation {
            Some(generation) => generation,
            None => {
                let key = self.link.generation_key();
                self.link.call(|mut session| async move { session.connection.generation(key).await }).await?
            }
        };
        self.link.adopt(session, generation);
        Ok(())
    }

    fn decode(&self, entry: RawEntry) -> Option<Fetched<V>> {
        let value = value::read(&entry.json)?;
        let age = self.age(value.is_some());
        Some(Fetched { value, fresh_for: entry.left.unwrap_or(age).min(age) })
    }

    fn age(&self, present: bool) -> Duration {
        if present { self.max_age } else { self.negative_age }
    }
}

impl<V: CachedValue> Store<V> for RedisStore<V> {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn get<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Option<Fetched<V>>>, FetchError>> {
        async move { Ok(self.read(keys).await?) }.boxed()
    }

    fn put(&self, mut entries: Vec<(Box<str>, Fetched<V>)>) {
        // Without a connection there is nothing to write to, and nobody knows the generation.
        let Some(prefix) = self.link.current_prefix() else { return };
        for (_, fetched) in &mut entries {
            fetched.fresh_for = fetched.fresh_for.min(self.age(fetched.value.is_some()));
        }
        self.writer.put(Entries { prefix, entries });
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        async move { Ok(self.writer.remove(key).await?) }.boxed()
    }

    fn clear(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        let key = self.link.generation_key();
        async move {
            let begin = |mut session: Session| async move {
                let generation = session.connection.new_generation(key).await?;
                Ok((session, generation))
            };
            let (session, generation) = self.link.call(begin).await.inspect_err(|_| self.link.distrust())?;
            self.link.adopt(&session, generation);
            Ok(())
        }
        .boxed()
    }
}

impl<V> fmt::Debug for RedisStore<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("server", &self.link.server())
            .field("max_age", &self.max_age)
            .field("negative_age", &self.negative_age)
            .finish_non_exhaustive()
    }
}
