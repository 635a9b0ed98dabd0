//! The enrichment service: the raw topic in, device data added, the enriched topic out.
