//! The layers of this crate against the suite that every layer passes.

use cache::{Ages, Layered, Lru, MemoryPresence};
use std::sync::Arc;
use std::time::Duration;
use testkit::cache_suite::{
    CountingSource, LayerFeatures, MemoryStore, layer_suite, presence_suite, source_suite,
};

const AGES: Ages = Ages { max: Duration::from_secs(300), negative: Duration::from_secs(30) };
const SINGLE_FLIGHT: LayerFeatures = LayerFeatures { single_flight: true };

#[tokio::test(start_paused = true)]
async fn the_lru_layer_conforms() {
    layer_suite(|source| Lru::new(1_000, AGES, Some(source)).unwrap(), SINGLE_FLIGHT).await;
}

#[tokio::test(start_paused = true)]
async fn the_unbounded_layer_conforms() {
    layer_suite(|source| Lru::unbounded(AGES, Some(source)), SINGLE_FLIGHT).await;
}

#[tokio::test(start_paused = true)]
async fn the_layer_over_a_store_conforms() {
    layer_suite(|source| Layered::new(MemoryStore::default(), Some(source)), LayerFeatures::default()).await;
}

#[tokio::test(start_paused = true)]
async fn two_layers_conform_as_one() {
    let chain = |source| {
        let network = Arc::new(Layered::new(MemoryStore::default(), Some(source)));
        Lru::new(1_000, AGES, Some(network)).unwrap()
    };
    layer_suite(chain, SINGLE_FLIGHT).await;
}

#[tokio::test]
async fn the_memory_source_conforms() {
    source_suite(&*CountingSource::with_keys(["a", "b"]), &["a", "b"], "x").await;
}

#[tokio::test]
async fn the_memory_presence_cache_conforms() {
    presence_suite(&MemoryPresence::new(10, Duration::from_secs(60)).unwrap()).await;
}
