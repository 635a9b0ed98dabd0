//! MQTT in: the endpoint of the embedded default and the client of an outside broker, both with acknowledgements
//! deferred until the bus has the message.

pub mod broker;
pub mod endpoint;
pub mod message;
pub mod routing;
pub mod tls;
pub mod topic;
