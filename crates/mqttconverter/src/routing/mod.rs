//! From an MQTT message to a topic of the bus: route, device id, the device's own message id.
//!
//! ```text
//! Message ──► IngestTransformer ──► Routed { topic, message } ──► RoutedPublisher ──► one Publisher per topic
//!              first route that matches    attributes set           one answer per message
//! ```
//!
//! Routes stand in the one configuration file. The first whose filter matches the MQTT topic decides; a message that
//! none takes is a permanent error with reason [`NO_ROUTE`], so it is kept as a dead letter before it is acknowledged.

mod device_id;
mod message_id;
mod mistake;
mod pointer;
mod publisher;
mod routes;
mod transformer;

pub use device_id::{DeviceIdRule, DeviceIdSource, DeviceIds};
pub use message_id::{MessageIdRule, MessageIds};
pub use mistake::Mistake;
pub use pointer::is_too_deep;
pub use publisher::RoutedPublisher;
pub use routes::{NO_ROUTE, Route, Routes, TopicIndex, default_routes};
pub use transformer::{IngestTransformer, Routed};

/// Longest device id or message id taken from a topic or a payload, in bytes. They become attributes, keys and parts of
/// object names.
pub const MAX_ID_BYTES: usize = 256;

/// An id that can be used: not empty, not longer than [`MAX_ID_BYTES`], free of control characters.
fn usable_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_ID_BYTES && !text.chars().any(char::is_control)
}
