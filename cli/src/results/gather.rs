//! Gathers the results of an image into its summary. Pure; it holds a bounded number of results.

use std::collections::{BTreeMap, HashMap};

use pixfleet_shared::{
    batch::BatchName,
    result::{Answer, Failure, ImageResult, Outcome},
};
use serde::Serialize;

/// All the results of one image in one batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The batch.
    pub batch: BatchName,
    /// The user's id of the image.
    pub image: String,
    /// Its URL or path; null for inline bytes.
    pub source: Option<String>,
    /// Whether every result of the image is here. A row that is not complete may be followed by another one of
    /// the same image, with what came later.
    pub complete: bool,
    /// What each model saw, by provider and model.
    pub results: Vec<Seen>,
    /// The manifest's further columns.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// What one model saw. The provider's raw response is left out: a summary is held in memory until it is complete.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Seen {
    /// The provider.
    pub provider: String,
    /// The model.
    pub model: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What the model saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

type Key = (BatchName, String, Option<String>);

/// The images of which something, but not everything, has come.
pub(crate) struct Gather {
    models: Vec<String>,
    open: HashMap<Key, (u64, Summary)>,
    oldest: BTreeMap<u64, Key>,
    next: u64,
    held: usize,
    bound: usize,
}

impl Gather {
    /// Gathers `models` of each image (`model`, or `provider/model` where two providers share a name); an image is
    /// complete with the last of them. Without models, an image is complete when its batch is.
    /// At most `bound` results are held: past it, the image that waits longest leaves as it is.
    pub(crate) fn new(models: Vec<String>, bound: usize) -> Self {
        Self { models, open: HashMap::new(), oldest: BTreeMap::new(), next: 0, held: 0, bound }
    }

    /// Adds a result that was not seen before; what is complete, or has to make room, comes out.
    pub(crate) fn add(&mut self, result: &ImageResult) -> Vec<Summary> {
        let key = (result.batch.clone(), result.image.clone(), result.source.clone());
        let (at, summary) = self.open.entry(key.clone()).or_insert_with(|| {
            self.next += 1;
            (self.next, Summary::begin(result))
        });
        self.oldest.insert(*at, key.clone());
        self.held += usize::from(summary.put(result));
        summary.complete = !self.models.is_empty() && self.models.iter().all(|model| summary.answers(model));
        let mut out = Vec::new();
        if summary.complete {
            out.extend(self.take(&key));
        }
        while self.held > self.bound {
            let Some((_, oldest)) = self.oldest.first_key_value() else {
                break;
            };
            let oldest = oldest.clone();
            out.extend(self.take(&oldest));
        }
        out
    }

    /// Everything that is still held, the oldest first; `complete` when nothing more can come.
    pub(crate) fn finish(&mut self, complete: bool) -> Vec<Summary> {
        let keys: Vec<Key> = self.oldest.values().cloned().collect();
        let mut out: Vec<Summary> = keys.iter().filter_map(|key| self.take(key)).collect();
        for summary in &mut out {
            summary.complete = complete && self.models.is_empty();
        }
        out
    }

    fn take(&mut self, key: &Key) -> Option<Summary> {
        let (at, summary) = self.open.remove(key)?;
        self.oldest.remove(&at);
        self.held -= summary.results.len();
        Some(summary)
    }
}

impl Summary {
    fn begin(result: &ImageResult) -> Self {
        Self {
            batch: result.batch.clone(),
            image: result.image.clone(),
            source: result.source.clone(),
            complete: false,
            results: Vec::new(),
            metadata: result.metadata.clone(),
        }
    }

    /// Puts a result in its place, over a worse one of the same model; says whether it took a new place.
    fn put(&mut self, result: &ImageResult) -> bool {
        let place = |seen: &Seen| {
            (seen.provider.as_str(), seen.model.as_str()).cmp(&(&result.provider, &result.model))
        };
        match self.results.binary_search_by(place) {
            Ok(at) if self.results[at].outcome > result.outcome => self.results[at] = Seen::of(result),
            Ok(_) => {}
            Err(at) => {
                self.results.insert(at, Seen::of(result));
                return true;
            }
        }
        false
    }

