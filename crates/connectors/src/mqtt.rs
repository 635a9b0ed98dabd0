//! The two sources of device messages.

use crate::ConnectError;
use messagepipeline::{BoxConsumer, Clock, IdGenerator, StageHealth};
use mqttconverter::broker::{BrokerConsumer, BrokerOptions, BrokerParts};
use mqttconverter::endpoint::{Endpoint, EndpointHandle, EndpointOptions, SessionStore};
use std::net::SocketAddr;
use std::sync::Arc;

/// Opens the endpoint that devices connect to, with its sessions in `sessions` or else in memory; answers its consumer,
/// the address it listens on and the handle that lets it end in good order.
///
/// # Errors
/// When it cannot listen, or its certificates or sessions cannot be loaded.
pub async fn endpoint(
    options: EndpointOptions,
    ids: Arc<IdGenerator>,
    clock: Arc<dyn Clock>,
    sessions: Option<Arc<dyn SessionStore>>,
) -> Result<(BoxConsumer, SocketAddr, EndpointHandle), ConnectError> {
    let Endpoint { address, consumer, handle } = match sessions {
        Some(sessions) => Endpoint::bind_with_store(options, ids, clock, sessions).await?,
        None => Endpoint::bind(options, ids, clock).await?,
    };
    Ok((BoxConsumer::new(consumer), address, handle))
}

/// A client of an outside broker. It connects when the service opens it, and again whenever it has to.
///
/// # Errors
/// When the options cannot work or a certificate cannot be loaded.
pub fn broker(
    options: BrokerOptions,
    ids: Arc<IdGenerator>,
    clock: Arc<dyn Clock>,
    health: StageHealth,
    seed: u64,
) -> Result<BoxConsumer, ConnectError> {
    Ok(BoxConsumer::new(BrokerConsumer::new(options, BrokerParts { ids, clock, health, seed })?))
}
