//! The embedded archive: the suite that every archive passes, and its life over crashes and full folders.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use embedded::archive::{Archive, ArchiveReader};
use icestore::{ArchiveObject, ObjectStore, PutOutcome};
use messagepipeline::{Digest, ErrorClass, Health, Message, MessageId};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use testkit::sink_suite::{self as suite, ArchiveUnderTest};

struct Folder {
    root: tempfile::TempDir,
    health: Health,
    open: Option<Arc<dyn ObjectStore>>,
}

impl Folder {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), health: Health::new(), open: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn try_open(&self) -> Result<Archive, embedded::Error> {
        let health = Some(self.health.stage("archive"));
        Archive::open(&self.path("archive.db"), &self.path("archive"), &self.path("archive-tmp"), health)
    }

    fn reader(&self) -> ArchiveReader {
        ArchiveReader::open(&self.path("archive.db"), &self.path("archive"), &self.path("archive-tmp"))
            .unwrap()
    }

    async fn close(&mut self) {
        if let Some(open) = self.open.take() {
            open.close().await.unwrap();
        }
    }

    /// Archives `messages` as one object and closes the archive.
    async fn archive(&mut self, messages: &[Message]) -> ArchiveObject {
        let object = suite::object(messages);
        assert_eq!(self.open().await.put(object.clone()).await.unwrap(), PutOutcome::Stored);
        self.close().await;
        object
    }

    /// Takes the index back to the moment after the commit that listed the object.
    fn unconfirm(&self, object: &ArchiveObject, temporary: &str) {
        let index = rusqlite::Connection::open(self.path("archive.db")).unwrap();
        let changed = index
            .execute("UPDATE objects SET temporary = ?1 WHERE name = ?2", [temporary, object.name.as_str()])
            .unwrap();
        assert_eq!(changed, 1);
    }

    /// Objects that the index still calls pending.
    fn unconfirmed(&self) -> i64 {
        let index = rusqlite::Connection::open(self.path("archive.db")).unwrap();
        let sql = "SELECT count(*) FROM objects WHERE temporary IS NOT NULL";
        index.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn place(&self, object: &ArchiveObject) -> PathBuf {
        self.path("archive").join(object.name.as_str())
    }

    fn temporary_files(&self) -> usize {
        fs::read_dir(self.path("archive-tmp")).unwrap().count()
    }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), files);
        } else {
            files.push(entry.path());
        }
    }
}

impl ArchiveUnderTest for Folder {
    async fn open(&mut self) -> Arc<dyn ObjectStore> {
        self.close().await;
        let archive: Arc<dyn ObjectStore> = Arc::new(self.try_open().unwrap());
        archive.open().await.unwrap();
        self.open = Some(Arc::clone(&archive));
        archive
    }

    async fn objects(&mut self) -> Vec<(String, Vec<u8>)> {
        let root = self.path("archive");
        let mut files = Vec::new();
        walk(&root, &mut files);
        files.sort();
        let name = |file: &PathBuf| file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        files.iter().map(|file| (name(file), fs::read(file).unwrap())).collect()
    }
}

fn ids(messages: &[Message]) -> Vec<MessageId> {
    messages.iter().map(|message| message.id).collect()
}

#[tokio::test]
async fn an_object_is_seen_as_it_was_put() {
    suite::an_object_is_seen_as_it_was_put(&mut Folder::new()).await;
}

#[tokio::test]
async fn an_object_with_a_known_id_is_not_stored() {
    let mut folder = Folder::new();
    suite::an_object_with_a_known_id_is_not_stored(&mut folder).await;
    assert_eq!(folder.temporary_files(), 0);
}

#[tokio::test]
async fn a_message_is_one_line_over_redeliveries() {
    let mut folder = Folder::new();
    suite::a_message_is_one_line_over_redeliveries(&mut folder).await;
    assert_eq!(folder.reader().verify().unwrap().problems, [""; 0]);
}

#[tokio::test]
async fn a_conflicting_line_is_refused_alone() {
    suite::a_conflicting_line_is_refused_alone(&mut Folder::new()).await;
}

