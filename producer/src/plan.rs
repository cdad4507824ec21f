//! The plan: which calls one image becomes, and what they cost. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pixfleet_shared::{
    batch::BatchName,
    budget::Budget,
    job::{Image, Job, MAX_JOB_BYTES, Priority, Unreadable},
    trace::TraceParent,
};

/// Bytes that a job may still grow by on its way (attempt counters), so that a retry is never oversize.
const GROWTH: usize = 256;
/// JSON writes a control character as six bytes (`\u0001`), the longest escape of one byte.
const LONGEST_ESCAPE: usize = 6;

/// What a provider charges, in its own units.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tariff {
    /// For each call.
    pub per_call: f64,
    /// For each model of a call.
    pub per_model: f64,
}

/// How each image of a batch is asked about: the provider, and the models of each call.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    provider: String,
    calls: Vec<Vec<String>>,
    models_per_call: usize,
    tariff: Tariff,
}

/// What every job of a batch has in common.
#[derive(Clone, Debug)]
pub struct Stamp {
    /// The batch.
    pub batch: BatchName,
    /// The class that its jobs wait in.
    pub priority: Priority,
    /// The queue of that class that the batch keeps to.
    pub lane: u8,
    /// Turns of the batch for each of one of weight 1.
    pub weight: u8,
    /// What the whole batch may spend.
    pub budget: Option<Budget>,
    /// After this moment no call is made for its jobs.
    pub deadline: Option<Timestamp>,
    /// Whether answers of before are passed over.
    pub refresh: bool,
    /// The trace of this enqueue; each job gets a child of it.
    pub trace: Option<TraceParent>,
}

/// Models that can't be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPlan {
    /// Nothing to ask.
    #[error("no model is named: give at least one, for example --models roomtype")]
    NoModel,
    /// The same question twice: it would be paid for twice and answered under one result id.
    #[error("model `{0}` is named twice: name it once")]
    Twice(String),
}

impl Plan {
    /// Groups `models`, in their order, into as few calls as `models_per_call` (at least 1) allows.
    ///
    /// # Errors
    /// [`BadPlan`] for no model, or one named twice.
    pub fn new(
        provider: impl Into<String>,
        models: &[String],
        models_per_call: usize,
        tariff: Tariff,
    ) -> Result<Self, BadPlan> {
        if models.is_empty() {
            return Err(BadPlan::NoModel);
        }
        if let Some(twice) = (1..models.len()).find(|&i| models[..i].contains(&models[i])) {
            return Err(BadPlan::Twice(models[twice].clone()));
        }
        let models_per_call = models_per_call.clamp(1, models.len());
        Ok(Self {
            provider: provider.into(),
            calls: models.chunks(models_per_call).map(<[String]>::to_vec).collect(),
            models_per_call,
            tariff,
        })
    }

    /// The provider's name.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// The models of each call that one image becomes.
    pub fn calls(&self) -> &[Vec<String>] {
        &self.calls
    }

    /// Every model, in the order given.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.calls.iter().flatten().map(String::as_str)
    }

    /// The most models that one call carries.
    pub fn models_per_call(&self) -> usize {
        self.models_per_call
    }

    /// What `calls` calls that carry `models` models in sum cost, in the provider's units.
    pub fn cost(&self, calls: u64, models: u64) -> f64 {
        calls as f64 * self.tariff.per_call + models as f64 * self.tariff.per_model
    }

    /// What each call of one image costs, in the provider's units.
    pub fn prices(&self) -> Vec<f64> {
        self.calls.iter().map(|models| self.cost(1, models.len() as u64)).collect()
    }

    /// The jobs of one image, one a call, all with its metadata.
    ///
    /// # Errors
    /// [`Unreadable::Oversize`] when one of them does not fit a message: no worker would read it.
    pub fn jobs(
        &self,
        stamp: &Stamp,
        image: &Image,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Vec<Job>, Unreadable> {
        let job = |models: &Vec<String>| {
            let mut job = Job::new(stamp.batch.clone(), image.clone(), self.provider.clone(), models.clone());
            job.priority = stamp.priority;
            job.lane = stamp.lane;
            job.weight = stamp.weight;
            job.budget = stamp.budget;
            job.deadline = stamp.deadline;
            job.refresh = stamp.refresh;
            job.metadata = metadata.clone();
            job.traceparent = stamp.trace.map(TraceParent::child);
            fits(&job).map(|()| job)
        };
        self.calls.iter().map(job).collect()
    }
}

