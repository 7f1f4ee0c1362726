//! A step, of a torch optimizer or over arrays.

pub(crate) mod array_item;
pub(crate) mod arrays;
pub(crate) mod checks;
pub(crate) mod class;
pub(crate) mod counters;
pub(crate) mod described;
pub(crate) mod guard;
pub(crate) mod item;
pub(crate) mod known;
pub(crate) mod left;
pub(crate) mod look;
pub(crate) mod look_up;
pub(crate) mod matched;
pub(crate) mod order;
pub(crate) mod overlaps;
pub(crate) mod plan;
pub(crate) mod ranks;
pub(crate) mod routed;
pub(crate) mod shards;
pub(crate) mod sparse;
pub(crate) mod states;
pub(crate) mod steady;
pub(crate) mod survey;
pub(crate) mod versions;
pub(crate) mod watch;
pub(crate) mod write;
