//! What is known of the connections that calls may leave on, and how many to open ahead. Pure.
//!
//! The pool inside the HTTP client tells nobody what it holds, so it is followed from outside: a call takes the
//! connection that became idle last, an answer that was read to its end gives one back, and what is idle too long is
//! gone. Where that turns out wrong, the client asks for a connection that was thought to be there, and it is learnt.

use std::time::{Duration, Instant};

/// Connections that are opened at the same time, at most.
const MOST_OPENING: usize = 4;
/// For so long no more connections are opened than turned out to be enough.
const ENOUGH_FOR: Duration = Duration::from_secs(60);
/// For so long none is opened ahead after one could not be: the calls find out by themselves.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// No server is thought to close an idle connection sooner than this: one that did had another reason.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);

/// The connections of one client to one API.
#[derive(Debug)]
pub(super) struct Ways {
    /// How long an idle connection lasts, at most.
    life: Duration,
    /// Since when each idle connection is idle, the last one last. With HTTP/2: when the one connection was last used.
    idle: Vec<Instant>,
    in_flight: usize,
    /// Calls that are about to leave.
    coming: usize,
    opening: usize,
    /// One connection carries all calls (HTTP/2).
    shared: bool,
    /// So many connections turned out to be enough, and until when that counts.
    enough: Option<(usize, Instant)>,
    refused_until: Option<Instant>,
}

/// How it stands with a first connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// There is one.
    There,
    /// Wait: one is being opened.
    Opening,
    /// Open one, and wait.
    Open,
    /// None could be opened just now.
    Refused,
}

impl Ways {
    /// No connection yet; an idle one is kept for `life`.
    pub(super) fn new(life: Duration) -> Self {
        Self {
            life,
            idle: Vec::new(),
            in_flight: 0,
            coming: 0,
            opening: 0,
            shared: false,
            enough: None,
            refused_until: None,
        }
    }

    /// A call is about to leave.
    pub(super) fn coming(&mut self) {
        self.coming += 1;
    }

    /// It does not leave after all, or it does now.
    pub(super) fn came(&mut self) {
        self.coming = self.coming.saturating_sub(1);
    }

    /// A call leaves; answers since when the connection that it takes has been idle, if it takes such a one.
    pub(super) fn left(&mut self, now: Instant) -> Option<Instant> {
        self.forget(now);
        self.in_flight += 1;
        if self.shared {
            return self.idle.last_mut().map(|used| std::mem::replace(used, now));
        }
        self.idle.pop()
    }

    /// A call that left asks for a connection: `idle_since` is the one that it was thought to take.
    pub(super) fn missed(&mut self, now: Instant, idle_since: Option<Instant>, kept: bool) {
        if let Some(since) = idle_since {
            // It was gone, and so are those that were idle for longer.
            self.life = self.life.min(now.saturating_duration_since(since)).max(SHORTEST_LIFE);
            self.idle.clear();
        }
        if !kept {
            self.enough = None;
        }
    }

    /// The call has ended; `reusable` when its connection may carry another one.
    pub(super) fn ended(&mut self, now: Instant, reusable: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        match (self.shared, reusable) {
            (false, true) => self.idle.push(now),
            (true, true) if self.idle.is_empty() => self.idle.push(now),
            (true, true) => self.idle.truncate(1),
            (true, false) => self.idle.clear(),
            (false, false) => {}
        }
    }

    /// How many connections to open now; they count as being opened from here on. `kept` were opened ahead.
    pub(super) fn open(&mut self, now: Instant, kept: usize) -> usize {
        self.forget(now);
        if self.refused_until.is_some() {
            return 0;
        }
        let have = self.idle.len() + kept + self.opening;
        let missing = if self.shared {
            usize::from(self.coming > 0 && have == 0)
        } else {
            self.coming.saturating_sub(have)
        };
        let enough = self.enough.map_or(usize::MAX, |(enough, _)| enough);
        let opened = missing
            .min(enough.saturating_sub(self.in_flight + have))
            .min(MOST_OPENING.saturating_sub(self.opening));
        self.opening += opened;
        opened
    }

    /// What to do about a first connection. Where it is to be opened, it counts as being opened from here on.
    pub(super) fn first(&mut self, now: Instant, kept: usize) -> First {
        self.forget(now);
        if self.idle.len() + kept + self.in_flight > 0 {
            First::There
        } else if self.opening > 0 {
            First::Opening
        } else if self.refused_until.is_some() {
            First::Refused
        } else {
            self.opening = 1;
            First::Open
        }
    }

    /// Whether one connection carries all calls, as an answer or a handshake has shown.
    pub(super) fn shared(&mut self, shared: bool) {
        self.shared = shared;
    }

    /// An opening is over.
    pub(super) fn opened(&mut self, now: Instant, done: bool) {
        self.opening = self.opening.saturating_sub(1);
        self.refused_until = (!done).then(|| now + REFUSED_FOR);
    }

    /// A connection that was opened ahead has grown too old, and nobody took it: what is left is enough for now.
    pub(super) fn unused(&mut self, now: Instant) {
        self.forget(now);
        // One is always worth having.
        let enough = (self.in_flight + self.idle.len()).max(1);
        self.enough = Some((enough, now + ENOUGH_FOR));
    }