/// About the bytes that a job's message takes: all that varies, without its escapes.
pub(crate) fn weight(job: &Job) -> usize {
    let metadata: usize = job.metadata.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
    let models: usize = job.models.iter().map(|model| model.len() + 3).sum();
    300 + job.image.id.len() + source_bytes(job) + job.provider.len() + models + metadata
}

fn source_bytes(job: &Job) -> usize {
    use pixfleet_shared::job::Source::{Inline, Object, Url};
    match &job.image.source {
        Url(text) | Inline(text) | Object(text) => text.len(),
    }
}

/// Whether the job's message keeps below the limit. It is written out only where its size leaves a doubt.
fn fits(job: &Job) -> Result<(), Unreadable> {
    if weight(job) * LONGEST_ESCAPE + GROWTH <= MAX_JOB_BYTES {
        return Ok(());
    }
    match job.to_message()?.len() + GROWTH {
        bytes if bytes > MAX_JOB_BYTES => Err(Unreadable::Oversize(bytes)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pixfleet_shared::job::Source;
    use proptest::prelude::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("m{i}")).collect()
    }

    fn stamp() -> Stamp {
        Stamp {
            batch: "b".parse().unwrap(),
            priority: Priority::Bulk,
            lane: 3,
            weight: 7,
            budget: Some(Budget::Calls(5)),
            deadline: Some(Timestamp::UNIX_EPOCH),
            refresh: true,
            trace: Some(TraceParent::random()),
        }
    }

    fn image(url: String) -> Image {
        Image { id: "1".into(), source: Source::Url(url) }
    }

    #[test]
    fn an_image_becomes_one_job_a_call_with_the_batch_stamped_on_each() {
        let plan = Plan::new("restb", &names(3), 2, Tariff::default()).unwrap();
        let metadata = BTreeMap::from([("listing".to_owned(), "7".to_owned())]);
        let stamp = stamp();
        let jobs = plan.jobs(&stamp, &image("https://e.com/1.jpg".into()), &metadata).unwrap();
        assert_eq!(jobs.iter().map(|j| j.models.join("+")).collect::<Vec<_>>(), ["m0+m1", "m2"]);
        for job in jobs {
            assert_eq!((job.priority, job.lane, &job.metadata), (Priority::Bulk, 3, &metadata));
            assert_eq!((job.weight, job.budget), (7, Some(Budget::Calls(5))));
            assert_eq!((job.deadline, job.refresh), (Some(Timestamp::UNIX_EPOCH), true));
            let (own, whole) = (job.traceparent.unwrap(), stamp.trace.unwrap());
            assert_eq!(own.trace_id(), whole.trace_id());
            assert_ne!(own, whole);
        }
    }

    #[test]
    fn no_model_and_a_model_named_twice_are_refused() {
        let twice = ["a".to_owned(), "b".to_owned(), "a".to_owned()];
        assert_eq!(Plan::new("p", &[], 1, Tariff::default()), Err(BadPlan::NoModel));
        assert_eq!(Plan::new("p", &twice, 1, Tariff::default()), Err(BadPlan::Twice("a".into())));
    }

    #[test]
    fn a_tariff_counts_calls_and_models() {
        let tariff = Tariff { per_call: 0.5, per_model: 0.25 };
        let plan = Plan::new("p", &names(6), 6, tariff).unwrap();
        assert_eq!(plan.cost(10, 60), 20.0);
    }

    #[test]
    fn a_job_that_no_worker_would_read_is_refused_even_after_it_was_retried() {
        let plan = Plan::new("p", &names(1), 1, Tariff::default()).unwrap();
        let jobs = |bytes: usize| plan.jobs(&stamp(), &image("x".repeat(bytes)), &BTreeMap::new());
        let mut largest = jobs(MAX_JOB_BYTES - 1024).unwrap().remove(0);
        largest.attempt = u32::MAX;
        largest.throttled = u32::MAX;
        assert!(largest.to_message().is_ok());
        assert!(matches!(jobs(MAX_JOB_BYTES - 300), Err(Unreadable::Oversize(_))));
        assert!(
            matches!(
                plan.jobs(&stamp(), &image("\u{1}".repeat(MAX_JOB_BYTES / 4)), &BTreeMap::new()),
                Err(Unreadable::Oversize(_))
            ),
            "escapes count"
        );
    }

    proptest! {
        #[test]
        fn every_model_is_asked_once_in_as_few_calls_as_allowed(count in 1usize..40, per_call in 0usize..50) {
            let plan = Plan::new("p", &names(count), per_call, Tariff::default()).unwrap();
            let asked: Vec<_> = plan.models().map(str::to_owned).collect();
            prop_assert_eq!(asked, names(count));
            prop_assert_eq!(plan.calls().len(), count.div_ceil(per_call.max(1)));
        }
    }
}
