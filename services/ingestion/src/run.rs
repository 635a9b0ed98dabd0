//! Running the service so that the endpoint ends in good order.

use crate::Ingestion;
use messagepipeline::{ServiceError, Shutdown, Summary};
use mqttconverter::endpoint::EndpointHandle;
use std::convert::Infallible;
use std::time::Duration;

/// How long the endpoint may take to hand over what it has read, at most. It needs milliseconds, unless publishing
/// fails; then the messages stay with their devices, which have no PUBACK for them.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Runs `service` until `shutdown`, of which it has `drain` to finish.
///
/// The endpoint, where there is one, ends the service by itself: it stops reading, hands over what it has read, lets the
/// acknowledgements out and then says that nothing comes any more. A soft signal to the service would cut that short,
/// so it comes only when the endpoint had its time.
///
/// # Errors
/// As [`messagepipeline::BatchingService::run`].
pub async fn run(
    service: Ingestion,
    endpoint: Option<EndpointHandle>,
    shutdown: Shutdown,
    drain: Duration,
) -> Result<Summary, ServiceError> {
    let Some(endpoint) = endpoint else { return service.run(shutdown).await };
    let own = Shutdown::new();
    let signals = async {
        shutdown.begun().await;
        endpoint.drain();
        tokio::select! {
            () = tokio::time::sleep(HAND_OVER.min(drain / 2)) => own.begin(),
            () = shutdown.aborted() => {}
        }
        shutdown.aborted().await;
        own.abort();
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        result = service.run(own.clone()) => result,
        never = signals => match never {},
    }
}
