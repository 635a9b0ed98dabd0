//! The warehouse service: the enriched topic in, rows out.