#[tokio::test]
async fn archived_payloads_come_back_byte_for_byte() {
    suite::archived_payloads_come_back_byte_for_byte(&mut Folder::new()).await;
}

#[tokio::test]
async fn a_death_before_the_commit_leaves_nothing_and_the_messages_can_come_again() {
    let mut folder = Folder::new();
    folder.open().await;
    folder.close().await;
    let messages = suite::messages(3);
    let object = suite::object(&messages);
    // Half of the object, under the name that the next try would take, and another's rubbish.
    fs::write(folder.path("archive-tmp").join(format!("{}.0", object.name.file_name())), &object.bytes[..9])
        .unwrap();
    fs::write(folder.path("archive-tmp").join("rubbish"), "x").unwrap();
    let store = folder.open().await;
    assert_eq!(folder.temporary_files(), 0);
    assert_eq!(store.known(ids(&messages)).await.unwrap(), [None; 3]);
    assert_eq!(store.put(object).await.unwrap(), PutOutcome::Stored);
    assert_eq!(suite::lines(&mut folder).await.len(), 3);
}

#[tokio::test]
async fn a_death_between_commit_and_rename_is_finished_at_the_next_start() {
    let mut folder = Folder::new();
    let messages = suite::messages(3);
    let object = folder.archive(&messages).await;
    folder.unconfirm(&object, "waiting.7");
    fs::rename(folder.place(&object), folder.path("archive-tmp").join("waiting.7")).unwrap();
    fs::remove_dir_all(folder.path("archive/2023")).unwrap();
    // The books see the object where it is.
    assert_eq!(folder.reader().summary().unwrap().pending, 1);
    assert_eq!(folder.reader().verify().unwrap().problems, [""; 0]);
    let store = folder.open().await;
    assert_eq!(fs::read(folder.place(&object)).unwrap(), object.bytes);
    assert!(store.known(ids(&messages)).await.unwrap().iter().all(Option::is_some));
    assert_eq!((folder.reader().summary().unwrap().pending, folder.temporary_files()), (0, 0));
}

#[tokio::test]
async fn a_death_between_rename_and_confirmation_is_confirmed_at_the_next_start() {
    let mut folder = Folder::new();
    let object = folder.archive(&suite::messages(3)).await;
    folder.unconfirm(&object, "gone.7");
    assert_eq!(folder.unconfirmed(), 1);
    folder.open().await;
    assert_eq!(fs::read(folder.place(&object)).unwrap(), object.bytes);
    assert_eq!(folder.unconfirmed(), 0);
}

#[tokio::test]
async fn a_listed_object_that_is_nowhere_stays_listed_and_does_not_keep_the_others_from_their_places() {
    let mut folder = Folder::new();
    let messages = suite::messages(6);
    let lost = folder.archive(&messages[..3]).await;
    let kept = folder.archive(&messages[3..]).await;
    folder.unconfirm(&lost, "gone.7");
    folder.unconfirm(&kept, "kept.8");
    fs::remove_file(folder.place(&lost)).unwrap();
    fs::rename(folder.place(&kept), folder.path("archive-tmp").join("kept.8")).unwrap();
    let store = folder.open().await;
    assert!(store.known(ids(&messages)).await.unwrap().iter().all(Option::is_some));
    assert_eq!(fs::read(folder.place(&kept)).unwrap(), kept.bytes);
    assert!(!folder.place(&lost).exists());
    assert_eq!((folder.unconfirmed(), folder.temporary_files()), (0, 0));
}

// Under the paused clock the pauses between tries take no time.
#[tokio::test(start_paused = true)]
async fn an_object_whose_place_is_blocked_is_archived_all_the_same_and_moved_when_it_can_be() {
    let mut folder = Folder::new();
    let store = folder.open().await;
    fs::write(folder.path("archive/2023"), "in the way").unwrap();
    let messages = suite::messages(3);
    let object = suite::object(&messages);
    assert_eq!(store.put(object.clone()).await.unwrap(), PutOutcome::Stored);
    assert!(!folder.health.is_ready());
    assert!(store.known(ids(&messages)).await.unwrap().iter().all(Option::is_some));
    fs::remove_file(folder.path("archive/2023")).unwrap();
    while !folder.health.is_ready() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(fs::read(folder.place(&object)).unwrap(), object.bytes);
}

