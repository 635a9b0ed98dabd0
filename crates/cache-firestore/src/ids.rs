//! Which ids a document can have, and where it lies then.
//!
//! <https://cloud.google.com/firestore/quotas#collections_documents_and_fields>: valid UTF-8, at most 1,500 bytes, no
//! slash, not `.` or `..`, not `__…__`.

use crate::Error;

/// Longest id, in bytes.
const LONGEST: usize = 1_500;
/// Longest name of a document, in bytes, counted from the database on.
const LONGEST_NAME: usize = 6 * 1_024;

/// Whether a document can have this id. For one that cannot, nobody needs to be asked.
pub(crate) fn is_possible(id: &str) -> bool {
    let reserved = id.len() >= 4 && id.starts_with("__") && id.ends_with("__");
    !(id.is_empty() || id.len() > LONGEST || id.contains('/') || id == "." || id == ".." || reserved)
}

/// Where the documents of one collection lie.
#[derive(Clone, Debug)]
pub(crate) struct Collection {
    /// `projects/PROJECT/databases/DATABASE`.
    pub(crate) database: String,
    /// The collection's parent: the database's documents, or one of them.
    pub(crate) parent: String,
    /// The last part of its path.
    pub(crate) id: String,
    /// What the names of its documents begin with.
    prefix: String,
}

impl Collection {
    /// # Errors
    /// When one of the three cannot be a part of a name.
    pub(crate) fn new(project: &str, database: &str, path: &str) -> Result<Self, Error> {
        let part = |setting, text: &str| {
            let usable = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
            let problem =
                || format!("`{text}` is not the name of one; write it as the Google Cloud console shows it");
            if usable { Ok(()) } else { Err(Error::Setting { setting, problem: problem() }) }
        };
        part("project", project)?;
        part("database", database)?;
        let parts: Vec<&str> = path.split('/').collect();
        if parts.len().is_multiple_of(2) || !parts.iter().all(|part| is_possible(part)) {
            let problem = format!(
                "`{path}` is not the path of one; write `devices`, or `sites/a/devices` below a document"
            );
            return Err(Error::Setting { setting: "collection", problem });
        }
        let database = format!("projects/{project}/databases/{database}");
        let prefix = format!("{database}/documents/{path}/");
        let id = parts.last().copied().unwrap_or_default().to_owned();
        let parent = prefix[..prefix.len() - id.len() - 2].to_owned();
        Ok(Self { database, parent, id, prefix })
    }

    /// The name of the document `id`; `None` for an id that no document can have.
    pub(crate) fn name(&self, id: &str) -> Option<String> {
        let fits = self.prefix.len() - self.database.len() + id.len() <= LONGEST_NAME;
        (fits && is_possible(id)).then(|| format!("{}{id}", self.prefix))
    }

    /// The id in `name`; `None` for a document of another collection.
    pub(crate) fn id_of<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(&self.prefix).filter(|id| !id.contains('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_that_firestore_does_not_allow_are_known_without_asking() {
        let long = "x".repeat(1_501);
        for id in ["", ".", "..", "a/b", "/", "____", "__x__", "__id7__", &long] {
            assert!(!is_possible(id), "{id:?}");
        }
        for id in ["a", "...", "__", "___", "__x", "x__", "ä", "a b", "{}", "\0", "\n", &long[1..]] {
            assert!(is_possible(id), "{id:?}");
        }
    }

    #[test]
    fn a_collection_below_a_document_has_that_document_as_its_parent() {
        let below = Collection::new("p", "(default)", "sites/a/devices").unwrap();
        assert_eq!(below.parent, "projects/p/databases/(default)/documents/sites/a");
        assert_eq!(below.id, "devices");
        let plain = Collection::new("p", "d", "devices").unwrap();
        assert_eq!(plain.parent, "projects/p/databases/d/documents");
        assert_eq!(plain.id_of("projects/p/databases/d/documents/devices/x/y/z"), None);
        for (project, database, path) in [
            ("", "d", "c"),
            ("p", "", "c"),
            ("p/q", "d", "c"),
            ("p", "d", ""),
            ("p", "d", "a/b"),
            ("p", "d", "a//c"),
        ] {
            assert!(Collection::new(project, database, path).is_err(), "{project} {database} {path}");
        }
    }

    proptest! {
        #[test]
        fn an_id_comes_back_out_of_its_name(id in "\\PC{0,20}") {
            let collection = Collection::new("p", "(default)", "devices").unwrap();
            match collection.name(&id) {
                Some(name) => prop_assert_eq!(collection.id_of(&name), Some(&*id)),
                None => prop_assert!(!is_possible(&id)),
            }
        }
    }
}
