//! MQTT in: the endpoint of the embedded default and the client of an outside broker, both with acknowledgements
//! deferred until the bus has the message.

pub mod broker;
pub mod endpoint;
mod message;
pub mod routing;
mod tls;
mod topic;
