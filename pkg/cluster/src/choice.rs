//! The choice of nodes.
