//! Reading an archive in a folder, such as that of the data folder or a copy of it.

use crate::{Error, NameRange, ObjectName, ObjectReader, Page, StoredObject};
use futures_util::future::BoxFuture;
use messagepipeline::{Bytes, ErrorClass, StageError};
use std::io;
use std::path::{Path, PathBuf};

/// Objects on a page.
const PAGE: usize = 1_000;

/// Reads the objects below a folder. What does not end like an object, hidden files and links are passed over.
#[derive(Clone, Debug)]
pub struct FolderReader {
    folder: PathBuf,
}

impl FolderReader {
    /// Reads the archive in `folder`. Opens nothing yet.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }
}

impl ObjectReader for FolderReader {
    fn list(&self, range: &NameRange, page: Option<String>) -> BoxFuture<'_, Result<Page, StageError>> {
        let (folder, range) = (self.folder.clone(), range.clone());
        Box::pin(async move {
            let place = folder.display().to_string();
            let after = page.unwrap_or_default();
            let walked = blocking(move || {
                let mut walk = Walk { range: &range, after: &after, found: Vec::new() };
                walk.folder(&folder, "").map(|()| walk.found)
            });
            let mut objects = walked.await.map_err(|error| failed("listing", place, &error))?;
            let more = objects.len() > PAGE;
            objects.truncate(PAGE);
            let next = objects.last().filter(|_| more).map(|object| object.name.clone());
            Ok(Page { objects, next })
        })
    }

    fn read(&self, name: &str) -> BoxFuture<'_, Result<Bytes, StageError>> {
        let parsed = ObjectName::parse(name);
        Box::pin(async move {
            let path = self.folder.join(parsed?.as_str());
            let place = path.display().to_string();
            let bytes = blocking(move || std::fs::read(path)).await;
            Ok(bytes.map_err(|error| failed("reading", place, &error))?.into())
        })
    }

    fn place(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn failed(action: &'static str, place: String, error: &io::Error) -> Error {
    Error::Store {
        action,
        place,
        reason: "archive-folder",
        class: ErrorClass::Configuration,
        detail: error.to_string(),
    }
}

/// One page of a walk in the order of names.
struct Walk<'a> {
    range: &'a NameRange,
    /// The page begins behind this name.
    after: &'a str,
    found: Vec<StoredObject>,
}

impl Walk<'_> {
    /// Goes through `folder`, whose names begin with `above`, until one object more than a page is found.
    fn folder(&mut self, folder: &Path, above: &str) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // A folder stands where its names do: with the separator behind it.
            match (kind.is_dir(), kind.is_file()) {
                _ if name.starts_with('.') => {}
                (true, _) => entries.push(format!("{above}{name}/")),
                (_, true) if is_object(&name) => entries.push(format!("{above}{name}")),
                _ => {}
            }
        }
        entries.sort_unstable();
        for name in entries {
            if self.found.len() > PAGE {
                return Ok(());
            }
            let below = &name[above.len()..];
            if name.ends_with('/') {
                if self.may_hold(&name) {
                    self.folder(&folder.join(below), &name)?;
                }
            } else if self.range.holds(&name) && name.as_str() > self.after {
                let bytes = folder.join(below).metadata()?.len();
                self.found.push(StoredObject { name, bytes, created: None, contents: None });
            }
        }
        Ok(())
    }

    /// Whether a name that begins with `begin` can be wanted.
    fn may_hold(&self, begin: &str) -> bool {
        let NameRange { prefix, from, until } = self.range;
        let behind = |bound: &str| begin >= bound || bound.starts_with(begin);
        let fits = prefix.starts_with(begin) || begin.starts_with(prefix.as_str());
        fits && behind(from) && behind(self.after) && (until.is_empty() || begin < until.as_str())
    }
}

fn is_object(name: &str) -> bool {
    name.ends_with(".jsonl.gz") || name.ends_with(".jsonl.zst")
}
