//! Running the services, and stopping them in good order.

use super::gauges;
use super::open::{Services, Stores, System};
use bqstore::RowInserter;
use icestore::ObjectStore;
use messagepipeline::{Health, ServiceError, Shutdown};
use service_kit::Tasks;
use service_kit::run_when_open;
use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

impl System {
    /// Starts everything as tasks that end when `shutdown` begins, of which they have `drain` to finish. Answers the
    /// stores, to be closed when the tasks have ended.
    pub fn spawn(self, tasks: &mut Tasks, health: &Health, shutdown: &Shutdown, drain: Duration) -> Stores {
        let Services { ingestion, endpoint, enrichment, background, warehouse, archive } = self.services;
        let stores = self.stores;
        let (rows, stage, begun) = (stores.remote_rows.clone(), health.stage("bigquery"), shutdown.clone());
        tasks.spawn("bigquery", async move {
            let service = warehouse.run(begun.clone());
            match rows {
                Some(rows) => run_when_open(|| rows.open(), &stage, &begun, service).await,
                None => run_when_open(|| ready(Ok(())), &stage, &begun, service).await,
            }
        });
        let (objects, stage, begun) =
            (stores.remote_objects.clone(), health.stage("icestore"), shutdown.clone());
        tasks.spawn("icestore", async move {
            let service = archive.run(begun.clone());
            match objects {
                Some(objects) => run_when_open(|| objects.open(), &stage, &begun, service).await,
                None => run_when_open(|| ready(Ok(())), &stage, &begun, service).await,
            }
        });
        tasks.spawn("enrichment", run(enrichment.run(shutdown.clone())));
        tasks.spawn("enrichment background", quiet(background.run(shutdown.clone())));
        let (registry, watching) = (stores.registry.clone(), shutdown.clone());
        tasks.spawn("registry watch", quiet(async move { registry.watch(watching).await }));
        tasks.spawn("bus gauges", quiet(gauges::keep(stores.bus.clone(), shutdown.clone())));
        if let Some(retention) = self.retention {
            tasks.spawn("retention", quiet(retention.run(shutdown.clone())));
        }
        tasks.spawn("ingestion", run(ingestion_service::run(ingestion, endpoint, shutdown.clone(), drain)));
        stores
    }
}

async fn run(
    service: impl Future<Output = Result<messagepipeline::Summary, ServiceError>>,
) -> Result<(), ServiceError> {
    service.await.map(drop)
}

async fn quiet(task: impl Future<Output = ()>) -> Result<(), Infallible> {
    task.await;
    Ok(())
}

impl Stores {
    /// Stores what is left to store and closes what is written to. The registry is only read; its connections end
    /// with their last user.
    ///
    /// # Errors
    /// Every store that could not be closed well, by name.
    pub async fn close(self) -> Result<(), String> {
        let mut failed = Vec::new();
        let mut note = |store: &str, result: Result<(), String>| {
            if let Err(error) = result {
                failed.push(format!("{store}: {error}"));
            }
        };
        if let Some(objects) = self.remote_objects {
            note("bucket", objects.close().await.map_err(|error| error.to_string()));
        }
        if let Some(rows) = self.remote_rows {
            note("table", rows.close().await.map_err(|error| error.to_string()));
        }
        note("archive", self.archive.close().await.map_err(|error| error.to_string()));
        note("warehouse", self.warehouse.close().await.map_err(|error| error.to_string()));
        note("bus", self.bus.close().await.map_err(|error| error.to_string()));
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }
}
