//! How calls in flight are shared between processes that want more of them than there are. Pure.
//!
//! The Lua script `fleet/redis/share.lua` is its twin.

/// A process that has calls in flight, or wants some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party<Name> {
    /// Which one: breaks ties.
    pub name: Name,
    /// Calls that are its own now.
    pub calls: u32,
    /// Calls that it could use, those under way among them.
    pub wanted: u32,
}

/// What the first of the `parties` may have of `most` calls, `held` of which are under way there: its fair part, as far as
/// the others leave it. Nobody is ever given what another one has.
pub fn share<Name: Ord + Copy>(most: u32, held: u32, parties: &[Party<Name>]) -> u32 {
    let Some((me, others)) = parties.split_first() else { return held };
    let taken: u32 = others.iter().fold(0, |sum, other| sum.saturating_add(other.calls));
    held.max(fair(most, me.name, parties).min(most.saturating_sub(taken)))
}

/// What `name` would have if all were shared out: as much as it wants, or as much as the others that want more.
pub fn fair<Name: Ord + Copy>(most: u32, name: Name, parties: &[Party<Name>]) -> u32 {
    let mut by_want: Vec<&Party<Name>> = parties.iter().collect();
    by_want.sort_by_key(|party| (party.wanted, party.name));
    let (mut left, mut hungry) = (most, by_want.len() as u32);
    for party in by_want {
        let part = party.wanted.min(left / hungry.max(1));
        if party.name == name {
            return part;
        }
        (left, hungry) = (left - part, hungry - 1);
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn party(name: u8, calls: u32, wanted: u32) -> Party<u8> {
        Party { name, calls, wanted }
    }

    #[test]
    fn who_wants_little_has_it_and_the_rest_is_shared() {
        let parties = [party(0, 0, 50), party(1, 0, 2), party(2, 0, 50)];
        assert_eq!((0..3).map(|name| fair(10, name, &parties)).collect::<Vec<_>>(), [4, 2, 4]);
    }

    #[test]
    fn what_another_one_has_is_waited_for() {
        assert_eq!(share(10, 0, &[party(0, 0, 50), party(1, 10, 50)]), 0);
        assert_eq!(share(10, 8, &[party(1, 10, 50), party(0, 0, 50)]), 8, "it gives up what it does not use");
        assert_eq!(share(10, 0, &[party(0, 0, 50), party(1, 8, 50)]), 2);
    }

    proptest! {
        /// However processes come, go, and use their shares: never more than `most` in sum, and all of it is used when
        /// somebody wants it.
        #[test]
        fn shares_never_exceed_the_limit_and_reach_it(
            most in 1u32..40, steps in proptest::collection::vec((0usize..6, 0u32..30, 0.0f64..1.0), 1..200),
        ) {
            let mut parties: Vec<Party<usize>> = (0..6).map(|name| Party { name, calls: 0, wanted: 0 }).collect();
            let ask = |parties: &mut Vec<Party<usize>>, who: usize, held: u32, wanted: u32| {
                parties[who].wanted = wanted.max(held);
                let mut seen = vec![parties[who]];
                seen.extend(parties.iter().filter(|party| party.name != who && party.wanted + party.calls > 0));
                parties[who].calls = share(most, held, &seen);
            };
            for (who, wanted, used) in steps {
                let held = (f64::from(parties[who].calls) * used) as u32;
                ask(&mut parties, who, held, wanted);
                prop_assert!(parties.iter().map(|party| party.calls).sum::<u32>() <= most);
            }
            // Everybody asks again, with all of its calls ended.
            for _ in 0..3 {
                for who in 0..6 {
                    let wanted = parties[who].wanted;
                    ask(&mut parties, who, 0, wanted);
                }
            }
            let (had, wanted) = parties.iter().fold((0, 0), |(had, wanted), party| (had + party.calls, wanted + party.wanted));
            prop_assert_eq!(had, wanted.min(most));
        }
    }
}
