//! Which calls that were never answered a command is about.

use jiff::{SignedDuration, Timestamp, civil::Date};
use pixfleet_shared::{
    batch::BatchName,
    ledger::{Ledger, LedgerError, Unanswered},
};

use super::moment::{When, day_of};

/// So far back it is looked where nobody says how far.
const LATELY: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What is said of the calls.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Filters {
    /// Only calls of this batch
    #[arg(long, value_name = "NAME")]
    pub(super) batch: Option<BatchName>,
    /// Only calls of this provider
    #[arg(long, value_name = "NAME")]
    pub(super) provider: Option<String>,
    /// Only calls by this account: the name of its limit stack
    #[arg(long, value_name = "NAME")]
    pub(super) account: Option<String>,
    /// Only calls that asked this model, among others perhaps
    #[arg(long, value_name = "MODEL")]
    pub(super) model: Option<String>,
    /// Only calls that left from then on: a day, a time, or how long ago (default: 7d)
    #[arg(long, value_name = "WHEN")]
    pub(super) since: Option<When>,
    /// Only calls that left until then; a day belongs to it
    #[arg(long, value_name = "WHEN")]
    pub(super) until: Option<When>,
    /// Also those that somebody resolved, and without --since of every day that is kept
    #[arg(long)]
    pub(super) all: bool,
}

/// A call, and the day under which it is listed.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) day: Date,
    pub(super) call: Unanswered,
}

impl Filters {
    /// Whether something is said.
    pub(super) fn say_something(&self) -> bool {
        let Self { batch, provider, account, model, since, until, all } = self;
        batch.is_some()
            || provider.is_some()
            || account.is_some()
            || model.is_some()
            || since.is_some()
            || until.is_some()
            || *all
    }

    /// The calls that are meant, the oldest first.
    ///
    /// # Errors
    /// When the ledger is away.
    pub(super) async fn find(&self, ledger: &dyn Ledger, now: Timestamp) -> Result<Vec<Found>, LedgerError> {
        let (since, until) = self.stretch(now);
        let first = day_of(since);
        let mut found = Vec::new();
        // A call may be listed on a later day than that on which it left: a worker that died is noticed later.
        for day in ledger.days().await?.into_iter().filter(|day| *day >= first) {
            let calls = ledger.unanswered(day).await?.into_iter();
            let within = |call: &Unanswered| (since..until).contains(&call.intent.leaves_at);
            found
                .extend(calls.filter(|call| within(call) && self.want(call)).map(|call| Found { day, call }));
        }
        found.sort_by_key(|found| (found.call.intent.leaves_at, found.call.intent.call));
        Ok(found)
    }

    fn stretch(&self, now: Timestamp) -> (Timestamp, Timestamp) {
        let lately = if self.all { When::Moment(Timestamp::UNIX_EPOCH) } else { When::Ago(LATELY) };
        let until = self.until.map_or(Timestamp::MAX, |until| until.end(now));
        (self.since.unwrap_or(lately).begin(now), until)
    }

    fn want(&self, call: &Unanswered) -> bool {
        let is =
            |wanted: &Option<String>, value: &String| wanted.as_ref().is_none_or(|wanted| wanted == value);
        let intent = &call.intent;
        (self.all || call.resolution.is_none())
            && self.batch.as_ref().is_none_or(|batch| *batch == intent.batch)
            && is(&self.provider, &intent.provider)
            && is(&self.account, &intent.account)
            && self.model.as_ref().is_none_or(|model| intent.models.contains(model))
    }
}

/// Everything that is listed, whenever it was.
pub(super) fn everything() -> Filters {
    Filters { all: true, ..Filters::default() }
}
