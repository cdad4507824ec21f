//! The counts of a run of results. Pure: any order and any repetition of the same results make the same summary.

use std::collections::{BTreeMap, HashMap};

use pixfleet_shared::{
    batch::{BatchEvent, BatchState},
    id::Id,
    result::{Call, ImageResult, Outcome},
};

use super::{
    calls::{CallStatistics, Calls},
    seen::{Seen, Sight},
};

/// What is known of the results so far.
pub(crate) struct Tally {
    seen: Seen,
    outcomes: [u64; 3],
    latest: Option<BatchEvent>,
    calls_seen: Seen,
    calls: BTreeMap<String, Calls>,
    throttled: HashMap<[u8; 16], u32>,
    bound: usize,
}

/// The counts of a batch, or of whatever was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Counts {
    /// Distinct results.
    pub results: u64,
    /// Answered.
    pub done: u64,
    /// Refused for good: this image will never work at this model.
    pub failed: u64,
    /// Given up; they wait as dead letters.
    pub dead: u64,
    /// Results that the batch promised, once its enqueue has ended.
    pub expected: Option<u64>,
}

impl Tally {
    /// A tally that remembers at most `bound` results (and as many calls) to know a repetition.
    pub(crate) fn bounded(bound: usize) -> Self {
        Self {
            seen: Seen::bounded(bound),
            outcomes: [0; 3],
            latest: None,
            calls_seen: Seen::bounded(bound),
            calls: BTreeMap::new(),
            throttled: HashMap::new(),
            bound,
        }
    }

    /// Counts a result, and says whether it is news.
    pub(crate) fn result(&mut self, result: &ImageResult) -> Sight {
        if let Some(call) = &result.call {
            self.call(&result.provider, result.job, call);
        }
        self.outcome(result.id, result.outcome)
    }

    /// Counts a result of which no more than its id and its end are known.
    pub(crate) fn outcome(&mut self, id: Id, outcome: Outcome) -> Sight {
        let sight = self.seen.see(id, outcome);
        if let Sight::Better(before) = sight {
            self.outcomes[before as usize] -= 1;
        }
        if sight != Sight::Repeated {
            self.outcomes[outcome as usize] += 1;
        }
        sight
    }

    /// Whether a result of this id was counted.
    pub(crate) fn knows(&self, id: Id) -> bool {
        self.seen.knows(id)
    }

    /// Notes news of the batch: the latest counts. An enqueue that was opened again is not yet complete.
    pub(crate) fn event(&mut self, event: BatchEvent) {
        let order = |event: &BatchEvent| (event.at, event.state == BatchState::Closed, event.results);
        if self.latest.as_ref().is_none_or(|latest| order(latest) < order(&event)) {
            self.latest = Some(event);
        }
    }

    /// The counts so far.
    pub(crate) fn counts(&self) -> Counts {
        let of = |outcome: Outcome| self.outcomes[outcome as usize];
        Counts {
            results: self.outcomes.iter().sum(),
            done: of(Outcome::Ok),
            failed: of(Outcome::Rejected),
            dead: of(Outcome::Dead),
            expected: self
                .latest
                .as_ref()
                .filter(|event| event.state == BatchState::Closed)
                .map(|event| event.results),
        }
    }

    /// The statistics of the calls behind the results, for each provider.
    pub(crate) fn statistics(&self) -> Vec<CallStatistics> {
        self.calls.iter().map(|(provider, calls)| calls.statistics(provider)).collect()
    }

    fn call(&mut self, provider: &str, job: Id, call: &Call) {
        if !self.calls.contains_key(provider) {
            self.calls.insert(provider.to_owned(), Calls::default());
        }
        let Some(calls) = self.calls.get_mut(provider) else {
            return;
        };
        if self.calls_seen.see(call.id, Outcome::Ok) == Sight::New {
            calls.add(call);
        }
        // Each call of a job says how often the job was throttled before: the highest is the job's number.
        let known = self.throttled.get(&job.to_bytes()).copied().unwrap_or(0);
        if call.throttled > known {
            calls.throttled += u64::from(call.throttled - known);
            if known > 0 || self.throttled.len() < self.bound {
                self.throttled.insert(job.to_bytes(), call.throttled);
            }
        }
    }
}

