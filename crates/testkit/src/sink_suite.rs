//! What every warehouse table and every archive must show, and the doubles that show it first.
//!
//! One function per promise. Each wants a table or an archive of its own, empty at the beginning.

use bqstore::{
    ColumnConfig, ColumnType, Columns, Row, RowInserter, RowMapper, RowOutcome, Source, SourceConfig, Value,
    default_columns,
};
use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use icestore::{
    ArchiveObject, ArchiveProcessor, ArchiveSettings, ArchivedMessage, BatchKey, ObjectStore, PutOutcome,
    decode_line, decompress, payload_fingerprint,
};
use messagepipeline::{
    BatchOutcome, BatchProcessor, ErrorClass, ID_CONFLICT, IdGenerator, Item, Message, MessageId, StageError,
    SystemClock, Timestamp, names,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A table in memory. It counts its calls and fails on demand.
#[derive(Debug)]
pub struct MemoryTable {
    payload: Option<usize>,
    rows: Mutex<BTreeMap<MessageId, Row>>,
    calls: AtomicUsize,
    failure: Mutex<Option<ErrorClass>>,
}

impl MemoryTable {
    /// An empty table.
    #[must_use]
    pub fn new(columns: &Columns) -> Self {
        Self {
            payload: columns.iter().position(|column| column.sources == [Source::Payload]),
            rows: Mutex::default(),
            calls: AtomicUsize::new(0),
            failure: Mutex::default(),
        }
    }

    /// How many inserts were asked for.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// From now on every insert fails as a whole with an error of `class`; `None` ends that.
    pub fn fail(&self, class: Option<ErrorClass>) {
        *self.failure.lock() = class;
    }

    /// The rows by id.
    #[must_use]
    pub fn rows(&self) -> BTreeMap<MessageId, Row> {
        self.rows.lock().clone()
    }

    /// Whether the row of `id` is there.
    #[must_use]
    pub fn holds(&self, id: MessageId) -> bool {
        self.rows.lock().contains_key(&id)
    }

    /// Stores one row, at once.
    pub fn store(&self, row: Row) -> RowOutcome {
        let mut rows = self.rows.lock();
        let payload = |row: &Row| self.payload.and_then(|at| row.values.get(at).cloned());
        match rows.get(&row.id) {
            None => {
                rows.insert(row.id, row);
                RowOutcome::Stored
            }
            Some(stored) if payload(stored) == payload(&row) => RowOutcome::AlreadyStored,
            Some(_) => RowOutcome::Refused(StageError::permanent(ID_CONFLICT, "stored with another payload")),
        }
    }
}

impl RowInserter for MemoryTable {
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(ready(Ok(())))
    }

    fn insert(&self, rows: Vec<Row>) -> BoxFuture<'_, Result<Vec<RowOutcome>, StageError>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let failure =
            self.failure.lock().map(|class| StageError::new(class, "table-down", "the table is down"));
        Box::pin(ready(match failure {
            Some(error) => Err(error),
            None => Ok(rows.into_iter().map(|row| self.store(row)).collect()),
        }))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(ready(Ok(())))
    }
}

/// An archive in memory. It fails on demand.
#[derive(Debug, Default)]
pub struct MemoryArchive {
    state: Mutex<(BTreeMap<String, Bytes>, BTreeMap<MessageId, u64>)>,
    failure: Mutex<Option<ErrorClass>>,
}

impl MemoryArchive {
    /// From now on every put fails with an error of `class`; `None` ends that.
    pub fn fail(&self, class: Option<ErrorClass>) {
        *self.failure.lock() = class;
    }

    /// The objects by name.
    #[must_use]
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        self.state.lock().0.clone()
    }

    fn store(&self, object: ArchiveObject) -> PutOutcome {
        let mut state = self.state.lock();
        if object.lines.iter().any(|line| state.1.contains_key(&line.id)) {
            return PutOutcome::Overlaps;
        }
        state.1.extend(object.lines.iter().map(|line| (line.id, line.fingerprint)));
        state.0.insert(object.name.to_string(), object.bytes);
        PutOutcome::Stored
    }
}

