//! Archive: lines, batch keys, object names, the object store trait and the batch processor over it.