    fn forget(&mut self, now: Instant) {
        let life = self.life;
        self.idle.retain(|since| now.saturating_duration_since(*since) < life);
        self.enough = self.enough.filter(|(_, until)| *until > now);
        self.refused_until = self.refused_until.filter(|until| *until > now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFE: Duration = Duration::from_secs(30);

    /// Calls come, leave and end, one after the other.
    fn one_call(ways: &mut Ways, now: Instant) -> usize {
        ways.coming();
        let opened = ways.open(now, 0);
        ways.came();
        ways.left(now);
        ways.ended(now, true);
        opened
    }

    #[test]
    fn calls_in_a_row_need_one_connection() {
        let (mut ways, now) = (Ways::new(LIFE), Instant::now());
        assert_eq!(one_call(&mut ways, now), 1);
        ways.opened(now, true);
        for seconds in 0..100 {
            assert_eq!(one_call(&mut ways, now + Duration::from_secs(seconds)), 0);
        }
    }

    #[test]
    fn a_call_that_comes_while_all_connections_are_in_use_gets_one_of_its_own() {
        let (mut ways, now) = (Ways::new(LIFE), Instant::now());
        ways.left(now);
        ways.coming();
        assert_eq!(ways.open(now, 0), 1);
        assert_eq!(ways.open(now, 0), 0, "it is being opened");
        ways.opened(now, true);
        assert_eq!(ways.open(now, 1), 0, "it is kept ready");
    }

    #[test]
    fn a_connection_that_has_been_idle_for_too_long_is_not_counted_on() {
        let (mut ways, now) = (Ways::new(LIFE), Instant::now());
        ways.left(now);
        ways.ended(now, true);
        ways.coming();
        assert_eq!(ways.open(now + LIFE / 2, 0), 0);
        assert_eq!(ways.open(now + LIFE, 0), 1);
    }

    #[test]
    fn a_server_that_keeps_connections_for_less_than_we_do_is_learnt() {
        let (mut ways, now) = (Ways::new(LIFE), Instant::now());
        ways.left(now);
        ways.ended(now, true);
        let later = now + Duration::from_secs(6);
        let idle_since = ways.left(later);
        assert_eq!(idle_since, Some(now));
        ways.missed(later, idle_since, false);
        ways.ended(later, true);
        ways.coming();
        assert_eq!(ways.open(later + Duration::from_secs(5), 0), 0);
        assert_eq!(ways.open(later + Duration::from_secs(6), 0), 1);
    }

    #[test]
    fn what_nobody_took_is_not_opened_again_at_once() {
        let (mut ways, now) = (Ways::new(LIFE), Instant::now());
        ways.left(now);
        ways.coming();
        assert_eq!(ways.open(now, 0), 1);
        ways.opened(now, true);
        ways.unused(now);
        assert_eq!(ways.open(now, 0), 0, "one was enough");
        assert_eq!(ways.open(now + ENOUGH_FOR, 0), 1, "and is tried again");
        ways.opened(now, true);
        ways.unused(now);
        ways.missed(now, None, false);
        assert_eq!(ways.open(now, 0), 1, "it was not enough");
    }

    #[test]
    fn with_http_2_one_connection_is_enough_for_all() {
        let (mut ways, now) = (Ways::new(LIFE), Instant::now());
        ways.left(now);
        ways.shared(true);
        ways.ended(now, true);
        for _ in 0..10 {
            ways.coming();
            ways.left(now);
        }
        assert_eq!(ways.open(now, 0), 0);
        assert_eq!(ways.open(now + LIFE, 0), 1, "it is gone after a silence");
    }

    #[test]
    fn the_first_connection_is_opened_once() {
        let (mut ways, now) = (Ways::new(LIFE), Instant::now());
        assert_eq!([ways.first(now, 0), ways.first(now, 0)], [First::Open, First::Opening]);
        ways.opened(now, true);
        assert_eq!(ways.first(now, 1), First::There);
        ways.left(now);
        assert_eq!(ways.first(now, 0), First::There);
    }

    #[test]
    fn after_an_opening_that_failed_the_calls_find_out_by_themselves() {
        let (mut ways, now) = (Ways::new(LIFE), Instant::now());
        ways.coming();
        assert_eq!(ways.open(now, 0), 1);
        ways.opened(now, false);
        assert_eq!(ways.open(now, 0), 0);
        assert_eq!(ways.first(now, 0), First::Refused);
        assert_eq!(ways.open(now + REFUSED_FOR, 0), 1);
    }

    proptest! {
        /// However calls and openings interleave, no more is opened than is coming, and few at a time.
        #[test]
        fn never_more_is_opened_than_is_coming(steps in proptest::collection::vec(0u8..7, 1..200)) {
            let start = Instant::now();
            let mut ways = Ways::new(LIFE);
            let (mut coming, mut opening) = (0usize, 0usize);
            for (count, step) in steps.into_iter().enumerate() {
                let now = start + Duration::from_millis(100 * count as u64);
                match step {
                    0 => { ways.coming(); coming += 1 }
                    1 => { ways.came(); coming = coming.saturating_sub(1) }
                    2 => { ways.left(now); }
                    3 => ways.ended(now, true),
                    4 => ways.unused(now),
                    5 if opening > 0 => { ways.opened(now, true); opening -= 1 }
                    _ => {
                        let opened = ways.open(now, 0);
                        prop_assert!(opened <= coming);
                        opening += opened;
                        prop_assert!(opening <= MOST_OPENING);
                    }
                }
            }
        }
    }
}