impl ObjectStore for MemoryArchive {
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(ready(Ok(())))
    }

    fn known(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Option<u64>>, StageError>> {
        let state = self.state.lock();
        Box::pin(ready(Ok(ids.iter().map(|id| state.1.get(id).copied()).collect())))
    }

    fn put(&self, object: ArchiveObject) -> BoxFuture<'_, Result<PutOutcome, StageError>> {
        let failure =
            self.failure.lock().map(|class| StageError::new(class, "archive-down", "the archive is down"));
        Box::pin(async move {
            // As with any real store, others run meanwhile.
            tokio::task::yield_now().await;
            match failure {
                Some(error) => Err(error),
                None => Ok(self.store(object)),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(ready(Ok(())))
    }
}

/// A table that a test opens, closes and looks into.
pub trait TableUnderTest: Send {
    /// Opens the table for `columns`; again and again the same one. What was opened before is closed.
    fn open(&mut self, columns: &Columns) -> impl Future<Output = Arc<dyn RowInserter>> + Send;

    /// Message id and payload of every row, by id. A row that is there twice is in it twice.
    fn rows(&mut self) -> impl Future<Output = Vec<(MessageId, Vec<u8>)>> + Send;
}

/// An archive that a test opens, closes and looks into.
pub trait ArchiveUnderTest: Send {
    /// Opens the archive; again and again the same one. What was opened before is closed.
    fn open(&mut self) -> impl Future<Output = Arc<dyn ObjectStore>> + Send;

    /// Name and bytes of every object that a reader of the archive sees.
    fn objects(&mut self) -> impl Future<Output = Vec<(String, Vec<u8>)>> + Send;
}

/// A message of device `d` with `payload`.
#[must_use]
pub fn message(id: MessageId, payload: impl Into<Bytes>) -> Message {
    let mut message = Message::new(id, payload, Timestamp::from_micros(1_672_867_882_661_042));
    message.attributes = [(names::DEVICE_ID, "d"), (names::TOPIC, "devices/d/up")].into_iter().collect();
    message
}

/// Messages with new ids and the payloads `{"value":0}`, `{"value":1}`, …
#[must_use]
pub fn messages(count: usize) -> Vec<Message> {
    let ids = IdGenerator::default();
    (0..count).map(|n| message(ids.next_id(), format!("{{\"value\":{n}}}"))).collect()
}

fn by_id<'m>(messages: impl IntoIterator<Item = &'m Message>) -> Vec<(MessageId, Vec<u8>)> {
    let mut pairs: Vec<_> = messages.into_iter().map(|m| (m.id, m.payload.to_vec())).collect();
    pairs.sort();
    pairs
}

async fn insert<'m>(
    table: &Arc<dyn RowInserter>,
    columns: &Columns,
    messages: impl IntoIterator<Item = &'m Message>,
) -> Vec<RowOutcome> {
    let mapper = RowMapper::new(columns.clone());
    let rows: Vec<_> =
        messages.into_iter().map(|message| mapper.map(message).expect("no strict column")).collect();
    let count = rows.len();
    let outcomes = table.insert(rows).await.expect("the table takes rows");
    assert_eq!(outcomes.len(), count, "one outcome per row");
    outcomes
}

/// What was inserted is there once: over repeats in one call, in a later call, and after the table was opened anew.
pub async fn a_row_is_stored_once_over_repeats<T: TableUnderTest>(table: &mut T) {
    let columns = Columns::default();
    let messages = messages(20);
    let inserter = table.open(&columns).await;
    let twice: Vec<_> = messages[..10].iter().chain(&messages[..5]).collect();
    let outcomes = insert(&inserter, &columns, twice).await;
    assert!(outcomes[..10].iter().all(|outcome| matches!(outcome, RowOutcome::Stored)), "{outcomes:?}");
    assert!(
        outcomes[10..].iter().all(|outcome| matches!(outcome, RowOutcome::AlreadyStored)),
        "{outcomes:?}"
    );
    let inserter = table.open(&columns).await;
    let outcomes = insert(&inserter, &columns, &messages).await;
    assert!(
        outcomes[..10].iter().all(|outcome| matches!(outcome, RowOutcome::AlreadyStored)),
        "{outcomes:?}"
    );
    assert!(outcomes[10..].iter().all(|outcome| matches!(outcome, RowOutcome::Stored)), "{outcomes:?}");
    assert_eq!(table.rows().await, by_id(&messages));
}

/// An id that comes with other bytes is refused for good; its neighbours are stored, and the first bytes stay.
pub async fn a_conflicting_row_is_refused_alone<T: TableUnderTest>(table: &mut T) {
    let columns = Columns::default();
    let messages = messages(3);
    let inserter = table.open(&columns).await;
    insert(&inserter, &columns, &messages[1..2]).await;
    let conflicting = message(messages[1].id, "other");
    let outcomes = insert(&inserter, &columns, [&messages[0], &conflicting, &messages[2]]).await;
    let RowOutcome::Refused(error) = &outcomes[1] else { panic!("{outcomes:?}") };
    assert_eq!((error.class(), error.reason()), (ErrorClass::Permanent, ID_CONFLICT));
    assert!(matches!((&outcomes[0], &outcomes[2]), (RowOutcome::Stored, RowOutcome::Stored)), "{outcomes:?}");
    assert_eq!(table.rows().await, by_id(&messages));
}

