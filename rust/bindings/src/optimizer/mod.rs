//! What an optimizer object says: its groups and its states.

pub(crate) mod dicts;
pub(crate) mod group;
pub(crate) mod rule;
pub(crate) mod state_map;
pub(crate) mod traced;
