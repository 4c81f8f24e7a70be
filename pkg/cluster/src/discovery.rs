//! The addresses at which other nodes may be.