/// Payloads of every kind come back byte for byte, and are recognised when they come again.
pub async fn payloads_are_stored_byte_for_byte<T: TableUnderTest>(table: &mut T) {
    let columns = Columns::default();
    let ids = IdGenerator::default();
    let big: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let payloads = [
        Vec::new(),
        b"plain".to_vec(),
        b"a\0b".to_vec(),
        vec![0xff, 0xfe],
        "é\n'\"".into(),
        b"42".to_vec(),
        big,
    ];
    let messages: Vec<_> = payloads.into_iter().map(|payload| message(ids.next_id(), payload)).collect();
    let inserter = table.open(&columns).await;
    insert(&inserter, &columns, &messages).await;
    let outcomes = insert(&inserter, &columns, &messages).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, RowOutcome::AlreadyStored)), "{outcomes:?}");
    assert_eq!(table.rows().await, by_id(&messages));
}

/// A column that the configuration gains is added to the table with its rows; one that it loses is left out.
pub async fn columns_come_and_go<T: TableUnderTest>(table: &mut T) {
    let before = Columns::default();
    let mut configs = default_columns();
    configs.retain(|column| column.name != "category");
    configs.push(ColumnConfig {
        name: "added".to_owned(),
        kind: Some(ColumnType::Integer),
        source: SourceConfig::One("/value".to_owned()),
        required: false,
        strict: false,
    });
    let after = Columns::new(&configs).expect("valid columns");
    let messages = messages(2);
    let inserter = table.open(&before).await;
    insert(&inserter, &before, &messages[..1]).await;
    let inserter = table.open(&after).await;
    insert(&inserter, &after, &messages).await;
    assert_eq!(table.rows().await, by_id(&messages));
}

fn key() -> BatchKey {
    BatchKey::new(Timestamp::from_micros(1_672_867_882_661_042), Some("loc"))
}

/// The object of `messages` under one key.
#[must_use]
pub fn object(messages: &[Message]) -> ArchiveObject {
    let lines: Vec<_> = messages.iter().map(|m| (m.clone(), payload_fingerprint(&m.payload))).collect();
    ArchiveObject::build(&ArchiveSettings::default(), &key(), &lines, Timestamp::default())
        .expect("an object")
}

/// Every line of every object that a reader sees.
pub async fn lines<A: ArchiveUnderTest>(archive: &mut A) -> Vec<ArchivedMessage> {
    let mut lines = Vec::new();
    for (name, bytes) in archive.objects().await {
        let mut text = Vec::new();
        decompress(&name, &bytes[..])
            .expect("a known ending")
            .read_to_end(&mut text)
            .expect("a complete object");
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            assert_eq!(line.last(), Some(&b'\n'), "{name} ends within a line");
            lines.push(decode_line(line).expect("an archive line"));
        }
    }
    lines.sort_by_key(|line| line.id);
    lines
}

async fn assert_archived_once<A: ArchiveUnderTest>(archive: &mut A, messages: &[Message]) {
    let found: Vec<_> =
        lines(archive).await.into_iter().map(|line| (line.id, line.payload.to_vec())).collect();
    assert_eq!(found, by_id(messages));
}

/// A reader sees the object under its name with its bytes, and `known` the ids with their payloads' fingerprints.
pub async fn an_object_is_seen_as_it_was_put<A: ArchiveUnderTest>(archive: &mut A) {
    let messages = messages(10);
    let store = archive.open().await;
    let object = object(&messages[..9]);
    assert_eq!(store.put(object.clone()).await.expect("put"), PutOutcome::Stored);
    let known = store.known(messages.iter().map(|m| m.id).collect()).await.expect("known");
    let mut expected: Vec<_> = messages.iter().map(|m| Some(payload_fingerprint(&m.payload))).collect();
    expected[9] = None;
    assert_eq!(known, expected);
    assert_eq!(archive.objects().await, [(object.name.to_string(), object.bytes.to_vec())]);
}

/// An object of which some or all ids are archived is not stored, also by an archive that was opened anew.
pub async fn an_object_with_a_known_id_is_not_stored<A: ArchiveUnderTest>(archive: &mut A) {
    let messages = messages(6);
    let store = archive.open().await;
    let first = object(&messages[..4]);
    assert_eq!(store.put(first.clone()).await.expect("put"), PutOutcome::Stored);
    assert_eq!(store.put(first.clone()).await.expect("put"), PutOutcome::Overlaps);
    let store = archive.open().await;
    assert_eq!(store.put(object(&messages[3..])).await.expect("put"), PutOutcome::Overlaps);
    assert_eq!(store.put(first).await.expect("put"), PutOutcome::Overlaps);
    assert_archived_once(archive, &messages[..4]).await;
}

