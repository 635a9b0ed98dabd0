//! Names that cross a wire or a file: message attributes and the marker words in them.
//!
//! Names without a dot are ours. What a device sets through MQTT 5 user properties arrives under
//! [`USER_PREFIX`] and can therefore never take one of our names.

/// Full MQTT topic the message arrived on.
pub const TOPIC: &str = "mqtt_topic";
/// Name of the route that matched.
pub const ROUTE: &str = "route_name";
/// Device id.
pub const DEVICE_ID: &str = "device_id";
/// MQTT quality of service of the PUBLISH: `0`, `1` or `2`.
pub const QOS: &str = "mqtt_qos";
/// `true` on a PUBLISH with the retain flag; absent otherwise.
pub const RETAIN: &str = "mqtt_retain";
/// `true` on a PUBLISH with the dup flag; absent otherwise.
pub const DUP: &str = "mqtt_dup";
/// `true` on a message published as a client's will; absent otherwise.
pub const WILL: &str = "mqtt_will";
/// MQTT packet identifier; absent for QoS 0.
pub const PACKET_ID: &str = "mqtt_packet_id";
/// MQTT client identifier of the device.
pub const CLIENT_ID: &str = "mqtt_client_id";
/// Content type of the payload, when the sender named one.
pub const CONTENT_TYPE: &str = "content_type";
/// The device's own message id, when the configuration trusts it.
pub const FOREIGN_ID: &str = "foreign_id";
/// Prefix of what a device sets itself (MQTT 5 user properties).
pub const USER_PREFIX: &str = "user.";
/// Set by the enrichment stage: [`ENRICHED`], [`UNKNOWN_DEVICE`] or [`NO_KEY`].
pub const ENRICHMENT_STATUS: &str = "enrichment_status";
/// The device was found and its data added.
pub const ENRICHED: &str = "enriched";
/// The registry does not know the device.
pub const UNKNOWN_DEVICE: &str = "unknown-device";
/// The message names no device.
pub const NO_KEY: &str = "no-key";
