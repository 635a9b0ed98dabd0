//! Google Pub/Sub: consumer, publisher, dead letters, and the form of a message on the wire.
