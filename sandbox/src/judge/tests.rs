use proptest::prelude::*;

use super::*;

fn judge(rule: Rule, limit: u32, window_ms: u64) -> Judge {
    Judge::new(Judging { rule, limit, window_ms, count_refused: false })
}

/// Arrivals with gaps from none to a few windows, bursts included.
fn gaps() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![3 => Just(0u64), 5 => 0..20_000u64, 1 => 0..300_000u64], 1..400)
}

fn accepted(judge: &mut Judge, gaps: &[u64]) -> Vec<u64> {
    let mut now = 1_700_000_000_000_000;
    let mut passed = Vec::new();
    for gap in gaps {
        now += gap;
        if judge.arrive(now, 1) == Verdict::Accepted {
            passed.push(now);
        }
    }
    passed
}

fn most_in_any_window(times: &[u64], window_us: u64) -> usize {
    (0..times.len())
        .map(|i| times[i..].iter().take_while(|&&t| t - times[i] < window_us).count())
        .max()
        .unwrap_or(0)
}

proptest! {
    #[test]
    fn sliding_never_lets_more_than_n_pass_in_any_window(gaps in gaps(), limit in 1u32..20) {
        let passed = accepted(&mut judge(Rule::Sliding, limit, 100), &gaps);
        prop_assert!(most_in_any_window(&passed, 100_000) <= limit as usize);
    }

    #[test]
    fn sliding_refuses_only_when_the_window_is_full(gaps in gaps(), limit in 1u32..20) {
        let mut judge = judge(Rule::Sliding, limit, 100);
        let (mut now, mut passed) = (1_000_000u64, Vec::new());
        for gap in gaps {
            now += gap;
            let inside = passed.iter().filter(|&&at| now - at < 100_000).count();
            let verdict = judge.arrive(now, 1);
            prop_assert_eq!(verdict == Verdict::Accepted, inside < limit as usize);
            if verdict == Verdict::Accepted {
                passed.push(now);
            }
        }
    }

    #[test]
    fn fixed_counts_each_window_of_the_clock_apart(gaps in gaps(), limit in 1u32..20) {
        let mut judge = judge(Rule::Fixed, limit, 100);
        let (mut now, mut offered, mut passed) = (1_000_000u64, [0u32; 4000], [0u32; 4000]);
        for gap in gaps {
            now += gap;
            let window = (now / 100_000) as usize;
            if window >= offered.len() { break; }
            offered[window] += 1;
            passed[window] += u32::from(judge.arrive(now, 1) == Verdict::Accepted);
        }
        for (offered, passed) in offered.iter().zip(passed) {
            prop_assert_eq!(passed, (*offered).min(limit));
        }
    }

    #[test]
    fn bucket_never_lets_more_than_rate_times_t_plus_burst_pass(gaps in gaps(), limit in 1u32..50, burst in 1u32..20) {
        let passed = accepted(&mut judge(Rule::Bucket { burst }, limit, 100), &gaps);
        for (i, from) in passed.iter().enumerate() {
            for (j, to) in passed.iter().enumerate().skip(i) {
                let earned = u64::from(limit) * (to - from) / 100_000 + u64::from(burst);
                prop_assert!((j - i + 1) as u64 <= earned, "{} calls in {} us", j - i + 1, to - from);
            }
        }
    }

    #[test]
    fn a_client_at_the_rate_itself_pleases_a_bucket_for_ever(limit in 1u32..500, calls in 1usize..2000) {
        let mut judge = judge(Rule::Bucket { burst: 1 }, limit, 1_000);
        let spacing = 1_000_000u64.div_ceil(u64::from(limit));
        for call in 0..calls as u64 {
            prop_assert_eq!(judge.arrive(5_000_000 + call * spacing, 1), Verdict::Accepted);
        }
    }

    #[test]
    fn leaky_with_no_burst_keeps_a_whole_interval_of_milliseconds_between_calls(gaps in gaps()) {
        let passed = accepted(&mut judge(Rule::Leaky { burst: 0 }, 100, 1_000), &gaps);
        for pair in passed.windows(2) {
            prop_assert!(pair[1] / 1_000 - pair[0] / 1_000 >= 10, "{} us apart", pair[1] - pair[0]);
        }
    }

    #[test]
    fn leaky_lets_at_most_rate_times_t_plus_burst_plus_one_pass(gaps in gaps(), burst in 0u32..20) {
        let passed = accepted(&mut judge(Rule::Leaky { burst }, 100, 1_000), &gaps);
        for (i, from) in passed.iter().enumerate() {
            for (j, to) in passed.iter().enumerate().skip(i) {
                let earned = 100 * (to / 1_000 - from / 1_000) / 1_000 + u64::from(burst) + 1;
                prop_assert!((j - i + 1) as u64 <= earned, "{} calls in {} us", j - i + 1, to - from);
            }
        }
    }

    #[test]
    fn a_refused_call_passes_at_the_moment_it_was_told(gaps in gaps(), limit in 1u32..20, burst in 1u32..5) {
        for rule in [Rule::Fixed, Rule::Sliding, Rule::Bucket { burst }, Rule::Leaky { burst }] {
            let mut judge = judge(rule, limit, 100);
            let mut now = 1_000_000;
            for gap in &gaps {
                now += gap;
                if let Verdict::Refused { retry_at_us } = judge.arrive(now, 1) {
                    prop_assert!(retry_at_us > now, "{:?}: not in the future", rule);
                    prop_assert_eq!(judge.clone().arrive(retry_at_us, 1), Verdict::Accepted, "{:?}", rule);
                }
            }
        }
    }

    #[test]
    fn concurrent_never_has_more_than_n_in_flight(steps in prop::collection::vec(any::<bool>(), 1..300), limit in 1u32..10) {
        let mut judge = judge(Rule::Concurrent, limit, 1_000);
        let mut in_flight = 0;
        for (at, arrives) in steps.into_iter().enumerate() {
            if arrives {
                let passes = judge.arrive(at as u64, 1) == Verdict::Accepted;
                prop_assert_eq!(passes, in_flight < limit);
                in_flight += u32::from(passes);
            } else if in_flight > 0 {
                judge.finish();
                in_flight -= 1;
            }
        }
    }

    #[test]
    fn a_clock_that_steps_back_opens_no_gate(gaps in gaps(), back in 0u64..1_000_000) {
        let mut judge = judge(Rule::Sliding, 5, 100);
        let mut now = 2_000_000;
        for gap in gaps {
            now += gap;
            judge.arrive(now, 1);
        }
        let before = judge.clone().arrive(now, 1);
        prop_assert_eq!(judge.arrive(now - back, 1), before);
    }
}

