//! How Redis is reached, and how long entries stay there.

use crate::Error;
use std::fmt;
use std::time::Duration;

/// Longest namespace, in bytes; every key begins with it.
const MAX_NAMESPACE: usize = 64;

/// How Redis is reached, and how long entries stay there.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisOptions {
    /// `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`, with TLS `rediss://…`. Never shown.
    pub url: String,
    /// The user, in place of one in the URL.
    pub user: Option<String>,
    /// The password, in place of one in the URL. Never shown.
    pub password: Option<String>,
    /// PEM of the authorities to trust in place of the system's, for `rediss://`.
    pub root_certificate: Option<Vec<u8>>,
    /// Begins every key: 1 to 64 of `A-Z a-z 0-9 . _ -`. Installations that share a Redis have one each.
    pub namespace: String,
    /// Stands in every key. Raise it when values change their meaning, so that old and new programs do not read each
    /// other's entries.
    pub value_version: u32,
    /// How long a value stays.
    pub max_age: Duration,
    /// How long it is remembered that a key is absent.
    pub negative_age: Duration,
    /// Longest time a call may take, connecting included.
    pub timeout: Duration,
    /// Most keys or entries in one request; at least 1.
    pub chunk: usize,
    /// Most entries that wait to be written; what does not fit is not written.
    pub max_queued: usize,
}

impl Default for RedisOptions {
    /// Redis on this machine; values for two hours, absences for 10 seconds, 300 ms for a call, 512 keys in a request,
    /// 20,000 entries waiting.
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379".to_owned(),
            user: None,
            password: None,
            root_certificate: None,
            namespace: "millstream".to_owned(),
            value_version: 1,
            max_age: Duration::from_secs(2 * 3600),
            negative_age: Duration::from_secs(10),
            timeout: Duration::from_millis(300),
            chunk: 512,
            max_queued: 20_000,
        }
    }
}

impl RedisOptions {
    pub(crate) fn check_namespace(&self) -> Result<(), Error> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let length = self.namespace.len();
        if (1..=MAX_NAMESPACE).contains(&length) && self.namespace.bytes().all(allowed) {
            return Ok(());
        }
        Err(Error::Namespace { namespace: self.namespace.clone() })
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("url", &"***")
            .field("namespace", &self.namespace)
            .field("value_version", &self.value_version)
            .field("max_age", &self.max_age)
            .field("negative_age", &self.negative_age)
            .field("timeout", &self.timeout)
            .field("chunk", &self.chunk)
            .field("max_queued", &self.max_queued)
            .finish_non_exhaustive()
    }
}
