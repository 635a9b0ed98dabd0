//! What the types of the section cannot say: names and times that cannot work.

use crate::config::{ArchiveConfig, ArchiveKind, CloudStorageConfig};

/// A mistake: the path below `icestore`, and what would be right.
type Mistake = (String, String);

pub(crate) fn check(config: &ArchiveConfig) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    if config.batch.age.is_zero() {
        let what = "must be more than 0; every message would be an object";
        mistakes.push(("batch.age".to_owned(), what.to_owned()));
    }
    if config.kind == ArchiveKind::CloudStorage {
        cloud_storage(&config.google, &mut mistakes);
    }
    mistakes
}

fn cloud_storage(google: &CloudStorageConfig, mistakes: &mut Vec<Mistake>) {
    let mut refuse = |key: &str, what: String| mistakes.push((format!("google.{key}"), what));
    if let Some(what) = bucket_mistake(&google.bucket) {
        refuse("bucket", what);
    }
    if google.timeout.is_zero() {
        refuse("timeout", "leaves no time for an upload; write a time such as 1m".to_owned());
    }
}

/// Why no bucket can be called `name`, if so: <https://cloud.google.com/storage/docs/buckets#naming>.
fn bucket_mistake(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("is missing: name the bucket".to_owned());
    }
    if let Some(bare) = name.strip_prefix("gs://") {
        let bare = bare.split('/').next().unwrap_or_default();
        return Some(format!(
            "`{name}` is a URL: write the bucket's name alone, `{bare}`, and folders in prefix"
        ));
    }
    let wrong = |what: &str| Some(format!("`{name}` cannot be a bucket's name: {what}"));
    // With dots a name may be longer, but none of its parts.
    let longest = if name.contains('.') { 222 } else { 63 };
    if !(3..=longest).contains(&name.len()) || name.split('.').any(|part| part.len() > 63) {
        return wrong("it has 3 to 63 characters");
    }
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !name.chars().all(|c| is_plain(c) || "-_.".contains(c)) {
        return wrong("it has lowercase letters, digits, `-`, `_` and `.` only");
    }
    if !name.starts_with(is_plain) || !name.ends_with(is_plain) {
        return wrong("it begins and ends with a letter or a digit");
    }
    if name.starts_with("goog") {
        return wrong("those that begin with `goog` are Google's");
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

    use super::*;

    #[test]
    fn a_bucket_that_cannot_be_is_refused_with_what_would_be_right() {
        for good in ["abc", "my-archive_1", "archive.example.com", "0ab"] {
            assert_eq!(bucket_mistake(good), None);
        }
        for (bad, word) in [
            ("", "is missing"),
            ("gs://my-archive/raw", "`my-archive`"),
            ("ab", "3 to 63"),
            ("My-Archive", "lowercase"),
            ("-abc", "begins and ends"),
            ("goog-archive", "Google's"),
        ] {
            let what = bucket_mistake(bad).unwrap();
            assert!(what.contains(word), "{bad}: {what}");
        }
        assert!(bucket_mistake(&"a".repeat(64)).is_some());
    }
}
