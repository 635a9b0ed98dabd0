//! Who is here now, in Redis.

use crate::client::WriteRequest;
use crate::keys::{self, KeyBuffer};
use crate::link::Link;
use crate::{CachedValue, Error, RedisOptions};
use cache::{FetchError, PresenceCache};
use futures_util::future::{BoxFuture, FutureExt};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// Presence in Redis: a key that is not set again within the age is gone.
///
/// It shares a namespace with look-up caches without sharing keys with them. Clearing a look-up cache leaves it as it
/// is. What cannot be read counts as not there.
pub struct RedisPresence<V> {
    link: Link,
    prefix: String,
    max_age: Duration,
    value: PhantomData<fn() -> V>,
}

impl<V: CachedValue> RedisPresence<V> {
    /// Presence in the Redis that `options` name; each key for [`RedisOptions::max_age`] after it was last set.
    ///
    /// # Errors
    /// When the URL, the certificate or the namespace cannot be used.
    pub fn new(options: &RedisOptions) -> Result<Self, Error> {
        Ok(Self {
            link: Link::plain(options)?,
            prefix: keys::presence(&options.namespace),
            max_age: options.max_age,
            value: PhantomData,
        })
    }

    fn key(&self, key: &str) -> String {
        KeyBuffer::new(&self.prefix).of(key).to_owned()
    }
}

impl<V: CachedValue> PresenceCache<V> for RedisPresence<V> {
    fn set<'a>(&'a self, key: &'a str, value: V) -> BoxFuture<'a, Result<(), FetchError>> {
        let mut json = Vec::new();
        value.to_json(&mut json);
        let mut request = WriteRequest::with_capacity(1);
        request.set(&self.key(key), &json, self.max_age);
        async move {
            let request = &request;
            Ok(self.link.call(|mut session| async move { session.connection.write(request).await }).await?)
        }
        .boxed()
    }

    fn fetch<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<V>, FetchError>> {
        let key = self.key(key);
        async move {
            let key = &key;
            let json = self.link.call(|mut session| async move { session.connection.get(key).await }).await?;
            Ok(json.and_then(|json| V::from_json(&json)))
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        let key = self.key(key);
        async move {
            let key = &key;
            Ok(self.link.call(|mut session| async move { session.connection.unlink(key).await }).await?)
        }
        .boxed()
    }
}

impl<V> fmt::Debug for RedisPresence<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisPresence")
            .field("server", &self.link.server())
            .field("max_age", &self.max_age)
            .finish_non_exhaustive()
    }
}
