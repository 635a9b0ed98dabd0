//! Text attributes of a message in one buffer.
//!
//! A message carries five to ten short attributes. One buffer costs one allocation to build and one reference
//! count to clone, and it is the form in which the embedded bus stores them, so reading a message back
//! allocates nothing per attribute.
//!
//! Layout: for each attribute a key length (u16, little endian), a value length (u32, little endian), the key
//! and the value, both UTF-8.

use bytes::Bytes;
use std::fmt;

const HEADER: usize = 6;

/// An immutable list of text attributes; keys are unique.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Attributes(Bytes);

impl Attributes {
    /// No attributes.
    #[must_use]
    pub const fn new() -> Self {
        Self(Bytes::new())
    }

    /// Takes an encoded buffer after checking it.
    ///
    /// # Errors
    /// When the buffer is cut short or holds text that is not UTF-8.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, InvalidAttributes> {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (key, value, tail) = split_first(rest).ok_or(InvalidAttributes)?;
            if std::str::from_utf8(key).is_err() || std::str::from_utf8(value).is_err() {
                return Err(InvalidAttributes);
            }
            rest = tail;
        }
        Ok(Self(bytes))
    }

    /// The encoded buffer, as [`Attributes::from_bytes`] takes it.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The value of attribute `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut rest = &self.0[..];
        while let Some((k, value, tail)) = split_first(rest) {
            if k == key.as_bytes() {
                return std::str::from_utf8(value).ok();
            }
            rest = tail;
        }
        None
    }

    /// All attributes in the order in which they were set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (key, value, tail) = split_first(rest)?;
            rest = tail;
            Some((std::str::from_utf8(key).ok()?, std::str::from_utf8(value).ok()?))
        })
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of memory they take.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// A builder that starts with these attributes.
    #[must_use]
    pub fn edit(&self) -> AttributesBuilder {
        self.edit_with_room(128)
    }

    /// [`Attributes::edit`] for who knows what will be added: `room` bytes, see [`AttributesBuilder::with_capacity`].
    #[must_use]
    pub fn edit_with_room(&self, room: usize) -> AttributesBuilder {
        let mut builder = AttributesBuilder::with_capacity(self.0.len() + room);
        builder.0.extend_from_slice(&self.0);
        builder
    }

    /// These attributes; of a key that stands there twice the last value counts. Costs one allocation.
    #[must_use]
    pub fn from_pairs(pairs: &[(&str, &str)]) -> Self {
        let room = pairs.iter().map(|(key, value)| AttributesBuilder::room(key, value)).sum();
        let mut builder = AttributesBuilder::with_capacity(room);
        let are_unique = are_unique(pairs);
        for (key, value) in pairs {
            if are_unique {
                builder.append(key, value);
            } else {
                builder.set(key, value);
            }
        }
        builder.build()
    }
}

/// Whether no key stands there twice. Keys too long to be kept whole do not count as unique.
fn are_unique(pairs: &[(&str, &str)]) -> bool {
    pairs.iter().enumerate().all(|(at, (key, _))| {
        key.len() <= usize::from(u16::MAX) && pairs[..at].iter().all(|(other, _)| other != key)
    })
}

fn split_first(buffer: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (header, rest) = buffer.split_at_checked(HEADER)?;
    let key_len = usize::from(u16::from_le_bytes([header[0], header[1]]));
    let value_len = u32::from_le_bytes([header[2], header[3], header[4], header[5]]) as usize;
    let (key, rest) = rest.split_at_checked(key_len)?;
    let (value, rest) = rest.split_at_checked(value_len)?;
    Some((key, value, rest))
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Attributes {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        let mut builder = AttributesBuilder::default();
        for (key, value) in pairs {
            builder.set(key, value);
        }
        builder.build()
    }
}

/// Builds [`Attributes`]. One allocation, if its capacity is exactly what is set; otherwise one or two more.
#[derive(Default, Debug)]
pub struct AttributesBuilder(Vec<u8>);

impl AttributesBuilder {
    /// An empty builder with room for `bytes` bytes; [`AttributesBuilder::room`] tells them.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Bytes that this attribute takes.
    #[must_use]
    pub const fn room(key: &str, value: &str) -> usize {
        HEADER + key.len() + value.len()
    }

    /// Sets `key`, in place of an earlier value. Keys longer than 65,535 bytes are cut at a character boundary
    /// (no protocol we read from allows them).
    pub fn set(&mut self, key: &str, value: &str) -> &mut Self {
        let key = &key[..key.floor_char_boundary(usize::from(u16::MAX))];
        self.remove(key);
        self.append(key, value);
        self
    }

    /// Adds `key`, which is not there yet and fits its length field.
    #[inline]
    fn append(&mut self, key: &str, value: &str) {
        let value = &value[..value.floor_char_boundary(u32::MAX as usize)];
        #[allow(
            clippy::cast_possible_truncation,
            reason = "the caller has cut the key, the line above the value"
        )]
        let lengths = u64::from(key.len() as u16) | u64::from(value.len() as u32) << 16;
        self.0.reserve(Self::room(key, value));
        self.0.extend_from_slice(&lengths.to_le_bytes()[..HEADER]);
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(value.as_bytes());
    }

    /// Removes `key` if it is there.
    pub fn remove(&mut self, key: &str) -> &mut Self {
        if let Some((start, end)) = self.position(key) {
            self.0.drain(start..end);
        }
        self
    }

    fn position(&self, key: &str) -> Option<(usize, usize)> {
        let total = self.0.len();
        let mut rest = &self.0[..];
        while let Some((k, _, tail)) = split_first(rest) {
            let (start, end) = (total - rest.len(), total - tail.len());
            if k == key.as_bytes() {
                return Some((start, end));
            }
            rest = tail;
        }
        None
    }

    /// The finished attributes.
    #[must_use]
    pub fn build(self) -> Attributes {
        Attributes(Bytes::from(self.0))
    }
}

/// A buffer that is not an encoded attribute list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an encoded attribute list")]
pub struct InvalidAttributes;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn attributes_behave_like_a_map_and_survive_their_encoding(
            pairs in proptest::collection::vec(("[a-c]{0,3}", ".{0,20}"), 0..20), removed in "[a-c]{0,3}",
        ) {
            let mut builder = AttributesBuilder::default();
            let mut model = BTreeMap::new();
            for (key, value) in &pairs {
                builder.set(key, value);
                model.insert(key.clone(), value.clone());
            }
            builder.remove(&removed);
            model.remove(&removed);
            let built = Attributes::from_bytes(builder.build().as_bytes().clone()).unwrap();
            let texts: Vec<_> = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let mut at_once = Attributes::from_pairs(&texts).edit();
            at_once.remove(&removed);
            prop_assert_eq!(at_once.build(), built.clone());
            let read: BTreeMap<_, _> = built.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(&read, &model);
            for key in model.keys() {
                prop_assert_eq!(built.get(key), model.get(key).map(String::as_str));
            }
        }

        #[test]
        fn any_bytes_are_either_refused_or_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(attributes) = Attributes::from_bytes(Bytes::from(bytes)) {
                let _ = attributes.iter().count();
            }
        }
    }
}
