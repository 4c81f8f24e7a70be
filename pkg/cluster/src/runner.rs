//! The tasks of a node.
