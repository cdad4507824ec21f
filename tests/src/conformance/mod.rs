//! What every engine behind a seam keeps to, as plain functions over the seam: an engine's test calls each.

pub mod ledger;
pub mod limiter;
pub mod queue;
