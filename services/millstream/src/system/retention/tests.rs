//! The books say the same before and after forgetting, and after every place where a process can die.

use super::*;
use crate::books::Books;
use crate::check::{ENRICHED, RAW};
use embedded::archive::Archive;
use embedded::bus::{Bus, BusOptions, SubscriptionOptions};
use embedded::warehouse::Warehouse;
use messagepipeline::{Digest, ManualClock};
use proptest::prelude::*;
use rusqlite::{Connection, params};
use serde_json::{Value, json};

const KEPT: Duration = Duration::from_secs(100);
const TABLE: &str = "messages";

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stored,
    SkippedByEnrichment,
    SkippedByWarehouse,
    RefusedByIngestion,
    /// Its device may still send it again at QoS 2.
    HeldAtQos2,
    Parked,
    DeadAtEnrichment,
    RowLost,
    LineLost,
    Unsettled,
}

impl Fate {
    fn is_finished(self) -> bool {
        matches!(
            self,
            Self::Stored | Self::SkippedByEnrichment | Self::SkippedByWarehouse | Self::RefusedByIngestion
        )
    }

    fn is_enriched(self) -> bool {
        matches!(
            self,
            Self::Stored
                | Self::HeldAtQos2
                | Self::SkippedByWarehouse
                | Self::RowLost
                | Self::LineLost
                | Self::Unsettled
        )
    }

    fn has_row(self) -> bool {
        matches!(self, Self::Stored | Self::HeldAtQos2 | Self::LineLost)
    }

    fn has_line(self) -> bool {
        matches!(self, Self::Stored | Self::HeldAtQos2 | Self::SkippedByWarehouse | Self::RowLost)
    }
}

fn start() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

fn later(seconds: u64) -> Timestamp {
    start().plus(Duration::from_secs(seconds))
}

/// A message's id: one that tells its time, or one that does not.
fn id(number: usize, foreign: bool) -> MessageId {
    let mut bytes = *first_id_at(later(0)).as_bytes();
    bytes[8..].copy_from_slice(&(0x8000_0000_0000_0000_u64 + number as u64).to_be_bytes());
    if foreign {
        bytes[..8].copy_from_slice(&[0xd5, number.to_le_bytes()[0], 0, 0, 0, 0, 0x80, 0]);
    } else {
        bytes[6] = 0x70;
    }
    MessageId::from_bytes(bytes)
}

struct World {
    _temporary: tempfile::TempDir,
    folder: DataFolder,
}

/// The open stores with the retention over them.
struct Running {
    bus: Bus,
    warehouse: Warehouse,
    archive: Archive,
    retention: Retention,
    clock: ManualClock,
}

impl World {
    async fn new(messages: &[(Fate, bool)]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(temporary.path().join("data")).unwrap();
        let world = Self { _temporary: temporary, folder };
        let running = world.open().await;
        for (topic, subscriptions) in [
            (RAW, vec![enrichment_service::STAGE]),
            (ENRICHED, vec![bigquery_service::STAGE, icestore_service::STAGE]),
        ] {
            let topic = running.bus.topic(topic).await.unwrap();
            for name in subscriptions {
                running.bus.subscription(&topic, name, SubscriptionOptions::default()).await.unwrap();
            }
        }
        running.close().await;
        world.fill(messages);
        world
    }

    async fn open(&self) -> Running {
        let clock = ManualClock::new(start());
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let bus = Bus::open(self.folder.bus(), BusOptions::default(), Arc::clone(&shared)).await.unwrap();
        let columns = bqstore::Columns::new(&bqstore::default_columns()).unwrap();
        let warehouse = Warehouse::open(&self.folder.warehouse(), TABLE, &columns).unwrap();
        let folder = &self.folder;
        let archive =
            Archive::open(&folder.archive_index(), &folder.archive(), &folder.archive_tmp(), None).unwrap();
        let readers = Readers {
            bus: BusReader::open(folder.bus()).unwrap(),
            warehouse: WarehouseReader::open(&folder.warehouse(), TABLE).unwrap(),
            archive: ArchiveReader::open(&folder.archive_index(), &folder.archive(), &folder.archive_tmp())
                .unwrap(),
        };
        let kept = service_kit::config::Duration::from_secs(KEPT.as_secs());
        let retention = Retention {
            config: RetentionConfig { ids: Some(kept), warehouse: Some(kept), archive: Some(kept) },
            ids: KEPT,
            ledger: bus.id_ledger(),
            rows: warehouse.retention(),
            objects: archive.retention(),
            readers: Arc::new(Mutex::new(readers)),
            clock: WatchedClock::new(shared),
        };
        Running { bus, warehouse, archive, retention, clock }
    }