impl Counts {
    /// Whether every promised result is here.
    pub(crate) fn complete(&self) -> bool {
        self.expected.is_some_and(|expected| self.results >= expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;
    use proptest::prelude::*;

    fn event(state: BatchState, results: u64, at: i64) -> BatchEvent {
        BatchEvent {
            v: 1,
            batch: "b".parse().unwrap(),
            state,
            jobs: results,
            results,
            at: jiff::Timestamp::from_second(at).unwrap(),
            tally: None,
        }
    }

    #[test]
    fn a_batch_is_complete_with_its_last_promised_result_and_not_while_an_enqueue_is_open() {
        let mut tally = Tally::bounded(100);
        tally.result(&sample("1", "m", Outcome::Ok, 1));
        assert!(!tally.counts().complete(), "how many there will be is not known yet");
        tally.event(event(BatchState::Closed, 1, 10));
        assert!(tally.counts().complete());
        tally.event(event(BatchState::Opened, 1, 11));
        assert!(!tally.counts().complete(), "a second enqueue adds to it");
        tally.event(event(BatchState::Closed, 2, 12));
        tally.result(&sample("2", "m", Outcome::Dead, 2));
        assert!(tally.counts().complete());
    }

    #[test]
    fn the_line_that_users_know_comes_from_the_calls() {
        let mut tally = Tally::bounded(1000);
        for n in 0..36 {
            let mut result = sample(&format!("image-{n}"), "m", Outcome::Ok, n);
            let call = result.call.as_mut().unwrap();
            call.sent_at = jiff::Timestamp::from_microsecond(i64::from(n) * 252_000).unwrap();
            call.duration_ms = 1163.0;
            tally.result(&result);
        }
        assert_eq!(
            tally.statistics()[0].to_string(),
            "36 requests in 8.8 s, average 1163 ms, 3.97 requests/s, 99.2 % of the limit (4/s), 0 429s"
        );
    }

    #[test]
    fn a_call_of_two_models_is_one_request_and_its_429s_count_once() {
        let mut tally = Tally::bounded(100);
        for model in ["a", "b"] {
            let mut result = sample("1", model, Outcome::Ok, 7);
            result.call.as_mut().unwrap().throttled = 3;
            tally.result(&result);
        }
        let statistics = &tally.statistics()[0];
        assert_eq!((statistics.requests, statistics.throttled), (1, 3));
    }

    proptest! {
        #[test]
        fn any_order_and_any_repetition_make_the_same_summary(
            facts in proptest::collection::vec((0u32..40, 0usize..3, 0u32..30, 0u32..4), 1..120),
            order in proptest::collection::vec(any::<prop::sample::Index>(), 0..300),
        ) {
            let results: Vec<ImageResult> = facts.iter().map(|(image, outcome, call, throttled)| {
                let mut result = sample(&format!("i{image}"), "m", Outcome::ALL[*outcome], *call);
                if let Some(call) = &mut result.call { call.throttled = *throttled; }
                result
            }).collect();
            let events = [event(BatchState::Opened, 0, 1), event(BatchState::Closed, 40, 2)];
            let mut once = Tally::bounded(1000);
            for result in &results { once.result(result); }
            for event in events.clone() { once.event(event); }
            let mut again = Tally::bounded(1000);
            for event in events.into_iter().rev() { again.event(event); }
            for index in &order { again.result(index.get(&results)); }
            for result in results.iter().rev() { again.result(result); }
            prop_assert_eq!(once.counts(), again.counts());
            prop_assert_eq!(once.statistics(), again.statistics());
        }
    }
}
