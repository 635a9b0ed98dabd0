//! What the types of the section cannot say: sources and layers that cannot work.

use crate::config::{EnrichmentConfig, RedisConfig, SourceConfig, SourceKind};

/// A mistake: the path below `enrichment`, and what would be right.
type Mistake = (String, String);

/// Longest namespace in Redis, in bytes.
const MAX_NAMESPACE: usize = 64;

pub(crate) fn check(config: &EnrichmentConfig) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    source(&config.source, &mut mistakes);
    if let Some(redis) = &config.redis {
        self::redis(redis, &mut mistakes);
    }
    mistakes
}

/// What is wrong with the files that the section names.
#[must_use]
pub fn file_mistakes(config: &EnrichmentConfig) -> Vec<(String, String)> {
    let Some(path) = config.redis.as_ref().and_then(|redis| redis.ca.as_ref()) else { return Vec::new() };
    let what = match std::fs::read_to_string(path) {
        Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => return Vec::new(),
        Ok(_) => "holds no certificate".to_owned(),
        Err(error) => format!("cannot be read ({error})"),
    };
    let right = "name the PEM file with the authority that signed the certificate of Redis";
    vec![("redis.ca".to_owned(), format!("{} {what}: {right}", path.display()))]
}

fn source(source: &SourceConfig, mistakes: &mut Vec<Mistake>) {
    let mut refuse = |key: &str, what: String| mistakes.push((format!("source.{key}"), what));
    if source.kind == SourceKind::Embedded {
        if source.listen {
            let what = "the embedded registry tells its changes by itself; leave `listen` out";
            refuse("listen", what.to_owned());
        }
        return;
    }
    let parts: Vec<&str> = source.collection.split('/').collect();
    if parts.len().is_multiple_of(2) || parts.iter().any(|part| part.is_empty()) {
        let what = format!(
            "`{}` is no collection; write `devices`, or `sites/a/devices` for one below a document",
            source.collection
        );
        refuse("collection", what);
    }
    if source.database.is_empty() || source.database.contains('/') {
        refuse("database", format!("`{}` is no database; write `(default)` or its name", source.database));
    }
}

fn redis(redis: &RedisConfig, mistakes: &mut Vec<Mistake>) {
    let mut refuse = |key: &str, what: &str| mistakes.push((format!("redis.{key}"), what.to_owned()));
    let tls = redis.url.starts_with("rediss://");
    let rest = redis.url.strip_prefix("redis://").or_else(|| redis.url.strip_prefix("rediss://"));
    match rest {
        Some(rest) if rest.contains('@') => {
            refuse(
                "url",
                "user and password do not belong in the URL; write `user` and `password` beside it",
            );
        }
        Some(rest) if !rest.is_empty() && !rest.starts_with([':', '/']) => {}
        _ => {
            refuse("url", "is no address of a Redis; write redis://HOST:PORT, or rediss://HOST:PORT for TLS")
        }
    }
    if redis.ca.is_some() && !tls {
        refuse("ca", "is of use with TLS only; write the URL with rediss://");
    }
    if redis.user.is_some() && redis.password.is_none() {
        refuse("user", "needs a `password` beside it");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let length = redis.namespace.len();
    if !(1..=MAX_NAMESPACE).contains(&length) || !redis.namespace.bytes().all(allowed) {
        refuse("namespace", "cannot begin a key; write 1 to 64 letters, digits, `.`, `_` or `-`");
    }
    if redis.ttl.is_zero() {
        refuse("ttl", "keeps nothing; leave `redis` out for that, or write a time such as 2h");
    }
    if redis.timeout.is_zero() {
        refuse("timeout", "leaves no time for an answer; write a time such as 300ms");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

    use super::*;
    use crate::Plan;

    /// The places of all mistakes in a configuration written as JSON.
    fn places(text: &str) -> Vec<String> {
        let config: EnrichmentConfig = serde_json::from_str(text).unwrap();
        let mistakes = Plan::new(&config).err().unwrap_or_default();
        assert!(mistakes.iter().all(|(_, what)| !what.contains("hidden")), "{mistakes:?}");
        mistakes.into_iter().map(|(place, _)| place).collect()
    }

    #[test]
    fn sources_and_layers_that_cannot_work_are_named_with_their_place() {
        for (text, expected) in [
            (r#"{}"#, vec![]),
            (
                r#"{"source": {"kind": "firestore", "listen": true}, "redis": {"url": "redis://h:1/2"}}"#,
                vec![],
            ),
            (r#"{"redis": {"url": "rediss://h", "ca": "c", "user": "u", "password": "p"}}"#, vec![]),
            (r#"{"source": {"listen": true}}"#, vec!["source.listen"]),
            (
                r#"{"source": {"kind": "firestore", "collection": "a/b", "database": ""}}"#,
                vec!["source.collection", "source.database"],
            ),
            (r#"{"redis": {"url": "redis://u:hidden@h"}}"#, vec!["redis.url"]),
            (r#"{"redis": {"url": "h:6379"}}"#, vec!["redis.url"]),
            (r#"{"redis": {"url": "redis://"}}"#, vec!["redis.url"]),
            (r#"{"redis": {"url": "redis://h", "ca": "c", "user": "u"}}"#, vec!["redis.ca", "redis.user"]),
            (
                r#"{"redis": {"url": "redis://h", "namespace": "a:b", "ttl": "0s", "timeout": "0s"}}"#,
                vec!["redis.namespace", "redis.ttl", "redis.timeout"],
            ),
        ] {
            assert_eq!(places(text), expected, "{text}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_and_credentials_in_a_url_are_not_printed() {
        for text in [r#"{"source": {"project": "p"}}"#, r#"{"redis": {"url": "redis://h", "pasword": "p"}}"#]
        {
            assert!(serde_json::from_str::<EnrichmentConfig>(text).is_err(), "{text}");
        }
        let text = r#"{"redis": {"url": "redis://u:hidden@h", "password": "hidden"}}"#;
        let config: EnrichmentConfig = serde_json::from_str(text).unwrap();
        let printed = serde_json::to_string(&config).unwrap();
        assert!(printed.contains("redis://***@h") && !printed.contains("hidden"), "{printed}");
    }
}