    /// Writes into the stores what the services would have written.
    fn fill(&self, messages: &[(Fate, bool)]) {
        let mut files = Filled {
            bus: Connection::open(self.folder.bus()).unwrap(),
            warehouse: Connection::open(self.folder.warehouse()).unwrap(),
            published: [Digest::default(); 2],
        };
        // What is unsettled lies behind the cursors.
        let mut ordered: Vec<_> = messages.iter().enumerate().collect();
        ordered.sort_by_key(|(_, (fate, _))| *fate == Fate::Unsettled);
        let mut lines = Vec::new();
        for (number, (fate, foreign)) in ordered {
            // A message is refused before anybody looks for its own id.
            let id = id(number, *foreign && *fate != Fate::RefusedByIngestion);
            files.publish(id, *fate);
            files.end(id, *fate);
            if fate.has_line() {
                lines.push(id);
            }
        }
        let unsettled = messages.iter().filter(|(fate, _)| *fate == Fate::Unsettled).count();
        files.close_topics(i64::try_from(unsettled).unwrap());
        self.write_objects(&lines);
    }

    /// Three lines an object.
    fn write_objects(&self, lines: &[MessageId]) {
        let archive = Connection::open(self.folder.archive_index()).unwrap();
        for (number, lines) in lines.chunks(3).enumerate() {
            let name = format!("2027/01/15/place/object-{number}.jsonl.gz");
            let path = self.folder.archive().join(&name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, b"lines").unwrap();
            let digest: Digest = lines.iter().collect();
            let stamp = start().to_string();
            archive
                .execute(
                    "INSERT INTO objects (name, lines, digest, bytes, uncompressed, first_received, \
                         last_received, listed) VALUES (?1, ?2, ?3, 5, 5, ?4, ?4, ?2)",
                    params![name, digest.count.cast_signed(), digest.sum.cast_signed(), stamp],
                )
                .unwrap();
            let object = archive.last_insert_rowid();
            for id in lines {
                let row = params![id.as_bytes().as_slice(), object];
                archive.execute("INSERT INTO object_ids VALUES (?1, ?2, 0)", row).unwrap();
            }
        }
    }

