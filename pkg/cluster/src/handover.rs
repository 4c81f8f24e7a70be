//! The handing over of actions.
