//! The checker: whether a run lost, invented, repeated or paid for something that it may not. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use pixfleet_shared::{batch::Tally, id::Id, ledger::Lost, queue::Reason, result::Outcome};

use super::history::{History, Policy, Seen};

/// Something that a run may not leave behind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// A result that nobody was sent, of a job that is neither dead nor set aside.
    Lost(Id),
    /// A result that the durable subscriber was sent, and the replay log does not have; or the other way round.
    OnOneSide(Id),
    /// A result of no job that was put in.
    Invented(Id),
    /// A result that came twice, and ended differently.
    Contradicted(Id),
    /// A result that a sink's file has not exactly once.
    Filed(String, usize),
    /// A job that was given up, and is no dead letter.
    Unburied(Id),
    /// A dead letter whose job has no result that says so.
    Unsaid(Id),
    /// A job that the broker gave up, or that nobody can read, among those that were put in.
    GivenUp(Reason),
    /// A job that is set aside, and answered.
    ParkedAndAnswered(Id),
    /// A job that was charged more often than its policy allows.
    PaidTwice(Id, usize),
    /// A job that was charged for more calls than were answered or are listed.
    Unlisted(Id, usize),
    /// A call for a picture that nobody put in.
    Stray(String),
    /// Jobs that are left in a queue.
    Left(String, u64, u64),
    /// The batch's own count is not what came of it.
    Uncounted(String),
}

/// How often things happened: counted, and no problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Jobs that were put in.
    pub jobs: usize,
    /// Calls that reached the API.
    pub calls: usize,
    /// Of them, charged.
    pub charged: usize,
    /// Results, each once.
    pub results: usize,
    /// Results that a subscriber was sent beyond the first.
    pub repetitions: usize,
    /// Of them, in the sink's file.
    pub after_the_sink: usize,
    /// Results that end as ambiguous.
    pub ambiguous: usize,
    /// Calls that the ledger lists as never answered.
    pub listed: usize,
    /// Dead letters.
    pub dead: usize,
    /// Jobs that are set aside.
    pub parked: usize,
    /// Jobs that were charged more than once, as their policy allows.
    pub resent: usize,
    /// Jobs that were charged more often than their policy allows.
    pub paid_twice: usize,
    /// Jobs without a result, a dead letter or a place among those set aside.
    pub lost: usize,
}

/// Everything that is wrong with `history`; nothing for a run that kept its promises.
pub fn check(history: &History) -> Vec<Problem> {
    let mut problems = BTreeSet::new();
    let (received, replayed) = (Results::of(&history.received), Results::of(&history.replayed));
    accounted(history, &received, &replayed, &mut problems);
    buried(history, &received, &mut problems);
    paid(history, &received, &mut problems);
    filed(history, &received, &mut problems);
    problems.extend(
        history.left.iter().map(|(name, ready, unacked)| Problem::Left(name.clone(), *ready, *unacked)),
    );
    counted(history, &received, &mut problems);
    problems.into_iter().collect()
}

/// What happened how often.
pub fn figures(history: &History) -> Figures {
    let received = Results::of(&history.received);
    let paid = charged_by_url(history);
    let problems = check(history);
    let lost = problems.iter().filter(|problem| matches!(problem, Problem::Lost(_))).count();
    let paid_twice = problems.iter().filter(|problem| matches!(problem, Problem::PaidTwice(..))).count();
    Figures {
        jobs: history.wanted.len(),
        calls: history.calls.len(),
        charged: paid.values().sum(),
        results: received.by_id.len(),
        repetitions: history.received.len() - received.by_id.len(),
        after_the_sink: history.filed.len() - history.filed.iter().collect::<BTreeSet<_>>().len(),
        ambiguous: received.by_id.values().filter(|seen| seen.outcome == Outcome::Ambiguous).count(),
        listed: history.listed.len(),
        dead: history.letters.len(),
        parked: history.parked.len(),
        resent: paid.values().filter(|times| **times > 1).count() - paid_twice,
        paid_twice,
        lost,
    }
}

/// Results, each once, and those that contradict themselves.
struct Results {
    by_id: BTreeMap<Id, Seen>,
    contradicted: Vec<Id>,
}

