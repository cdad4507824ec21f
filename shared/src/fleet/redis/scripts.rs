//! The scripts of the limiter and of the ledger. Each is loaded with every new connection, so that a call of one is a single
//! round trip.

use redis::Script;

/// A script of the ledger. A round trip calls it by its hash, or by its text where the server forgot it.
pub(super) struct LedgerScript {
    pub(super) script: Script,
    pub(super) text: &'static str,
}

impl LedgerScript {
    pub(super) fn new(text: &'static str) -> Self {
        Self { script: Script::new(text), text }
    }
}

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
    pub(super) depart: LedgerScript,
    pub(super) answered: LedgerScript,
    pub(super) settled: LedgerScript,
    pub(super) take_up: LedgerScript,
    pub(super) reopen: LedgerScript,
    pub(super) expect: LedgerScript,
    pub(super) say_complete: LedgerScript,
    pub(super) hold: LedgerScript,
    pub(super) take_over: LedgerScript,
    pub(super) give_up: LedgerScript,
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
const TAKE_OVER: &str = include_str!("take_over.lua");
const GIVE_UP: &str = include_str!("give_up.lua");

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
            depart: LedgerScript::new(DEPART),
            answered: LedgerScript::new(ANSWERED),
            settled: LedgerScript::new(SETTLED),
            take_up: LedgerScript::new(TAKE_UP),
            reopen: LedgerScript::new(REOPEN),
            expect: LedgerScript::new(EXPECT),
            say_complete: LedgerScript::new(SAY_COMPLETE),
            hold: LedgerScript::new(HOLD),
            take_over: LedgerScript::new(TAKE_OVER),
            give_up: LedgerScript::new(GIVE_UP),
        }
    }

    pub(super) fn all(&self) -> [&Script; 19] {
        let Self { reserve, hold_off, open, late, refund, remember, amend, share, look, .. } = self;
        let Self { depart, answered, settled, take_up, reopen, expect, say_complete, .. } = self;
        let Self { hold, take_over, give_up, .. } = self;
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
            &depart.script,
            &answered.script,
            &settled.script,
            &take_up.script,
            &reopen.script,
            &expect.script,
            &say_complete.script,
            &hold.script,
            &take_over.script,
            &give_up.script,
        ]
    }
}
