//! The counts of a run of results. Pure: any order and any repetition of the same results make the same summary.

use std::collections::{BTreeMap, HashMap};

use pixfleet_shared::{
    batch::{self, BatchEvent, BatchState},
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
    outcomes: [u64; Outcome::ALL.len()],
    cached: u64,
    latest: Option<BatchEvent>,
    complete: Option<BatchEvent>,
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
    /// Those of them that were answered before: no call was made.
    pub cached: u64,
    /// Refused for good: this image will never work at this model.
    pub failed: u64,
    /// Given up; they wait as dead letters.
    pub dead: u64,
    /// The batch was cancelled first: no call was made.
    pub cancelled: u64,
    /// A call left, and its answer never came; they wait as dead letters.
    pub ambiguous: u64,
    /// Results that the batch promised, once its enqueue has ended.
    pub expected: Option<u64>,
}

impl Tally {
    /// A tally that remembers at most `bound` results (and as many calls) to know a repetition.
    pub(crate) fn bounded(bound: usize) -> Self {
        Self {
            seen: Seen::bounded(bound),
            outcomes: [0; Outcome::ALL.len()],
            cached: 0,
            latest: None,
            complete: None,
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
        let sight = self.outcome(result.id, result.outcome);
        // An answer is the best that there is: nothing takes its place any more.
        self.cached += u64::from(sight != Sight::Repeated && result.cached && result.outcome == Outcome::Ok);
        sight
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
        let kept = match event.state {
            // Said by a worker, perhaps while a second enqueue has opened the batch again.
            BatchState::Complete => &mut self.complete,
            BatchState::Opened | BatchState::Closed => &mut self.latest,
        };
        if kept.as_ref().is_none_or(|latest| order(latest) < order(&event)) {
            *kept = Some(event);
        }
    }

    /// What the batch's results count as, as its end was announced, where that is the end of all that is expected.
    pub(crate) fn announced(&self) -> Option<batch::Tally> {
        let complete = self.complete.as_ref().filter(|event| Some(event.results) == self.expected());
        complete.and_then(|event| event.tally)
    }

    fn expected(&self) -> Option<u64> {
        match &self.latest {
            Some(latest) => (latest.state == BatchState::Closed).then_some(latest.results),
            // The log does not go back to the end of the enqueue.
            None => self.complete.as_ref().map(|event| event.results),
        }
    }

    /// The counts so far.
    pub(crate) fn counts(&self) -> Counts {
        let of = |outcome: Outcome| self.outcomes[outcome as usize];
        Counts {
            results: self.outcomes.iter().sum(),
            done: of(Outcome::Ok),
            failed: of(Outcome::Rejected),
            cached: self.cached,
            dead: of(Outcome::Dead),
            cancelled: of(Outcome::Cancelled),
            ambiguous: of(Outcome::Ambiguous),
            expected: self.expected(),
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

    /// By their ends, for people; what is rare is said where there is some.
    pub(crate) fn in_words(&self) -> String {
        let Self { done, cached, failed, dead, cancelled, ambiguous, .. } = *self;
        let some = |count: u64, text: String| if count > 0 { text } else { String::new() };
        format!(
            "{done} done{}, {failed} failed, {dead} dead{}{}",
            some(cached, format!(" ({cached} of them answered before)")),
            some(cancelled, format!(", {cancelled} cancelled")),
            some(ambiguous, format!(", {ambiguous} ambiguous"))
        )
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
    fn a_complete_event_that_comes_late_does_not_close_a_batch_that_is_open_again() {
        let mut tally = Tally::bounded(100);
        tally.event(event(BatchState::Complete, 1, 12));
        tally.result(&sample("1", "m", Outcome::Cancelled, 1));
        assert!(tally.counts().complete(), "the log may not go back to the end of the enqueue");
        tally.event(event(BatchState::Opened, 1, 11));
        assert!(!tally.counts().complete());
    }

    #[test]
    fn every_outcome_is_counted_and_the_rare_ones_are_said_where_there_are_some() {
        let mut tally = Tally::bounded(100);
        for (number, outcome) in Outcome::ALL.into_iter().enumerate() {
            tally.result(&sample(&number.to_string(), "m", outcome, 1));
        }
        let before = ImageResult { cached: true, call: None, ..sample("9", "m", Outcome::Ok, 1) };
        tally.result(&before);
        tally.result(&before);
        assert_eq!(
            tally.counts().in_words(),
            "2 done (1 of them answered before), 1 failed, 1 dead, 1 cancelled, 1 ambiguous"
        );
        assert_eq!(Counts::default().in_words(), "0 done, 0 failed, 0 dead");
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