/// Whatever is delivered again, alone or beside new messages, at the same time or after a restart: one line each.
pub async fn a_message_is_one_line_over_redeliveries<A: ArchiveUnderTest>(archive: &mut A) {
    let messages = messages(50);
    let batch = |from: usize, to: usize| -> Vec<_> {
        messages[from..to].iter().map(|m| Item::detached(m.clone(), key())).collect()
    };
    let processor = processor(archive.open().await);
    let (left, right) = (batch(0, 30), batch(20, 40));
    let (left, right) = tokio::join!(processor.process(&left), processor.process(&right));
    assert!(matches!((&left, &right), (BatchOutcome::Done, BatchOutcome::Done)), "{left:?} {right:?}");
    let processor = self::processor(archive.open().await);
    let again = processor.process(&batch(0, 50)).await;
    assert!(matches!(again, BatchOutcome::Done), "{again:?}");
    assert_archived_once(archive, &messages).await;
}

/// An id that comes with other bytes is refused for good; its neighbours are archived, and the first bytes stay.
pub async fn a_conflicting_line_is_refused_alone<A: ArchiveUnderTest>(archive: &mut A) {
    let messages = messages(3);
    let processor = processor(archive.open().await);
    let item = |message: &Message| Item::detached(message.clone(), key());
    assert!(matches!(processor.process(&[item(&messages[1])]).await, BatchOutcome::Done));
    let conflicting = message(messages[1].id, "other");
    let batch = [item(&messages[0]), item(&conflicting), item(&messages[2])];
    let BatchOutcome::Each(results) = processor.process(&batch).await else { panic!("one result per item") };
    let error = results[1].as_ref().expect_err("refused");
    assert_eq!((error.class(), error.reason()), (ErrorClass::Permanent, ID_CONFLICT));
    assert!(results[0].is_ok() && results[2].is_ok());
    assert_archived_once(archive, &messages).await;
}

/// Payloads of every kind come back byte for byte.
pub async fn archived_payloads_come_back_byte_for_byte<A: ArchiveUnderTest>(archive: &mut A) {
    let ids = IdGenerator::default();
    let big: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let payloads =
        [Vec::new(), b"{\"a\": 1.50}".to_vec(), b"{}\n".to_vec(), b"null".to_vec(), vec![0, 0xff], big];
    let messages: Vec<_> = payloads.into_iter().map(|payload| message(ids.next_id(), payload)).collect();
    let processor = processor(archive.open().await);
    let batch: Vec<_> = messages.iter().map(|m| Item::detached(m.clone(), key())).collect();
    assert!(matches!(processor.process(&batch).await, BatchOutcome::Done));
    assert_archived_once(archive, &messages).await;
}

fn processor(store: Arc<dyn ObjectStore>) -> ArchiveProcessor {
    ArchiveProcessor::new(store, ArchiveSettings::default(), Arc::new(SystemClock))
}

/// The table double, as the suite sees it.
#[derive(Debug, Default)]
pub struct MemoryTableUnderTest(Option<Arc<MemoryTable>>);

impl TableUnderTest for MemoryTableUnderTest {
    async fn open(&mut self, columns: &Columns) -> Arc<dyn RowInserter> {
        let table = MemoryTable::new(columns);
        if let Some(before) = &self.0 {
            // The values of the payload column are all that the suite looks at.
            let payload = |row: &Row, at: Option<usize>| at.map_or(Value::Null, |at| row.values[at].clone());
            let kept = before.rows().into_iter().map(|(id, row)| {
                let mut values = vec![Value::Null; columns.len()];
                if let Some(at) = table.payload {
                    values[at] = payload(&row, before.payload);
                }
                (id, Row { id, values: values.into() })
            });
            *table.rows.lock() = kept.collect();
        }
        let table = Arc::new(table);
        self.0 = Some(Arc::clone(&table));
        table
    }

    async fn rows(&mut self) -> Vec<(MessageId, Vec<u8>)> {
        let Some(table) = &self.0 else { return Vec::new() };
        let payload = |row: &Row| match table.payload.map(|at| &row.values[at]) {
            Some(Value::Bytes(bytes)) => bytes.to_vec(),
            _ => Vec::new(),
        };
        table.rows().iter().map(|(id, row)| (*id, payload(row))).collect()
    }
}

/// The archive double, as the suite sees it.
#[derive(Debug, Default)]
pub struct MemoryArchiveUnderTest(Arc<MemoryArchive>);

impl ArchiveUnderTest for MemoryArchiveUnderTest {
    async fn open(&mut self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.0) as Arc<dyn ObjectStore>
    }

    async fn objects(&mut self) -> Vec<(String, Vec<u8>)> {
        self.0.objects().into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect()
    }
}
