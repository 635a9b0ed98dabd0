//! The archive service: the enriched topic in, objects by key out.