impl Results {
    fn of(seen: &[Seen]) -> Self {
        let mut results = Self { by_id: BTreeMap::new(), contradicted: Vec::new() };
        for seen in seen {
            let first = *results.by_id.entry(seen.id).or_insert(*seen);
            if first.outcome != seen.outcome {
                results.contradicted.push(seen.id);
            }
        }
        results
    }
}

/// What was put in is what came out, is dead, or is set aside: by id, and nothing else is.
fn accounted(history: &History, received: &Results, replayed: &Results, problems: &mut BTreeSet<Problem>) {
    let dead: BTreeSet<Id> = history.letters.iter().filter_map(|letter| letter.job).collect();
    let parked: BTreeSet<Id> = history.parked.iter().copied().collect();
    let mut wanted = BTreeSet::new();
    for (job, one) in &history.wanted {
        for id in &one.results {
            wanted.insert(*id);
            match (received.by_id.contains_key(id), parked.contains(job)) {
                (true, true) => problems.insert(Problem::ParkedAndAnswered(*job)),
                (false, false) if !dead.contains(job) => problems.insert(Problem::Lost(*id)),
                _ => true,
            };
        }
    }
    for (one, other) in [(received, replayed), (replayed, received)] {
        problems.extend(one.contradicted.iter().map(|id| Problem::Contradicted(*id)));
        for (id, seen) in &one.by_id {
            if !wanted.contains(id) {
                problems.insert(Problem::Invented(*id));
            }
            match other.by_id.get(id) {
                None => problems.insert(Problem::OnOneSide(*id)),
                Some(same) if same.outcome != seen.outcome => problems.insert(Problem::Contradicted(*id)),
                Some(_) => true,
            };
        }
    }
}

/// Who was given up is a dead letter, and a dead letter's results say so.
fn buried(history: &History, received: &Results, problems: &mut BTreeSet<Problem>) {
    let dead: BTreeSet<Id> = history.letters.iter().filter_map(|letter| letter.job).collect();
    let given_up =
        |seen: &&Seen| matches!(seen.outcome, Outcome::Dead | Outcome::Rejected | Outcome::Ambiguous);
    let said: BTreeSet<Id> = received.by_id.values().filter(given_up).map(|seen| seen.job).collect();
    problems.extend(said.difference(&dead).map(|job| Problem::Unburied(*job)));
    for letter in &history.letters {
        match (letter.job, letter.reason) {
            (Some(_), Some(reason @ Reason::DeliveryLimit)) => {
                problems.insert(Problem::GivenUp(reason));
            }
            (Some(job), _) if history.wanted.contains_key(&job) && !said.contains(&job) => {
                problems.insert(Problem::Unsaid(job));
            }
            _ => {}
        }
    }
}

/// Nothing is paid for twice but what the policy allows, and what nobody saw an answer of is listed.
fn paid(history: &History, received: &Results, problems: &mut BTreeSet<Problem>) {
    let urls: BTreeSet<&str> = history.wanted.values().map(|job| job.url.as_str()).collect();
    for call in history.calls.iter().filter(|call| !urls.contains(call.url.as_str())) {
        problems.insert(Problem::Stray(call.url.clone()));
    }
    let charged = charged_by_url(history);
    let mut unreadable: HashMap<&str, usize> = HashMap::new();
    for call in history.calls.iter().filter(|call| call.unreadable) {
        *unreadable.entry(call.url.as_str()).or_default() += 1;
    }
    let (mut listed, mut resent): (HashMap<Id, usize>, HashMap<Id, usize>) = Default::default();
    for call in &history.listed {
        *listed.entry(call.job).or_default() += 1;
        *resent.entry(call.job).or_default() += usize::from(call.then == Lost::Resent);
    }
    for (job, one) in &history.wanted {
        let charged = charged.get(one.url.as_str()).copied().unwrap_or_default();
        let unreadable = unreadable.get(one.url.as_str()).copied().unwrap_or_default();
        let (listed, resent) = (listed.get(job).copied().unwrap_or(0), resent.get(job).copied().unwrap_or(0));
        let allowed = match history.policy {
            Policy::Park => 1,
            Policy::ResendOnce => 1 + (resent + unreadable).min(1),
        };
        if charged > allowed {
            problems.insert(Problem::PaidTwice(*job, charged));
        }
        let answered = one.results.iter().any(|id| received.by_id.get(id).is_some_and(|seen| seen.answered));
        if charged > usize::from(answered) + listed + unreadable {
            problems.insert(Problem::Unlisted(*job, charged));
        }
    }
}

