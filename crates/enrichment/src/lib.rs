//! Adds looked-up data to messages: key, fetch, apply.
