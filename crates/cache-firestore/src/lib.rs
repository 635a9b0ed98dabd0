//! Firestore as the source of truth of look-ups: documents by id, a listener for what changes, and presence.