#[tokio::test]
async fn closing_with_a_blocked_object_says_so_and_the_next_start_moves_it() {
    let mut folder = Folder::new();
    let store = folder.open().await;
    fs::write(folder.path("archive/2023"), "in the way").unwrap();
    let object = suite::object(&suite::messages(3));
    assert_eq!(store.put(object.clone()).await.unwrap(), PutOutcome::Stored);
    let error = folder.open.take().unwrap().close().await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Configuration);
    assert!(folder.try_open().is_err());
    fs::remove_file(folder.path("archive/2023")).unwrap();
    folder.open().await;
    assert_eq!(fs::read(folder.place(&object)).unwrap(), object.bytes);
}

/// The archive tries the name of the object with a number that counts its tries.
#[tokio::test]
async fn an_object_whose_file_cannot_be_written_is_not_listed_and_can_come_again() {
    let mut folder = Folder::new();
    let messages = suite::messages(3);
    let object = suite::object(&messages);
    let store = folder.open().await;
    fs::create_dir(folder.path("archive-tmp").join(format!("{}.0", object.name.file_name()))).unwrap();
    store.put(object.clone()).await.unwrap_err();
    assert_eq!(store.known(ids(&messages)).await.unwrap(), [None; 3]);
    assert_eq!(store.put(object).await.unwrap(), PutOutcome::Stored);
    assert_eq!(suite::lines(&mut folder).await.len(), 3);
}

#[tokio::test]
async fn nobodys_file_is_overwritten() {
    let mut folder = Folder::new();
    let store = folder.open().await;
    let object = suite::object(&suite::messages(1));
    fs::create_dir_all(folder.place(&object).parent().unwrap()).unwrap();
    fs::write(folder.place(&object), "theirs").unwrap();
    assert_eq!(store.put(object.clone()).await.unwrap(), PutOutcome::Stored);
    assert_eq!(fs::read(folder.place(&object)).unwrap(), b"theirs");
    assert!(!folder.health.is_ready());
}

#[tokio::test]
async fn no_link_leads_out_of_the_archive() {
    let mut folder = Folder::new();
    let store = folder.open().await;
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), folder.path("archive/2023")).unwrap();
    assert_eq!(store.put(suite::object(&suite::messages(1))).await.unwrap(), PutOutcome::Stored);
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert!(!folder.health.is_ready());
}

#[tokio::test]
async fn the_reader_gives_ids_in_order_and_verifies_objects_against_the_index() {
    let mut folder = Folder::new();
    let messages = suite::messages(12_000);
    folder.archive(&messages[5_000..]).await;
    let damaged = folder.archive(&messages[..5_000]).await;
    let reader = folder.reader();
    assert_eq!(reader.damaged().unwrap(), []);
    assert_eq!(reader.ids(&[]).collect::<Result<Vec<_>, _>>().unwrap(), ids(&messages));
    let digest: Digest = ids(&messages).iter().collect();
    let summary = reader.summary().unwrap();
    assert_eq!((summary.objects, summary.pending, summary.digest), (2, 0, digest));
    let verification = reader.verify().unwrap();
    assert_eq!((verification.objects, verification.digest), (2, digest));
    assert_eq!(verification.problems, [""; 0]);
    let other = suite::object(&messages[..4_999]);
    for bytes in [&damaged.bytes[..1_000], &other.bytes[..], b""] {
        fs::write(folder.place(&damaged), bytes).unwrap();
        let problems = reader.verify().unwrap().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains(damaged.name.as_str()), "{problems:?}");
    }
    // The cheap look sees what has another size, and leaves its ids out.
    let found = reader.damaged().unwrap();
    assert_eq!(found.iter().map(|object| &*object.name).collect::<Vec<_>>(), [damaged.name.as_str()]);
    let left = reader.ids(&found).collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(left, ids(&messages[5_000..]));
}
