//! The scripts of the limiter and of the ledger. Each is loaded with every new connection, so that a call of one is a single
//! round trip.

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
    pub(super) depart: Script,
    pub(super) answered: Script,
    pub(super) settled: Script,
    pub(super) take_up: Script,
    pub(super) reopen: Script,
    pub(super) expect: Script,
    pub(super) say_complete: Script,
    pub(super) hold: Script,
    pub(super) claim: Script,
    pub(super) give_up: Script,
}

/// A script behind what is known of a job's state.
macro_rules! on_state {
    ($file:literal) => {
        concat!(include_str!("state.lua"), include_str!($file))
    };
}

const DEPART: &str = on_state!("depart.lua");
const ANSWERED: &str = on_state!("answered.lua");
const SETTLED: &str = on_state!("settled.lua");
const TAKE_UP: &str = on_state!("take_up.lua");
const REOPEN: &str = on_state!("reopen.lua");
const EXPECT: &str = on_state!("expect.lua");
const SAY_COMPLETE: &str = include_str!("say_complete.lua");
const HOLD: &str = include_str!("hold.lua");
const CLAIM: &str = include_str!("claim.lua");
const GIVE_UP: &str = include_str!("give_up.lua");

/// The ledger's, for a round trip that brings along what a server forgot.
pub(super) const OF_THE_LEDGER: [&str; 10] =
    [DEPART, ANSWERED, SETTLED, TAKE_UP, REOPEN, EXPECT, SAY_COMPLETE, HOLD, CLAIM, GIVE_UP];

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
            depart: Script::new(DEPART),
            answered: Script::new(ANSWERED),
            settled: Script::new(SETTLED),
            take_up: Script::new(TAKE_UP),
            reopen: Script::new(REOPEN),
            expect: Script::new(EXPECT),
            say_complete: Script::new(SAY_COMPLETE),
            hold: Script::new(HOLD),
            claim: Script::new(CLAIM),
            give_up: Script::new(GIVE_UP),
        }
    }

    pub(super) fn all(&self) -> [&Script; 19] {
        let Self { reserve, hold_off, open, late, refund, remember, amend, share, look, .. } = self;
        let Self { depart, answered, settled, take_up, reopen, expect, say_complete, .. } = self;
        let Self { hold, claim, give_up, .. } = self;
        [
            reserve,
            hold_off,
            open,
            late,
            refund,
            remember,
            amend,
            share,
            look,
            depart,
            answered,
            settled,
            take_up,
            reopen,
            expect,
            say_complete,
            hold,
            claim,
            give_up,
        ]
    }
}
