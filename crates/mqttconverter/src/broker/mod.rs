//! The client of an outside MQTT broker.
//!
//! ```text
//!            PUBLISH                       next()
//!  broker ────────────► network task ──► Session ──► Chunk ──► pipeline
//!     ▲                  │      ▲          │  ▲                   │
//!     └──────────────────┘      └──────────┘  └───── settle ◄─────┘
//!        PUBACK, in order         notify            verdicts
//! ```
//!
//! - **Deferred acknowledgement.** A PUBACK is written when the pipeline has acknowledged the message and every one
//!   before it on this connection (MQTT-4.6.0-2). The session is persistent, so the broker sends again what has no
//!   PUBACK.
//! - **One network task, never blocked.** It reads, writes and keeps the connection alive in one `select`; writing
//!   never waits for reading, nor the other way round. At the window (messages or bytes in flight) it stops *reading*,
//!   and still sends PINGREQ, so a pipeline that stalls for hours costs no connection and drops nothing. In MQTT 5 the
//!   broker learns the window as receive maximum; for MQTT 3.1.1, for QoS 0, and for brokers that do not keep to their
//!   own limits, not reading is what bounds memory.
//! - **No verdict on a connection it does not belong to.** Slots belong to a connection; see `session.rs`. When a
//!   resumed session brings a message again that is still here, the copy takes the old slot's place: the pipeline sees
//!   it once, and its PUBACK goes to the connection that asks for it. Once a PUBACK is written, a copy can no longer be
//!   told from a new message; it becomes one, with the attribute `mqtt_dup`, and is counted.
//! - **A nack** leaves the message without PUBACK and hands it out again after 1 s, doubling to a minute, with its id
//!   and a raised attempt. The connection stays: closing it would bring back the whole window for one message, and
//!   would lose it at QoS 0 or when the broker has forgotten the session. A process that ends meanwhile loses nothing,
//!   the broker still holds it.
//! - **The broker may be away**, at the start too. [`BrokerConsumer`] says in its health line why it is not ready and
//!   tries again, 1 s to 120 s apart with jitter.

mod backoff;
mod client;
mod client_v4;
mod client_v5;
mod connection;
mod consumer;
mod error;
mod network;
mod options;
mod session;

pub use consumer::{BrokerConsumer, BrokerParts};
pub use error::BrokerError;
pub use options::{BrokerOptions, Protocol, Secret, Subscription};
