//! Names of objects, confined to the archive by construction.

use crate::{BatchKey, Error};
use messagepipeline::MessageId;
use std::fmt;

/// A folder of the archive below which all objects lie; may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// Reads a prefix like `site-a/raw`; slashes at its ends do not count.
    ///
    /// # Errors
    /// When a part of it is empty, begins with a dot, or holds anything but ASCII letters, digits, `-`, `_`, `.`
    /// and `=`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let trimmed = text.trim_matches('/');
        if !trimmed.is_empty() {
            check(trimmed)?;
        }
        Ok(Self(trimmed.to_owned()))
    }
}

/// The prefix as object names begin with it: empty, or with a slash at its end.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)?;
        if self.0.is_empty() { Ok(()) } else { f.write_str("/") }
    }
}

/// The name of one object: `[<prefix>/]<key>/<first id>.jsonl.<gz or zst>`.
///
/// An object is called like the first message in it. A message is archived once, so no two objects of an archive
/// have the same name, and names sort by time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(String);

impl ObjectName {
    /// The name of the object under `key` whose first line is of message `first`.
    #[must_use]
    pub fn new(prefix: &Prefix, key: &BatchKey, first: &MessageId, extension: &str) -> Self {
        Self(format!("{prefix}{key}/{first}.{extension}"))
    }

    /// Reads a name back, as from an index.
    ///
    /// # Errors
    /// When it could lead out of the archive.
    pub fn parse(text: &str) -> Result<Self, Error> {
        check(text)?;
        Ok(Self(text.to_owned()))
    }

    /// The name; folders are separated by `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Another name in the same folder, for when this one is taken by an object that is not the archive's.
    #[cfg(feature = "gcs")]
    pub(crate) fn alternative(&self, number: u32) -> Self {
        match self.0.split_once(".jsonl.") {
            Some((stem, extension)) => Self(format!("{stem}-{number}.jsonl.{extension}")),
            None => Self(format!("{}-{number}", self.0)),
        }
    }

    /// The folder it lies in, with the `/` at its end.
    #[cfg(feature = "gcs")]
    pub(crate) fn folder(&self) -> &str {
        &self.0[..self.0.len() - self.file_name().len()]
    }

    /// The part behind the last `/`.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check(text: &str) -> Result<(), Error> {
    let problem = |detail| Err(Error::InvalidName { name: text.to_owned(), detail });
    // Names in Cloud Storage end there.
    if text.len() > 1_024 {
        return problem("it is longer than 1024 bytes");
    }
    for part in text.split('/') {
        if part.is_empty() || part.starts_with('.') {
            return problem("no part between two slashes may be empty or begin with a dot");
        }
        if part.len() > 255 {
            return problem("no part between two slashes may be longer than 255 bytes");
        }
        if !part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.%~=".contains(&byte)) {
            return problem("use ASCII letters, digits, `-`, `_`, `.` and `=`");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::Timestamp;

    #[test]
    fn a_name_is_prefix_key_and_first_id_and_reads_back() {
        let id: MessageId = "019aa3f0-5f2c-7c3a-9a53-0123456789ab".parse().unwrap();
        let key = BatchKey::new(Timestamp::default(), Some("../x"));
        let name = ObjectName::new(&Prefix::parse("/a/b=1/").unwrap(), &key, &id, "jsonl.gz");
        assert_eq!(name.as_str(), format!("a/b=1/1970/01/01/%2E%2E%2Fx/{id}.jsonl.gz"));
        assert_eq!(ObjectName::parse(name.as_str()).unwrap(), name);
        assert_eq!(name.file_name(), format!("{id}.jsonl.gz"));
        let plain = ObjectName::new(&Prefix::default(), &key, &id, "jsonl.zst");
        assert!(plain.as_str().starts_with("1970/01/01/"));
    }

    #[test]
    fn no_name_or_prefix_leads_out_of_the_archive() {
        for text in ["..", "a/../b", "a//b", ".hidden", "a/.", "a\\b", "a b", "a\0", "é"] {
            assert!(Prefix::parse(text).is_err(), "{text:?}");
            assert!(ObjectName::parse(text).is_err(), "{text:?}");
        }
        assert!(ObjectName::parse("/etc/passwd").is_err());
        assert!(ObjectName::parse("").is_err());
    }
}
