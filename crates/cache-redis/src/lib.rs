//! The Redis layer of the look-up cache, and presence in Redis.