    /// What the books say, but for what the sinks still hold.
    fn books(&self) -> Value {
        let report = Books::open(&self.folder, TABLE).unwrap().report(false).unwrap();
        assert_eq!(report.disagreements, Vec::<String>::new());
        let report = serde_json::to_value(report).unwrap();
        let keys =
            ["balanced", "topics", "stages", "dead_letters", "pending", "unaccounted", "unaccounted_count"];
        keys.into_iter()
            .map(|key| (key.to_owned(), report[key].clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    fn count(&self, file: std::path::PathBuf, sql: &str) -> i64 {
        Connection::open(file).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    fn removed_files(&self, names: &[String]) -> usize {
        names.iter().filter(|name| !self.folder.archive().join(name).exists()).count()
    }
}

/// The files while they are filled.
struct Filled {
    bus: Connection,
    warehouse: Connection,
    /// To `raw` and to `enriched`.
    published: [Digest; 2],
}

impl Filled {
    fn publish(&mut self, id: MessageId, fate: Fate) {
        for (published, topic) in self.published.iter_mut().zip([RAW, ENRICHED]) {
            if fate == Fate::RefusedByIngestion || (topic == ENRICHED && !fate.is_enriched()) {
                continue;
            }
            published.insert(&id);
            let sql = format!("INSERT INTO \"ids_{topic}\" VALUES (?1, ?2, 0)");
            self.bus.execute(&sql, params![id.as_bytes(), published.count.cast_signed()]).unwrap();
        }
    }

    fn end(&self, id: MessageId, fate: Fate) {
        let bytes = id.as_bytes().as_slice();
        let skip = |stage: &str| {
            self.bus.execute("INSERT INTO skips VALUES (?1, ?2, 'rule')", params![stage, bytes]).unwrap()
        };
        match fate {
            Fate::SkippedByEnrichment => skip(enrichment_service::STAGE),
            Fate::SkippedByWarehouse => skip(bigquery_service::STAGE),
            Fate::RefusedByIngestion => skip(ingestion_service::STAGE),
            Fate::HeldAtQos2 => self.hold(bytes),
            Fate::Parked => self
                .bus
                .execute("INSERT INTO parked VALUES (?1, 'key', 0, 0, x'', NULL, x'')", [bytes])
                .unwrap(),
            Fate::DeadAtEnrichment => {
                let sql = "INSERT INTO dead_letters (stage, id, reason, detail, attempts, dead_at, publish_time, \
                               attributes, payload) VALUES (?1, ?2, 'reason', '', 1, '', '', '{}', '')";
                self.bus.execute(sql, params![enrichment_service::STAGE, id.to_string()]).unwrap()
            }
            Fate::Stored | Fate::RowLost | Fate::LineLost | Fate::Unsettled => 0,
        };
        if fate.has_row() {
            let sql = "INSERT INTO messages (message_id) VALUES (?1)";
            self.warehouse.execute(sql, [id.to_string()]).unwrap();
        }
    }

    fn hold(&self, id: &[u8]) -> usize {
        let session = "INSERT OR IGNORE INTO mqtt_sessions VALUES (1, 'device', 60)";
        self.bus.execute(session, []).unwrap();
        let sql = "INSERT INTO mqtt_held SELECT 1, count(*) + 1, ?1, 0 FROM mqtt_held";
        self.bus.execute(sql, [id]).unwrap()
    }

    fn close_topics(&self, unsettled: i64) {
        for (published, (topic, unsettled)) in self.published.iter().zip([(RAW, 0), (ENRICHED, unsettled)]) {
            let sql = "UPDATE topics SET last_seq = ?2, published = ?2, digest = ?3 WHERE name = ?1";
            let count = published.count.cast_signed();
            self.bus.execute(sql, params![topic, count, published.sum.cast_signed()]).unwrap();
            let sql =
                "UPDATE subscriptions SET cursor = ?2 WHERE topic = (SELECT id FROM topics WHERE name = ?1)";
            self.bus.execute(sql, params![topic, count - unsettled]).unwrap();
        }
    }
}

impl Running {
    async fn pass(&mut self, at: Timestamp) {
        let ahead = at.since(self.clock.now());
        self.clock.advance(ahead);
        tokio::time::advance(ahead).await;
        self.pass_now().await;
    }

    async fn pass_now(&mut self) {
        let passed = self.retention.pass(true, &Shutdown::new()).await;
        assert!(passed.is_ok());
    }

    async fn close(self) {
        use bqstore::RowInserter;
        use icestore::ObjectStore;
        self.archive.close().await.unwrap();
        self.warehouse.close().await.unwrap();
        self.bus.close().await.unwrap();
    }
}

fn fates() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Stored),
        1 => Just(Fate::SkippedByEnrichment),
        1 => Just(Fate::SkippedByWarehouse),
        1 => Just(Fate::RefusedByIngestion),
        1 => Just(Fate::HeldAtQos2),
        1 => Just(Fate::Parked),
        1 => Just(Fate::DeadAtEnrichment),
        1 => Just(Fate::RowLost),
        1 => Just(Fate::LineLost),
        1 => Just(Fate::Unsettled),
    ]
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn forgetting_and_removing_change_nothing_that_the_books_say(
        messages in prop::collection::vec((fates(), any::<bool>()), 0..60)
    ) {
        block_on(async {
            let world = World::new(&messages).await;
            let before = world.books();
            let mut running = world.open().await;
            // The first look notes how far everything is; before its time is over nothing is forgotten.
            running.pass(later(1)).await;
            running.pass(later(90)).await;
            let folded = || world.count(world.folder.bus(), "SELECT coalesce(sum(count), 0) FROM folded \
                WHERE place IN ('topic:raw', 'skipped:ingestion')");
            assert_eq!(folded(), 0);
            running.pass(later(200)).await;
            assert_eq!(world.books(), before);
            let finished = messages.iter().filter(|(fate, _)| fate.is_finished()).count();
            assert_eq!(folded(), i64::try_from(finished).unwrap());
            // Rows and objects whose ids were forgotten in this look are removed in it or in the next one.
            running.pass(later(400)).await;
            assert_eq!(world.books(), before);
            let rows = messages.iter().filter(|(fate, _)| fate.has_row()).count();
            let kept =
                messages.iter().filter(|(fate, _)| matches!(fate, Fate::LineLost | Fate::HeldAtQos2)).count();
            let left = world.count(world.folder.warehouse(), "SELECT count(*) FROM messages");
            // The newest row stays whatever its age.
            assert!(usize::try_from(left).unwrap() <= kept + usize::from(rows > 0));
            running.close().await;
        });
    }
}

#[test]
fn a_stop_after_any_transaction_is_made_good_by_the_next_start() {
    block_on(async {
        let messages: Vec<_> = (0..9).map(|n| (Fate::Stored, n % 2 == 0)).collect();
        let world = World::new(&messages).await;
        let before = world.books();
        let mut running = world.open().await;
        running.pass(later(1)).await;

        // Folded in bus.db, and the archive has not heard of it.
        let horizon = later(100);
        let whole = (None, MessageId::from_bytes([0xff; 16]));
        let (finished, _) = running.retention.readers.lock().finished(Ids::Ledger, whole, horizon).unwrap();
        assert_eq!(running.retention.ledger.fold(finished, horizon).await.unwrap().len(), 9);
        running.close().await;
        assert_eq!(world.books(), before);
        assert_eq!(world.count(world.folder.archive_index(), "SELECT count(*) FROM object_ids"), 9);

        // The next start tells it, and removes rows; objects it lists for removal, and dies.
        let running = world.open().await;
        running.retention.objects.forget(running.retention.ledger.folding().await.unwrap()).await.unwrap();
        assert_eq!(world.books(), before);
        running.retention.ledger.fold_done().await.unwrap();
        let (rows, _) = running.retention.readers.lock().forgotten_rows(horizon, 0).unwrap();
        // One is sent again in the last moment; its row stays.
        let sent_again = |ids: &[MessageId]| Ok(ids.iter().map(|id| *id == ids[3]).collect());
        assert_eq!(running.retention.rows.remove(rows.clone(), sent_again).await.unwrap(), 7);
        assert_eq!(running.retention.rows.remove(rows, |ids| Ok(vec![false; ids.len()])).await.unwrap(), 1);
        running.close().await;
        assert_eq!(world.books(), before);
        let index = Connection::open(world.folder.archive_index()).unwrap();
        assert_eq!(index.execute("UPDATE objects SET removing = 1 WHERE listed = 0", []).unwrap(), 3);
        assert_eq!(world.books(), before);
        let names: Vec<String> = {
            let mut select = index.prepare("SELECT name FROM objects ORDER BY id").unwrap();
            select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        // One of the files is gone already.
        std::fs::remove_file(world.folder.archive().join(&names[1])).unwrap();
        assert_eq!(world.books(), before);
        drop(index);

        world.open().await.close().await;
        assert_eq!(world.books(), before);
        assert_eq!(world.removed_files(&names), 3);
        assert_eq!(world.count(world.folder.archive_index(), "SELECT count(*) FROM objects"), 0);
        assert!(!world.folder.archive().join("2027").exists());
    });
}

#[test]
fn a_clock_that_is_set_makes_nothing_older() {
    block_on(async {
        let world = World::new(&[(Fate::Stored, false); 5]).await;
        let mut running = world.open().await;
        let left = || {
            let ids = world.count(world.folder.bus(), "SELECT count(*) FROM ids_raw");
            (ids, world.count(world.folder.warehouse(), "SELECT count(*) FROM messages"))
        };
        running.pass(later(1)).await;
        // A board without a clock of its own reaches the network.
        let years = 56 * 365 * 24 * 3600;
        running.clock.advance(Duration::from_secs(years));
        running.pass_now().await;
        assert_eq!(left(), (5, 5));
        running.pass(later(years + 99)).await;
        assert_eq!(left(), (5, 5));
        running.pass(later(years + 102)).await;
        running.pass(later(years + 104)).await;
        // The newest row stays whatever its age.
        assert_eq!(left(), (0, 1));
        running.close().await;
    });
}

#[test]
fn an_old_object_that_cannot_be_removed_stops_no_start_and_no_other_removal() {
    block_on(async {
        let world = World::new(&[(Fate::Stored, false); 12]).await;
        let index = Connection::open(world.folder.archive_index()).unwrap();
        let change = |sql: &str| index.execute_batch(sql).unwrap();
        let objects = || world.count(world.folder.archive_index(), "SELECT count(*) FROM objects");
        // Two of four are left by a process that died while it removed them: one with a name that no archive gives,
        // one with a folder in its place.
        change("DELETE FROM object_ids; UPDATE objects SET listed = 0");
        change(
            "UPDATE objects SET removing = 1 WHERE id <= 2; UPDATE objects SET name = '../odd' WHERE id = 1",
        );
        let folder = world.folder.archive().join("2027/01/15/place/object-1.jsonl.gz");
        std::fs::remove_file(&folder).unwrap();
        std::fs::create_dir_all(folder.join("inside")).unwrap();
        let running = world.open().await;
        assert_eq!(objects(), 4);
        assert_eq!(running.retention.objects.remove(later(1), 16).await.unwrap(), 2);
        assert_eq!(objects(), 2);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(running.retention.objects.remove(later(1), 16).await.unwrap(), 1);
        assert_eq!(running.retention.objects.remove(later(1), 16).await.unwrap(), 0);
        running.close().await;
    });
}

#[test]
fn a_panic_in_a_read_does_not_end_retention() {
    block_on(async {
        let world = World::new(&[]).await;
        let running = world.open().await;
        let cut = running.retention.read(|_| -> Result<(), Error> { panic!("a bug") }).await;
        assert!(matches!(cut, Err(Cut::Panicked)));
        assert!(running.retention.read(|_| Ok(())).await.is_ok());
        running.close().await;
    });
}

#[test]
fn a_row_lost_after_its_id_was_forgotten_is_counted_and_a_foreign_one_is_named() {
    block_on(async {
        let messages: Vec<_> = (0..5).map(|_| (Fate::Stored, false)).collect();
        let world = World::new(&messages).await;
        let mut running = world.open().await;
        (running.retention.config.warehouse, running.retention.config.archive) = (None, None);
        running.pass(later(1)).await;
        running.pass(later(200)).await;
        running.close().await;
        let report = || Books::open(&world.folder, TABLE).unwrap().report(false).unwrap();
        assert!(report().balanced);

        let warehouse = Connection::open(world.folder.warehouse()).unwrap();
        let young = {
            let mut bytes = *first_id_at(later(300)).as_bytes();
            (bytes[6], bytes[8]) = (0x70, 0x80);
            MessageId::from_bytes(bytes).to_string()
        };
        warehouse.execute("INSERT INTO messages (message_id) VALUES (?1)", [&young]).unwrap();
        let found = report();
        assert_eq!((found.unaccounted_count, found.unaccounted[0].message_id.clone()), (1, young.clone()));
        warehouse.execute("DELETE FROM messages WHERE message_id = ?1", [&young]).unwrap();

        warehouse.execute("DELETE FROM messages WHERE message_id = ?1", [id(2, false).to_string()]).unwrap();
        let found = serde_json::to_value(report()).unwrap();
        assert_eq!((&found["balanced"], &found["unaccounted_count"]), (&json!(false), &json!(1)));
        assert_eq!(found["disagreements"].as_array().unwrap().len(), 1);
    });
}
