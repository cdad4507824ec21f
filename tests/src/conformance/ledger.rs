//! The promises of a ledger. A fleet is three processes that share one.

use std::{collections::BTreeMap, time::Duration};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use pixfleet_shared::{
    batch::Tally,
    id::Id,
    job::{Image, Job, Source, TURNS_A_REPLAY},
    ledger::{Answered, BillLine, End, Intent, Known, Ledger, Lost, Mark, Resolution, TakenUp},
    queue::{Settlement, Then},
    result::{Answer, ImageResult, Label, Outcome},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::process::{Process, until};

/// A job that no other test of the server knows.
pub fn job(test: &str, n: u8) -> Job {
    let image = Image { id: format!("{test}-{n}"), source: Source::Url("http://images.example/".into()) };
    Job::new(test.replace("::", "-").parse().unwrap(), image, "p".into(), vec!["m".into()])
}

/// The call of the job's turn.
pub fn intent(job: &Job) -> Intent {
    let tries = [job.turn().to_be_bytes(), u64::from(job.throttled).to_be_bytes()].concat();
    Intent {
        call: Id::of(&[&job.id.to_bytes(), &tries]),
        job: job.id,
        batch: job.batch.clone(),
        image: job.image.id.clone(),
        provider: job.provider.clone(),
        account: "p".into(),
        models: job.models.clone(),
        turn: job.turn(),
        ambiguous: job.ambiguous,
        cost_micros: 2_500,
        currency: "USD".into(),
        worker: "w".into(),
        leaves_at: Timestamp::now(),
        lasts_ms: 60_000,
    }
}

/// The end of the job's turn, with one answered result.
pub fn mark(job: &Job, end: End) -> Mark {
    mark_of(job, end, Tally { ok: 1, ..Tally::default() })
}

/// The end of the job's turn, with these results.
pub fn mark_of(job: &Job, end: End, tally: Tally) -> Mark {
    Mark { job: job.id, batch: job.batch.clone(), turn: job.turn(), tally, end }
}

/// What follows from an answered call: one result, and the job is done.
pub fn settlement(job: &Job) -> Settlement {
    let label = Label { label: "kitchen".into(), confidence: Some(0.75) };
    let answer = Answer { labels: vec![label], value: None, raw: Some(serde_json::json!({ "of": "it" })) };
    let result = ImageResult { answer: Some(answer), ..ImageResult::of(job, &job.models[0], Outcome::Ok) };
    Settlement { results: vec![result], then: Then::Done }
}

/// The job's next turn.
pub fn next(job: &Job) -> Job {
    Job { attempt: job.attempt + 1, ..job.clone() }
}

/// The job as it is sent again from the dead letters.
pub fn replayed(job: &Job) -> Job {
    Job { replays: job.replays + 1, attempt: 0, ..job.clone() }
}

fn today() -> Date {
    day_of(Timestamp::now())
}

fn day_of(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

async fn departs(process: &Process, job: &Job) -> Known {
    process.ledger.depart(&intent(job)).await.unwrap()
}

async fn known(process: &Process, job: &Job) -> Known {
    let taken = process.ledger.take_up(job).await.unwrap();
    process.ledger.let_go(job);
    taken.known
}

async fn tally(process: &Process, job: &Job) -> Tally {
    let progress = process.batches.progress(&job.batch).await.unwrap();
    progress.map(|progress| progress.tally).unwrap_or_default()
}

/// What one process says to be settled, every process knows; of other jobs nothing is known.
pub async fn a_settled_job_is_known_to_every_process(test: &str, fleet: Vec<Process>) {
    let (settled, other) = (job(test, 1), job(test, 2));
    for process in &fleet {
        assert_eq!(known(process, &settled).await, Known::Clear);
    }
    fleet[0].ledger.settled(mark(&settled, End::Done));
    fleet[0].ledger.flush().await;
    for process in &fleet {
        assert_eq!(departs(process, &settled).await, Known::Over);
        assert_eq!(known(process, &settled).await, Known::Over);
        assert_eq!(
            departs(process, &next(&settled)).await,
            Known::Over,
            "a job that is done has no turns left"
        );
        assert_eq!(known(process, &other).await, Known::Clear);
    }
}

/// Saying it twice, from whichever process, is no error and is counted once.
pub async fn a_turn_may_be_settled_twice_and_is_counted_once(test: &str, fleet: Vec<Process>) {
    let settled = job(test, 1);
    for process in &fleet {
        process.ledger.settled(mark(&settled, End::Done));
        process.ledger.settled(mark(&settled, End::Done));
        process.ledger.flush().await;
    }
    assert_eq!(known(&fleet[0], &settled).await, Known::Over);
    assert_eq!(tally(&fleet[1], &settled).await, Tally { ok: 1, ..Tally::default() });
}

/// A question changes nothing: a job that was only looked at is clear for the next one who asks.
pub async fn a_question_settles_nothing(test: &str, fleet: Vec<Process>) {
    for process in &fleet {
        assert_eq!(known(process, &job(test, 1)).await, Known::Clear);
    }
}

/// Whoever says a call again may; meanwhile it is under way for all others.
pub async fn a_call_under_way_belongs_to_whoever_makes_it(test: &str, fleet: Vec<Process>) {
    let job = job(test, 1);
    for _ in 0..2 {
        assert_eq!(departs(&fleet[0], &job).await, Known::Clear);
        for other in &fleet[1..] {
            assert!(matches!(departs(other, &job).await, Known::UnderWay(_)));
            assert!(matches!(known(other, &job).await, Known::UnderWay(_)));
        }
    }
    // The same process may have been lent the job again: that is another call.
    let twice = Intent { call: Id::of(&[b"another line", &job.id.to_bytes()]), ..intent(&job) };
    assert!(matches!(fleet[0].ledger.depart(&twice).await.unwrap(), Known::UnderWay(_)));
}

/// What was paid for is found by whoever meets the job's turn, as it was said, until the turn is over.
pub async fn an_answer_that_was_paid_for_is_found_by_everybody(test: &str, fleet: Vec<Process>) {
    let job = job(test, 1);
    let (intent, settlement) = (intent(&job), settlement(&job));
    assert_eq!(fleet[0].ledger.depart(&intent).await.unwrap(), Known::Clear);
    fleet[0].ledger.answered(&intent, Answered::Paid(settlement.clone()));
    fleet[0].ledger.flush().await;
    for process in &fleet {
        let answered = Known::Answered(Box::new(settlement.clone()));
        assert_eq!(known(process, &job).await, answered);
        assert_eq!(departs(process, &job).await, answered);
    }
    assert_eq!(tally(&fleet[0], &job).await, Tally::default(), "it counts when it is settled");
    fleet[1].ledger.settled(mark(&job, End::Done));
    fleet[1].ledger.flush().await;
    for process in &fleet {
        assert_eq!(departs(process, &job).await, Known::Over);
    }
    assert_eq!(tally(&fleet[0], &job).await, Tally { ok: 1, ..Tally::default() });
}

/// An answer outlives whoever paid for it.
pub async fn an_answer_outlives_the_process_that_paid_for_it(test: &str, mut fleet: Vec<Process>) {
    let job = job(test, 1);
    let payer = fleet.remove(0);
    assert_eq!(departs(&payer, &job).await, Known::Clear);
    payer.ledger.answered(&intent(&job), Answered::Paid(settlement(&job)));
    payer.ledger.flush().await;
    payer.die().await;
    assert!(matches!(departs(&fleet[0], &job).await, Known::Answered(_)));
}

/// A call that costs nothing, or did not leave, stands against no other one.
pub async fn a_call_that_was_free_or_did_not_leave_clears_its_turn(test: &str, fleet: Vec<Process>) {
    for (n, answered) in [Answered::Free, Answered::Unsent].into_iter().enumerate() {
        let job = job(test, n as u8);
        assert_eq!(departs(&fleet[0], &job).await, Known::Clear);
        fleet[0].ledger.answered(&intent(&job), answered);
        // The next call of the same turn, from the same process: nothing has to be waited for.
        let job = Job { throttled: 1, ..job };
        assert_eq!(departs(&fleet[0], &job).await, Known::Clear);
        fleet[0].ledger.answered(&intent(&job), Answered::Unsent);
        fleet[0].ledger.flush().await;
        assert_eq!(departs(&fleet[1], &job).await, Known::Clear);
    }
}

/// Nobody takes back what another one said, nor what was answered.
pub async fn nobody_takes_back_the_call_of_another_one(test: &str, fleet: Vec<Process>) {
    let job = job(test, 1);
    assert_eq!(departs(&fleet[0], &job).await, Known::Clear);
    fleet[1].ledger.answered(&intent(&job), Answered::Unsent);
    fleet[1].ledger.flush().await;
    assert!(matches!(departs(&fleet[2], &job).await, Known::UnderWay(_)));
    fleet[0].ledger.answered(&intent(&job), Answered::Paid(settlement(&job)));
    fleet[0].ledger.answered(&intent(&job), Answered::Unsent);
    fleet[0].ledger.flush().await;
    assert!(matches!(departs(&fleet[2], &job).await, Known::Answered(_)));
}

/// Where whoever made a call is gone, it is unanswered, until it is decided what follows.
pub async fn a_call_whose_maker_died_is_unanswered(test: &str, mut fleet: Vec<Process>) {
    let job = job(test, 1);
    let said = intent(&job);
    let maker = fleet.remove(0);
    assert_eq!(maker.ledger.depart(&said).await.unwrap(), Known::Clear);
    maker.die().await;
    let unanswered = until("the call is unanswered", async || match known(&fleet[0], &job).await {
        Known::Unanswered(intent) => Some(*intent),
        Known::UnderWay(_) => None,
        other => panic!("{other:?}"),
    })
    .await;
    assert_eq!(unanswered, said);
    assert_eq!(departs(&fleet[1], &job).await, Known::Unanswered(Box::new(said.clone())));
    assert!(fleet[1].ledger.stands(&job).await.unwrap());
    fleet[0].ledger.lost(&said, Lost::Resent);
    fleet[0].ledger.settled(mark_of(&job, End::Again, Tally::default()));
    fleet[0].ledger.flush().await;
    assert!(!fleet[1].ledger.stands(&job).await.unwrap(), "whoever made it comes too late");
    assert!(fleet[1].ledger.stands(&next(&job)).await.unwrap());
    assert_eq!(departs(&fleet[1], &job).await, Known::Over);
    assert_eq!(departs(&fleet[1], &next(&job)).await, Known::Clear);
}

/// Where a call's time is over, it is unanswered, though whoever made it lives.
pub async fn a_call_whose_time_is_over_is_unanswered(test: &str, fleet: Vec<Process>) {
    let job = job(test, 1);
    let said = Intent { lasts_ms: 50, ..intent(&job) };
    assert_eq!(fleet[0].ledger.depart(&said).await.unwrap(), Known::Clear);
    for process in &fleet[1..] {
        let unanswered = until("the call is unanswered", async || match known(process, &job).await {
            Known::Unanswered(intent) => Some(*intent),
            Known::UnderWay(_) => None,
            other => panic!("{other:?}"),
        });
        assert_eq!(unanswered.await, said);
    }
}

/// A call that nobody waits for any more is unanswered at once, though whoever made it lives and its time is not over.
pub async fn a_call_that_is_lost_is_waited_for_by_nobody(test: &str, fleet: Vec<Process>) {
    let job = job(test, 1);
    let said = intent(&job);
    assert_eq!(fleet[0].ledger.depart(&said).await.unwrap(), Known::Clear);
    fleet[0].ledger.lost(&said, Lost::Resent);
    fleet[0].ledger.flush().await;
    for process in &fleet {
        let unanswered = Known::Unanswered(Box::new(said.clone()));
        assert_eq!(known(process, &job).await, unanswered);
        assert_eq!(process.ledger.depart(&said).await.unwrap(), unanswered, "it has left");
    }
}

/// Calls that were never answered are listed on their day, each once, with what was decided and what was found out.
pub async fn lost_calls_are_listed_and_may_be_resolved(test: &str, fleet: Vec<Process>) {
    let jobs = [job(test, 1), job(test, 2)];
    let intents = jobs.each_ref().map(intent);
    for (intent, then) in intents.iter().zip([Lost::Resent, Lost::Parked]) {
        assert_eq!(fleet[0].ledger.depart(intent).await.unwrap(), Known::Clear);
        fleet[0].ledger.lost(intent, then);
        fleet[0].ledger.flush().await;
        fleet[1].ledger.lost(intent, then);
        fleet[1].ledger.flush().await;
    }
    let day = day_of(intents[0].leaves_at);
    assert!(fleet[2].ledger.days().await.unwrap().contains(&day));
    let listed = fleet[2].ledger.unanswered(day).await.unwrap();
    let mut found: Vec<_> = listed.iter().map(|lost| (lost.intent.clone(), lost.then)).collect();
    found.sort_by_key(|(intent, _)| intent.image.clone());
    assert_eq!(found, [(intents[0].clone(), Lost::Resent), (intents[1].clone(), Lost::Parked)]);
    assert!(listed.iter().all(|lost| lost.resolution.is_none()));

    let resolution = Resolution { charged: true, by: "ana".into(), at: Timestamp::UNIX_EPOCH };
    assert!(fleet[1].ledger.resolve(day, intents[0].call, &resolution).await.unwrap());
    assert!(!fleet[1].ledger.resolve(day, Id::of(&[b"none"]), &resolution).await.unwrap());
    let before = day.yesterday().unwrap();
    assert!(!fleet[1].ledger.resolve(before, intents[0].call, &resolution).await.unwrap());
    let listed = fleet[2].ledger.unanswered(day).await.unwrap();
    for lost in listed {
        let expected = (lost.intent.call == intents[0].call).then(|| resolution.clone());
        assert_eq!(lost.resolution, expected);
    }
    assert!(fleet[2].ledger.unanswered(before).await.unwrap().is_empty());
}

/// A job's later turn has begun: copies of earlier ones are over, and what is said late of them counts once.
pub async fn a_later_turn_makes_copies_of_earlier_ones_over(test: &str, fleet: Vec<Process>) {
    let first = job(test, 1);
    let second = next(&first);
    assert_eq!(departs(&fleet[0], &second).await, Known::Clear);
    assert_eq!(departs(&fleet[1], &first).await, Known::Over);
    assert_eq!(known(&fleet[1], &first).await, Known::Over);
    for _ in 0..2 {
        fleet[1].ledger.settled(mark(&first, End::Again));
        fleet[1].ledger.flush().await;
    }
    assert!(
        matches!(departs(&fleet[2], &second).await, Known::UnderWay(_)),
        "a late word ends no later call"
    );
    fleet[0].ledger.answered(&intent(&second), Answered::Paid(settlement(&second)));
    fleet[0].ledger.settled(mark(&second, End::Done));
    fleet[0].ledger.flush().await;
    assert_eq!(tally(&fleet[2], &first).await, Tally { ok: 2, ..Tally::default() });
}

/// Who took up a job and did not let go of it is known, and whether it died meanwhile.
pub async fn who_died_with_a_job_in_hand_is_counted(test: &str, mut fleet: Vec<Process>) {
    let job = job(test, 1);
    let take_up = async |process: &Process| process.ledger.take_up(&job).await.unwrap();
    let clear = |crashed, unsure| TakenUp { known: Known::Clear, crashed, unsure };
    assert_eq!(take_up(&fleet[0]).await, clear(0, 0));
    assert_eq!(take_up(&fleet[0]).await, clear(0, 0), "whoever asks is not counted");
    assert_eq!(take_up(&fleet[1]).await, clear(0, 1));
    fleet[1].ledger.let_go(&job);
    fleet[1].ledger.flush().await;
    assert_eq!(take_up(&fleet[2]).await, clear(0, 1));
    fleet.remove(0).die().await;
    let crashed = async |process: &Process| {
        let TakenUp { crashed, .. } = take_up(process).await;
        (crashed > 0).then_some(crashed)
    };
    assert_eq!(until("a crash is counted", async || crashed(&fleet[1]).await).await, 1);
    assert_eq!(take_up(&fleet[0]).await, clear(1, 1));
    // It is done: whatever comes of it later begins anew.
    fleet[0].ledger.settled(mark_of(&job, End::Dead, Tally { dead: 1, ..Tally::default() }));
    fleet[0].ledger.flush().await;
    assert!(fleet[0].ledger.reopen(&replayed(&job)).await.unwrap());
    let taken = fleet[1].ledger.take_up(&replayed(&job)).await.unwrap();
    assert_eq!((taken.known, taken.crashed), (Known::Clear, 0));
}

/// A dead letter is opened once: its results no longer count as dead, and its next turn is free.
pub async fn a_dead_letter_is_opened_once(test: &str, fleet: Vec<Process>) {
    let dead = job(test, 1);
    let counted = Tally { ok: 2, cached: 1, rejected: 3, dead: 4, ambiguous: 5, ..Tally::default() };
    fleet[0].ledger.settled(mark_of(&dead, End::Dead, counted));
    fleet[0].ledger.flush().await;
    assert_eq!(tally(&fleet[1], &dead).await, counted);
    assert_eq!(departs(&fleet[1], &dead).await, Known::Over);

    let again = replayed(&dead);
    assert!(fleet[1].ledger.reopen(&again).await.unwrap());
    for process in &fleet {
        assert!(!process.ledger.reopen(&again).await.unwrap(), "it was said before");
    }
    let left = Tally { ok: 2, cached: 1, ..Tally::default() };
    assert_eq!(tally(&fleet[2], &dead).await, left);
    fleet[0].ledger.settled(mark_of(&dead, End::Dead, counted));
    fleet[0].ledger.flush().await;
    assert_eq!(tally(&fleet[2], &dead).await, left, "the old turn is over");
    assert_eq!(departs(&fleet[0], &dead).await, Known::Over, "so are its copies");
    assert_eq!(departs(&fleet[0], &again).await, Known::Clear);
    assert!(!fleet[1].ledger.reopen(&again).await.unwrap(), "its call is under way");
    fleet[0].ledger.settled(mark_of(&again, End::Done, Tally { ok: 12, ..Tally::default() }));
    fleet[0].ledger.flush().await;
    assert_eq!(tally(&fleet[2], &dead).await, Tally { ok: 14, cached: 1, ..Tally::default() });
    assert!(!fleet[1].ledger.reopen(&again).await.unwrap(), "it is done");
}

/// The bill counts each answered call once, on its day, by account and model; a call's cost is shared by its models.
pub async fn the_bill_counts_each_answered_call_once(test: &str, fleet: Vec<Process>) {
    let call = |n| {
        let job = Job { models: vec!["m".into(), "n".into()], ..job(test, n) };
        (intent(&job), settlement(&job))
    };
    for n in 0..4_u8 {
        let (intent, settlement) = call(n);
        let process = &fleet[usize::from(n) % 2];
        assert_eq!(process.ledger.depart(&intent).await.unwrap(), Known::Clear);
        let answered = match n {
            0 | 1 => Answered::Paid(settlement),
            2 => Answered::Free,
            _ => Answered::Unsent,
        };
        for _ in 0..2 {
            process.ledger.answered(&intent, answered.clone());
            process.ledger.flush().await;
        }
    }
    let day = day_of(call(0).0.leaves_at);
    let bill = fleet[2].ledger.bill(day).await.unwrap();
    let line = |model: &str, cost_micros| BillLine {
        day,
        provider: "p".into(),
        account: "p".into(),
        model: model.into(),
        answered: 3,
        charged: 2,
        cost_micros,
        currency: "USD".into(),
    };
    let by_model: BTreeMap<_, _> = bill.iter().map(|line| (line.model.clone(), line.clone())).collect();
    assert_eq!(by_model.len(), bill.len(), "{bill:?}");
    let expected = [line("*", 5_000), line("m", 2_500), line("n", 2_500)];
    assert_eq!(by_model.into_values().collect::<Vec<_>>(), expected);
    assert!(fleet[0].ledger.days().await.unwrap().contains(&day));
    assert!(fleet[0].ledger.bill(day.yesterday().unwrap()).await.unwrap().is_empty());
}

/// What is said of calls and turns in any order, by any process, keeps to the ledger's promises: each turn counts once, what
/// was answered is never clear again, and of all who ask for one call only one may make it.
pub async fn whatever_is_said_in_whatever_order_keeps_the_promises(test: &str, fleet: Vec<Process>) {
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let mut jobs: Vec<Reckoned> = (0..6).map(|n| Reckoned::new(job(test, n))).collect();
    let mut last = 0;
    for step in 0..600 {
        let by = random.random_range(0..fleet.len());
        if by != last {
            fleet[last].ledger.flush().await;
            last = by;
        }
        let n = random.random_range(0..jobs.len());
        let (said, back) = (random.random_range(0..7), random.random_range(-1..3));
        let place = format!("seed {seed}, step {step}: process {by}, job {n}, said {said}, {back} back");
        jobs[n].step(&fleet[by], by, said, back, &place).await;
    }
    let mut counted = Tally::default();
    for job in &mut jobs {
        job.settle(&fleet[last], &job.message(0), End::Dead);
        counted.ok += job.counted;
        counted.dead += job.dead;
    }
    fleet[last].ledger.flush().await;
    assert_eq!(tally(&fleet[0], &jobs[0].job).await, counted, "seed {seed}");
}

/// A job as the ledger has to know it, in the simplest terms.
struct Reckoned {
    job: Job,
    /// Turns below are over.
    floor: u64,
    /// A call under way: its turn, and who makes it.
    open: Option<(u64, usize)>,
    /// A turn that is answered, and not yet settled.
    answered: Option<u64>,
    /// Results that count as answered.
    counted: u64,
    /// Results that count as dead.
    dead: u64,
}

impl Reckoned {
    fn new(job: Job) -> Self {
        Self { job, floor: 0, open: None, answered: None, counted: 0, dead: 0 }
    }

    /// The message that a process has in hand: of the newest turn, one of before, or the one after it where its last word is
    /// still on its way.
    fn message(&self, back: i64) -> Job {
        let begun = self.open.map(|(turn, _)| turn).or(self.answered);
        let newest = begun.unwrap_or(self.floor).max(self.floor);
        let turn = match back {
            -1 if begun.is_none() => newest + 1,
            back => newest.saturating_sub(back.max(0) as u64),
        };
        let (replays, attempt) = (turn / TURNS_A_REPLAY, turn % TURNS_A_REPLAY);
        Job { replays: replays as u32, attempt: attempt as u32, ..self.job.clone() }
    }

    async fn step(&mut self, process: &Process, by: usize, said: u32, back: i64, place: &str) {
        let job = self.message(back);
        match said {
            0 | 1 => self.depart(process, by, &job, place).await,
            2 => {
                let known = known(process, &job).await;
                assert_eq!(word(&known), self.expected(&job, None), "{place}");
            }
            3 => self.answer(process, by, &job, true),
            4 => self.answer(process, by, &job, false),
            5 => self.settle(process, &job, End::Again),
            _ if back <= 0 && self.open.is_none() => {
                self.settle(process, &job, End::Dead);
                let again = replayed(&job);
                assert!(process.ledger.reopen(&again).await.unwrap(), "{place}");
                (self.dead, self.floor, self.answered) = (0, again.turn(), None);
            }
            _ => {}
        }
    }

    /// What is to be known of a message; to its own maker, a call under way is no news.
    fn expected(&self, job: &Job, maker: Option<usize>) -> &'static str {
        let turn = job.turn();
        match (self.open, self.answered) {
            _ if turn < self.floor => "over",
            (Some((open, _)), _) if open > turn => "over",
            (_, Some(answered)) if answered > turn => "over",
            (_, Some(answered)) if answered == turn => "answered",
            (Some((open, by)), _) if open == turn && maker != Some(by) => "under way",
            _ => "clear",
        }
    }

    async fn depart(&mut self, process: &Process, by: usize, job: &Job, place: &str) {
        let known = process.ledger.depart(&intent(job)).await.unwrap();
        let expected = self.expected(job, Some(by));
        assert_eq!(word(&known), expected, "{place}");
        if expected == "clear" {
            self.open = Some((job.turn(), by));
        }
    }

    fn answer(&mut self, process: &Process, by: usize, job: &Job, paid: bool) {
        if self.open != Some((job.turn(), by)) {
            return;
        }
        let answered = if paid { Answered::Paid(settlement(job)) } else { Answered::Free };
        process.ledger.answered(&intent(job), answered);
        self.open = None;
        self.answered = paid.then(|| job.turn());
    }

    /// A turn whose call is under way is settled by nobody.
    fn settle(&mut self, process: &Process, job: &Job, end: End) {
        let turn = job.turn();
        if self.open.is_some_and(|(open, _)| open == turn) {
            return;
        }
        let (is_dead, counts) = (end == End::Dead, turn >= self.floor);
        let (ok, dead) = (u64::from(!is_dead), u64::from(is_dead));
        process.ledger.settled(mark_of(job, end, Tally { ok, dead, ..Tally::default() }));
        if counts {
            self.counted += ok;
            self.dead += dead;
            self.floor = turn + 1;
            self.answered = self.answered.filter(|answered| *answered > turn);
        }
    }
}

fn word(known: &Known) -> &'static str {
    match known {
        Known::Clear => "clear",
        Known::Over => "over",
        Known::Answered(_) => "answered",
        Known::UnderWay(_) => "under way",
        Known::Unanswered(_) => "unanswered",
    }
}

/// Of many who ask at once for one call, one may make it.
pub async fn of_many_who_ask_at_once_one_may_call(test: &str, fleet: Vec<Process>) {
    for n in 0..10 {
        let job = job(test, n);
        let asked = fleet.iter().map(|process| departs(process, &job));
        let answers = futures_util::future::join_all(asked).await;
        let clear = answers.iter().filter(|known| **known == Known::Clear).count();
        assert_eq!(clear, 1, "{answers:?}");
        assert!(
            answers.iter().all(|known| matches!(known, Known::Clear | Known::UnderWay(_))),
            "{answers:?}"
        );
    }
}

/// Days of which nothing is kept are none.
pub async fn a_day_of_which_nothing_is_kept_is_empty(_test: &str, fleet: Vec<Process>) {
    let ledger: &dyn Ledger = &*fleet[0].ledger;
    assert!(ledger.days().await.unwrap().is_empty());
    assert!(ledger.bill(today()).await.unwrap().is_empty());
    assert!(ledger.unanswered(today()).await.unwrap().is_empty());
    tokio::time::timeout(Duration::from_secs(5), ledger.flush()).await.expect("nothing to wait for");
}