    /// What `column` (`model` or `provider/model`) saw.
    pub(crate) fn find(&self, column: &str) -> Option<&Seen> {
        self.results.iter().find(|seen| seen.is(column))
    }

    fn answers(&self, column: &str) -> bool {
        self.find(column).is_some()
    }
}

impl Seen {
    fn of(result: &ImageResult) -> Self {
        Self {
            provider: result.provider.clone(),
            model: result.model.clone(),
            outcome: result.outcome,
            answer: result.answer.clone().map(|answer| Answer { raw: None, ..answer }),
            failure: result.failure.clone(),
        }
    }

    /// Whether `column` (`model` or `provider/model`) names it.
    pub(crate) fn is(&self, column: &str) -> bool {
        column == self.model
            || column.strip_prefix(self.provider.as_str()).and_then(|rest| rest.strip_prefix('/'))
                == Some(self.model.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::sample;
    use proptest::prelude::*;

    fn models(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn an_image_leaves_with_the_last_of_its_models() {
        let mut gather = Gather::new(models(&["a", "restb/b"]), 100);
        assert_eq!(gather.add(&sample("1", "b", Outcome::Ok, 1)), []);
        let out = gather.add(&sample("1", "a", Outcome::Rejected, 2));
        assert_eq!((out.len(), out[0].complete, out[0].results.len()), (1, true, 2));
        assert_eq!(gather.finish(true), []);
    }

    #[test]
    fn without_a_list_of_models_the_end_of_the_batch_completes_every_image() {
        let mut gather = Gather::new(Vec::new(), 100);
        gather.add(&sample("1", "a", Outcome::Ok, 1));
        gather.add(&sample("2", "a", Outcome::Ok, 2));
        let out = gather.finish(true);
        assert_eq!(
            out.iter().map(|s| (s.image.as_str(), s.complete)).collect::<Vec<_>>(),
            [("1", true), ("2", true)]
        );
    }

    #[test]
    fn past_the_bound_the_image_that_waits_longest_leaves_as_it_is() {
        let mut gather = Gather::new(models(&["a", "b"]), 2);
        gather.add(&sample("1", "a", Outcome::Ok, 1));
        gather.add(&sample("2", "a", Outcome::Ok, 2));
        let out = gather.add(&sample("3", "a", Outcome::Ok, 3));
        assert_eq!((out.len(), out[0].image.as_str(), out[0].complete), (1, "1", false));
    }

    proptest! {
        #[test]
        fn any_order_and_any_repetition_make_the_same_summaries(
            order in Just((0u32..24).collect::<Vec<_>>()).prop_shuffle(),
            repeated in proptest::collection::vec(0u32..24, 0..20),
        ) {
            let result = |n: u32| {
                let outcome = if n.is_multiple_of(5) { Outcome::Dead } else { Outcome::Ok };
                sample(&format!("i{}", n / 3), ["a", "b", "c"][n as usize % 3], outcome, n)
            };
            let run = |numbers: &mut dyn Iterator<Item = u32>, models: Vec<String>| {
                let mut gather = Gather::new(models, 1000);
                let mut out: Vec<Summary> = numbers.flat_map(|n| gather.add(&result(n))).collect();
                out.extend(gather.finish(true));
                out.sort_by(|one, other| one.image.cmp(&other.image));
                out
            };
            let expected = run(&mut (0..24), models(&["a", "b", "c"]));
            prop_assert_eq!(expected.len(), 8);
            prop_assert!(expected.iter().all(|summary| summary.complete && summary.results.len() == 3));
            prop_assert_eq!(&run(&mut order.iter().copied(), models(&["a", "b", "c"])), &expected);
            let noisy = repeated.iter().chain(&order).copied();
            prop_assert_eq!(&run(&mut noisy.clone(), Vec::new()), &expected);
        }
    }
}
