//! Who is here now, in Firestore.

use crate::client::{Answer, Client, Value, ValueType};
use crate::{Error, FirestoreOptions, document};
use cache::{FetchError, PresenceCache};
use futures_util::future::{BoxFuture, FutureExt};
use messagepipeline::Clock;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The field with the value.
const VALUE: &str = "value";
/// The field that says when the document is of no more use.
const EXPIRES: &str = "expires_at";

/// Presence in Firestore: a document per key, which counts for the age after it was last set.
///
/// The age is measured by the server's clock. Documents that have passed it stay until somebody removes them; a policy
/// of the collection for the field `expires_at` (time to live) lets the service do that. A call costs a document read
/// or write.
pub struct FirestorePresence {
    client: Client,
    timeout: Duration,
    max_age: Duration,
    clock: Arc<dyn Clock>,
}

impl FirestorePresence {
    /// Presence in the collection that `options` name, each key for `max_age` after it was last set. `clock` stamps
    /// `expires_at`. Needs a Tokio runtime around it.
    ///
    /// # Errors
    /// When project, database, collection or endpoint cannot be used.
    pub fn new(options: &FirestoreOptions, max_age: Duration, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        Ok(Self { client: Client::new(options)?, timeout: options.timeout, max_age, clock })
    }

    fn name(&self, key: &str) -> Result<String, Error> {
        let problem = || "no document can have this key as its id".to_owned();
        self.client
            .collection()
            .name(key)
            .ok_or_else(|| Error::Invalid { code: "INVALID_ARGUMENT", reason: problem() })
    }

    async fn within<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.timeout;
        timeout(limit, call).await.unwrap_or(Err(Error::Timeout { limit, after: String::new() }))
    }

    async fn store(&self, key: &str, value: &str) -> Result<(), Error> {
        let expires = document::proto_timestamp(self.clock.now().plus(self.max_age));
        let fields = HashMap::from([
            (VALUE.to_owned(), Value { value_type: Some(ValueType::StringValue(value.to_owned())) }),
            (EXPIRES.to_owned(), Value { value_type: Some(ValueType::TimestampValue(expires)) }),
        ]);
        self.within(self.client.set(self.name(key)?, fields)).await
    }

    async fn read(&self, key: &str) -> Result<Option<Arc<str>>, Error> {
        let name = self.name(key)?;
        let reading = async {
            let mut answers = self.client.get(vec![name]).await?;
            answers.next().await
        };
        let Some(Answer { document: Some(found), read, .. }) = self.within(reading).await? else {
            return Ok(None);
        };
        let age = document::timestamp(&read).since(document::timestamp(&found.updated));
        if age >= self.max_age {
            return Ok(None);
        }
        Ok(match found.fields.get(VALUE).and_then(|value| value.value_type.as_ref()) {
            Some(ValueType::StringValue(text)) => Some(text.as_str().into()),
            _ => None,
        })
    }
}

impl PresenceCache<Arc<str>> for FirestorePresence {
    fn set<'a>(&'a self, key: &'a str, value: Arc<str>) -> BoxFuture<'a, Result<(), FetchError>> {
        async move { Ok(self.store(key, &value).await?) }.boxed()
    }

    fn fetch<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Arc<str>>, FetchError>> {
        async move { Ok(self.read(key).await?) }.boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        async move { Ok(self.within(self.client.delete(self.name(key)?)).await?) }.boxed()
    }
}

impl fmt::Debug for FirestorePresence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirestorePresence")
            .field("collection", self.client.collection())
            .field("max_age", &self.max_age)
            .finish_non_exhaustive()
    }
}
