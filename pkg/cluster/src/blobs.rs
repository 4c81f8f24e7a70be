//! The blobs and results of other nodes.
