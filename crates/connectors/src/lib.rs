//! The one place that knows every adapter: a kind in the configuration becomes a consumer, publisher, look-up or sink.
