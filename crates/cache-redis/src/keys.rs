//! The keys under which entries lie in Redis.
//!
//! A device's id may hold any bytes. It stands last and as it is, behind a prefix in which a colon ends every part, so
//! two ids never share a key and no id reaches another namespace, version or generation.

use std::fmt::Write;

/// Where the current generation of a namespace and version stands.
pub(crate) fn generation(namespace: &str, version: u32) -> String {
    format!("{namespace}:v{version}:generation")
}

/// What all entries of one generation begin with. A generation is decimal digits, so it is never the word `generation`.
pub(crate) fn entries(namespace: &str, version: u32, generation: u64) -> String {
    format!("{namespace}:v{version}:{generation}:")
}

/// What all presence keys begin with.
pub(crate) fn presence(namespace: &str) -> String {
    format!("{namespace}:presence:")
}

/// Writes keys with one prefix into one buffer.
pub(crate) struct KeyBuffer {
    text: String,
    prefix: usize,
}

impl KeyBuffer {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { text: prefix.to_owned(), prefix: prefix.len() }
    }

    pub(crate) fn of(&mut self, key: &str) -> &str {
        self.text.truncate(self.prefix);
        // Writing to a string cannot fail.
        let _ = self.text.write_str(key);
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(namespace: &str, version: u32, at: u64, id: &str) -> String {
        KeyBuffer::new(&entries(namespace, version, at)).of(id).to_owned()
    }

    proptest! {
        #[test]
        fn different_ids_namespaces_versions_and_generations_never_share_a_key(
            one in ("[a-z.-]{1,3}", 0u32..3, 0u64..3, "[a-z0-9:v{}\\n]{0,12}"),
            other in ("[a-z.-]{1,3}", 0u32..3, 0u64..3, "[a-z0-9:v{}\\n]{0,12}"),
        ) {
            let (a, b) = (key(&one.0, one.1, one.2, &one.3), key(&other.0, other.1, other.2, &other.3));
            prop_assert_eq!(one == other, a == b);
            prop_assert_ne!(&a, &generation(&other.0, other.1));
            prop_assert_ne!(a, KeyBuffer::new(&presence(&other.0)).of(&other.3).to_owned());
        }
    }
}