/// A sink's file has each result once.
fn filed(history: &History, received: &Results, problems: &mut BTreeSet<Problem>) {
    let mut rows: BTreeMap<&str, usize> = BTreeMap::new();
    for id in &history.filed {
        *rows.entry(id).or_default() += 1;
    }
    for id in received.by_id.keys() {
        let times = rows.remove(id.to_string().as_str()).unwrap_or_default();
        if times != 1 {
            problems.insert(Problem::Filed(id.to_string(), times));
        }
    }
    problems.extend(rows.into_iter().map(|(id, times)| Problem::Filed(id.to_owned(), times)));
}

/// The batch is closed and complete, and its own count is what came of it.
fn counted(history: &History, received: &Results, problems: &mut BTreeSet<Problem>) {
    let Some(progress) = &history.progress else {
        problems.insert(Problem::Uncounted("nothing is known of the batch".to_owned()));
        return;
    };
    let parked: BTreeSet<Id> = history.parked.iter().copied().collect();
    let (mut expected, mut set_aside) = (0, 0);
    for (job, one) in &history.wanted {
        expected += one.results.len() as u64;
        set_aside += if parked.contains(job) { one.results.len() as u64 } else { 0 };
    }
    let mut tally = Tally::default();
    for seen in received.by_id.values() {
        let count = match seen.outcome {
            Outcome::Ok if seen.cached => &mut tally.cached,
            Outcome::Ok => &mut tally.ok,
            Outcome::Rejected => &mut tally.rejected,
            Outcome::Dead => &mut tally.dead,
            Outcome::Cancelled => &mut tally.cancelled,
            Outcome::Ambiguous => &mut tally.ambiguous,
        };
        *count += 1;
    }
    let mut demand = |holds: bool, otherwise: String| {
        if !holds {
            problems.insert(Problem::Uncounted(otherwise));
        }
    };
    demand(progress.closed, "the batch is not closed".to_owned());
    demand(
        progress.expected == expected,
        format!("{} results expected instead of {expected}", progress.expected),
    );
    demand(progress.tally == tally, format!("{:?} counted, and there are {tally:?}", progress.tally));
    let total = progress.tally.total() + set_aside;
    demand(total == progress.expected, format!("{total} results of {} at the end", progress.expected));
}

fn charged_by_url(history: &History) -> HashMap<&str, usize> {
    let mut charged: HashMap<&str, usize> = HashMap::new();
    for call in history.calls.iter().filter(|call| call.charged) {
        *charged.entry(call.url.as_str()).or_default() += 1;
    }
    charged
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(id) => write!(f, "result {id} is lost"),
            Self::OnOneSide(id) => {
                write!(f, "result {id} is in the replay log or with the subscriber, not with both")
            }
            Self::Invented(id) => write!(f, "result {id} is of no job that was put in"),
            Self::Contradicted(id) => write!(f, "result {id} came twice, and ended differently"),
            Self::Filed(id, times) => write!(f, "result {id} is {times} times in the sink's file"),
            Self::Unburied(job) => write!(f, "job {job} was given up, and is no dead letter"),
            Self::Unsaid(job) => write!(f, "job {job} is a dead letter, and no result says so"),
            Self::GivenUp(reason) => write!(f, "a job was given up: {}", reason.as_str()),
            Self::ParkedAndAnswered(job) => write!(f, "job {job} is set aside, and answered"),
            Self::PaidTwice(job, times) => write!(f, "job {job} was charged {times} times"),
            Self::Unlisted(job, times) => {
                write!(
                    f,
                    "job {job} was charged {times} times, and not all of that was answered or is listed"
                )
            }
            Self::Stray(url) => write!(f, "a call for {url}, which nobody put in"),
            Self::Left(queue, ready, unacked) => write!(f, "{ready} ready and {unacked} unacked in {queue}"),
            Self::Uncounted(why) => write!(f, "the batch's count: {why}"),
        }
    }
}

#[cfg(test)]
mod tests;
