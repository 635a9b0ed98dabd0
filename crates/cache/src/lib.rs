//! Layered look-up by key: LRU with ages, single-flight, negative entries, fallbacks, and a presence cache.
