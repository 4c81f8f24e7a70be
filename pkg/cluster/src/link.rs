//! The link between two nodes.