#[test]
fn fixed_lets_two_windows_worth_pass_around_an_edge() {
    let mut judge = judge(Rule::Fixed, 4, 1_000);
    let passed = (0..5)
        .map(|i| 1_999_990 + i)
        .chain((0..5).map(|i| 2_000_000 + i))
        .filter(|&t| judge.arrive(t, 1) == Verdict::Accepted);
    assert_eq!(passed.count(), 8);
}

#[test]
fn a_retry_storm_never_recovers_where_refused_calls_count() {
    for rule in [Rule::Sliding, Rule::Bucket { burst: 2 }] {
        let mut stern = Judge::new(Judging { rule, limit: 10, window_ms: 1_000, count_refused: true });
        let storm =
            (1..2_000).filter(|i| stern.arrive(1_000_000 + i * 1_000, 1) == Verdict::Accepted).count();
        assert!(storm <= 10, "{rule:?} let {storm} of a storm pass");
        assert_eq!(stern.arrive(10_000_000, 1), Verdict::Accepted, "{rule:?} does not forgive after a rest");
    }
}

#[test]
fn a_call_counts_for_its_cost() {
    for rule in [Rule::Fixed, Rule::Sliding, Rule::Bucket { burst: 6 }, Rule::Leaky { burst: 5 }] {
        let mut judge = judge(rule, 6, 1_000);
        assert_eq!(judge.arrive(5_000_000, 4), Verdict::Accepted, "{rule:?}");
        assert!(matches!(judge.arrive(5_000_001, 3), Verdict::Refused { .. }), "{rule:?}");
        assert_eq!(judge.arrive(5_000_002, 2), Verdict::Accepted, "{rule:?}");
    }
}

#[test]
fn nginx_at_thirty_a_second_needs_thirty_four_milliseconds() {
    let passes = |spacing_ms: u64| {
        let mut judge = judge(Rule::Leaky { burst: 0 }, 30, 1_000);
        (0..100).filter(|i| judge.arrive(1_000_000 + i * spacing_ms * 1_000, 1) == Verdict::Accepted).count()
    };
    assert_eq!(passes(34), 100);
    assert_eq!(passes(33), 50, "33 ms is early every time, and every refusal costs a whole further gap");
}
