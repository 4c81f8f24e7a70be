//! The slow facts about a node.
