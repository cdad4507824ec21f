//! The limiter's scripts. Each is loaded with every new connection, so that a call of one is a single round trip.

use redis::Script;

/// All of them.
pub(super) struct Scripts {
    pub(super) reserve: Script,
    pub(super) hold_off: Script,
    pub(super) open: Script,
    pub(super) late: Script,
    pub(super) refund: Script,
    pub(super) remember: Script,
    pub(super) amend: Script,
    pub(super) share: Script,
    pub(super) look: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            reserve: Script::new(include_str!("reserve.lua")),
            hold_off: Script::new(include_str!("hold_off.lua")),
            open: Script::new(include_str!("open.lua")),
            late: Script::new(include_str!("late.lua")),
            refund: Script::new(include_str!("refund.lua")),
            remember: Script::new(include_str!("remember.lua")),
            amend: Script::new(include_str!("amend.lua")),
            share: Script::new(include_str!("share.lua")),
            look: Script::new(include_str!("look.lua")),
        }
    }

    pub(super) fn all(&self) -> [&Script; 9] {
        let Self { reserve, hold_off, open, late, refund, remember, amend, share, look } = self;
        [reserve, hold_off, open, late, refund, remember, amend, share, look]
    }
}
