//! The simulation's stores without faults against the suites that real stores pass: what the simulation shows over
//! them means something only if they keep the same promises.

use crate::stores::{FaultyArchive, FaultyLayer, FaultyLot, FaultyRegistry, FaultyTable, Stores};
use crate::world::{Random, Rates, World};
use bqstore::{Columns, RowInserter, Source, Value};
use cache::{Fetcher, Layered};
use enrichment::{Parked, ParkingLot, Placed};
use icestore::ObjectStore;
use messagepipeline::{Enrichment, IdGenerator, Message, MessageId, Timestamp};
use std::sync::Arc;
use testkit::cache_suite::{LayerFeatures, layer_suite, source_suite};
use testkit::memory::MemoryBus;
use testkit::sink_suite::{self as suite, ArchiveUnderTest, TableUnderTest};

fn calm() -> World {
    let world = World::new(Random::new(1), Rates { fault: 1, receive: 1, settle: 1 });
    world.heal();
    world
}

fn stores(lot_room: usize) -> Stores {
    Stores::new(MemoryBus::new(), lot_room, false)
}

/// Opened anew, it is another process over the same stores.
struct Simulated(World, Stores);

impl Simulated {
    fn new() -> Self {
        Self(calm(), stores(0))
    }

    fn next_process(&self) -> (World, u32) {
        self.0.next_life();
        (self.0.clone(), self.0.life())
    }
}

impl TableUnderTest for Simulated {
    async fn open(&mut self, _: &Columns) -> Arc<dyn RowInserter> {
        let (world, life) = self.next_process();
        let table = Arc::new(FaultyTable { world, life, table: Arc::clone(&self.1.table) });
        table.open().await.unwrap();
        table
    }

    async fn rows(&mut self) -> Vec<(MessageId, Vec<u8>)> {
        let payload = Columns::default().iter().position(|column| column.sources == [Source::Payload]);
        let rows = self.1.table.rows().into_iter().map(|(id, row)| match &row.values[payload.unwrap()] {
            Value::Bytes(bytes) => (id, bytes.to_vec()),
            other => panic!("the payload is {other:?}"),
        });
        rows.collect()
    }
}

impl ArchiveUnderTest for Simulated {
    async fn open(&mut self) -> Arc<dyn ObjectStore> {
        let (world, life) = self.next_process();
        let archive = Arc::new(FaultyArchive { world, life, archive: Arc::clone(&self.1.archive) });
        archive.open().await.unwrap();
        archive
    }

    async fn objects(&mut self) -> Vec<(String, Vec<u8>)> {
        let archive = self.1.archive.lock();
        archive.objects.iter().map(|(name, bytes)| (name.clone(), bytes.to_vec())).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn the_simulated_table_conforms() {
    // Its columns are always the same, so the promise about columns that come and go is not its.
    suite::a_row_is_stored_once_over_repeats(&mut Simulated::new()).await;
    suite::a_conflicting_row_is_refused_alone(&mut Simulated::new()).await;
    suite::payloads_are_stored_byte_for_byte(&mut Simulated::new()).await;
}

#[tokio::test(start_paused = true)]
async fn the_simulated_archive_conforms() {
    suite::an_object_is_seen_as_it_was_put(&mut Simulated::new()).await;
    suite::an_object_with_a_known_id_is_not_stored(&mut Simulated::new()).await;
    suite::a_message_is_one_line_over_redeliveries(&mut Simulated::new()).await;
    suite::a_conflicting_line_is_refused_alone(&mut Simulated::new()).await;
    suite::archived_payloads_come_back_byte_for_byte(&mut Simulated::new()).await;
}

#[tokio::test(start_paused = true)]
async fn the_simulated_layer_of_look_ups_conforms() {
    let make = |source: Arc<dyn Fetcher<Enrichment>>| {
        let world = calm();
        let layer = FaultyLayer { life: world.life(), world, layer: Arc::default() };
        Layered::new(layer, Some(source))
    };
    layer_suite(make, LayerFeatures::default()).await;
}

#[tokio::test(start_paused = true)]
async fn the_simulated_registry_conforms() {
    let (world, registry) = (calm(), stores(0).registry);
    ["a", "b"].into_iter().for_each(|name| registry.add(name));
    source_suite(&FaultyRegistry { life: world.life(), world, registry }, &["a", "b"], "x").await;
}

#[tokio::test(start_paused = true)]
async fn the_simulated_parking_lot_holds_each_message_once_up_to_its_bound_and_lets_go_of_what_is_removed() {
    let (world, stores) = (calm(), stores(2));
    let lot = FaultyLot { life: world.life(), world, lot: stores.lot, room: stores.lot_room };
    let ids = IdGenerator::default();
    let parked = |key: &str, since: i64| Parked {
        message: Message::new(ids.next_id(), "x", Timestamp::default()),
        key: key.into(),
        since: Timestamp::from_micros(since),
    };
    let (first, second, third) = (parked("b", 1), parked("a", 2), parked("c", 3));
    let all = vec![first.clone(), second.clone(), first.clone(), third.clone()];
    assert_eq!(lot.park(all).await.unwrap(), [Placed::Held, Placed::Held, Placed::Held, Placed::Full]);
    assert_eq!(lot.count().await.unwrap(), 2);
    assert_eq!(lot.keys(None, 9).await.unwrap(), [Box::<str>::from("a"), Box::from("b")]);
    assert_eq!(lot.keys(Some("a"), 9).await.unwrap(), [Box::<str>::from("b")]);
    let found = |parked: Vec<Parked>| parked.iter().map(|parked| parked.message.id).collect::<Vec<_>>();
    assert_eq!(found(lot.of_keys(vec!["a".into()], 9).await.unwrap()), [second.message.id]);
    assert_eq!(found(lot.parked_before(Timestamp::from_micros(2), 9).await.unwrap()), [first.message.id]);
    lot.remove(vec![first.message.id]).await.unwrap();
    assert_eq!(lot.park(vec![third]).await.unwrap(), [Placed::Held]);
    assert_eq!(lot.count().await.unwrap(), 2);
}
