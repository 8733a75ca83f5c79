//! The KV cache without its bytes: which tokens lie in which page, who shares a page, and which
//! format a page's parts are sealed in.
//!
//! A *page* is [`Plan::page`] consecutive tokens of one sequence, for all layers; inside it a *part*
//! per layer and [`Side`]. New tokens go to the *open tail* of their sequence; the oldest of them are
//! sealed into a page once there are enough newer ones. Sealed pages are immutable and
//! reference-counted. A backend keeps the bytes under the same [`PageId`]s. A page that has become old is sealed again in
//! a smaller format, if the policy says so. A sequence that is full forgets pages in its middle, if it shall;
//! one whose text begins as another's did takes the pages of that beginning.
//!
//! Recurrent layers have a state of constant size instead. It cannot be taken back token by token, so a
//! sequence keeps *snapshots* of it: copies made at page boundaries, newest ones exact, a bounded number.
#![forbid(unsafe_code)]

mod overflow;
mod plan;
mod policy;
mod prefix;
mod sequence;
mod state;

pub use overflow::{Moved, Overflow};
pub use plan::{Age, KvLayer, LayerPlan, Plan, SidePlan, centred};
pub use policy::{DECAYS, LayerRule, PRESETS, Policy, PolicyError, Preset, Tier};
pub use prefix::{GivenUp, Prefix, Prefixes};
pub use sequence::{
    BadSequence, Freed, PageId, Pages, SavedSequence, Section, Sequence, Span, TruncateError,
};
pub use state::{EXACT_SNAPSHOTS, Snapshots, StateShape};

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Keys.
    K = 0,
    /// Values.
    V = 1,
}

impl Side {
    /// Both sides, keys first.
    pub const BOTH: [Side; 2] = [Side::K, Side::V];
}
