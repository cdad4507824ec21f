//! That the checker fails: each test is a history of a run that broke one promise.

use jiff::Timestamp;
use pixfleet_shared::batches::Progress;

use super::{super::history::*, *};

fn id(kind: &str, n: usize) -> Id {
    Id::of(&[kind.as_bytes(), &n.to_be_bytes()])
}

fn url(n: usize) -> String {
    format!("http://images.example/{n}.jpg")
}

fn seen(n: usize) -> Seen {
    Seen { id: id("result", n), job: id("job", n), outcome: Outcome::Ok, cached: false, answered: true }
}

fn called(n: usize) -> CallSeen {
    CallSeen { url: url(n), charged: true, unreadable: false }
}

/// Ten jobs that were answered, each by one call.
fn clean() -> History {
    let jobs = 0..10;
    let wanted = jobs.clone().map(|n| (id("job", n), Wanted { url: url(n), results: vec![id("result", n)] }));
    History {
        wanted: wanted.collect(),
        received: jobs.clone().map(seen).collect(),
        replayed: jobs.clone().map(seen).collect(),
        filed: jobs.clone().map(|n| id("result", n).to_string()).collect(),
        calls: jobs.map(called).collect(),
        progress: Some(progress(Tally { ok: 10, ..Tally::default() })),
        ..History::default()
    }
}

fn progress(tally: Tally) -> Progress {
    Progress {
        batch: "b".parse().unwrap(),
        jobs: 10,
        expected: 10,
        closed: true,
        tally,
        held: None,
        opened_at: Timestamp::UNIX_EPOCH,
    }
}

/// The call of job 3 was never answered: it is parked, and everybody says so.
fn one_parked() -> History {
    let mut history = clean();
    for seen in [&mut history.received[3], &mut history.replayed[3]] {
        (seen.outcome, seen.answered) = (Outcome::Ambiguous, false);
    }
    history.letters.push(Letter { job: Some(id("job", 3)), reason: Some(Reason::Ambiguous) });
    history.listed.push(Listed { job: id("job", 3), then: Lost::Parked });
    history.progress = Some(progress(Tally { ok: 9, ambiguous: 1, ..Tally::default() }));
    history
}

#[test]
fn what_kept_its_promises_passes() {
    assert_eq!(check(&clean()), []);
    assert_eq!(check(&one_parked()), []);
    let mut repeated = clean();
    repeated.received.push(seen(4));
    assert_eq!(check(&repeated), [], "at least once is what is promised");
    assert_eq!(figures(&repeated).repetitions, 1);
}

#[test]
fn a_lost_result_is_found_wherever_it_is_lost() {
    let mut nowhere = clean();
    nowhere.received.remove(3);
    nowhere.replayed.remove(3);
    nowhere.filed.remove(3);
    assert!(check(&nowhere).contains(&Problem::Lost(id("result", 3))));
    assert_eq!(figures(&nowhere).lost, 1);
    let mut on_one_side = clean();
    on_one_side.replayed.remove(3);
    assert_eq!(check(&on_one_side), [Problem::OnOneSide(id("result", 3))]);
    let mut unfiled = clean();
    unfiled.filed.remove(3);
    assert_eq!(check(&unfiled), [Problem::Filed(id("result", 3).to_string(), 0)]);
}

#[test]
fn a_repetition_in_a_sinks_file_is_found() {
    let mut history = clean();
    history.filed.push(id("result", 3).to_string());
    assert_eq!(check(&history), [Problem::Filed(id("result", 3).to_string(), 2)]);
    assert_eq!(figures(&history).after_the_sink, 1);
}

#[test]
fn a_result_of_no_job_and_a_result_that_contradicts_itself_are_found() {
    let mut invented = clean();
    invented.received.push(seen(11));
    invented.replayed.push(seen(11));
    assert!(check(&invented).contains(&Problem::Invented(id("result", 11))));
    let mut contradicted = clean();
    contradicted.received.push(Seen { outcome: Outcome::Dead, ..seen(3) });
    assert!(check(&contradicted).contains(&Problem::Contradicted(id("result", 3))));
    let mut between = clean();
    between.replayed[3].outcome = Outcome::Dead;
    assert!(check(&between).contains(&Problem::Contradicted(id("result", 3))));
}

#[test]
fn a_job_that_is_given_up_and_not_kept_is_found_and_so_is_one_that_is_kept_unsaid() {
    let mut unburied = one_parked();
    unburied.letters.clear();
    assert_eq!(check(&unburied), [Problem::Unburied(id("job", 3))]);
    let mut unsaid = clean();
    unsaid.letters.push(Letter { job: Some(id("job", 3)), reason: Some(Reason::Rejected) });
    assert_eq!(check(&unsaid), [Problem::Unsaid(id("job", 3))]);
    let mut by_the_broker = clean();
    by_the_broker.letters.push(Letter { job: Some(id("job", 3)), reason: Some(Reason::DeliveryLimit) });
    assert_eq!(check(&by_the_broker), [Problem::GivenUp(Reason::DeliveryLimit)]);
}

#[test]
fn a_job_that_is_set_aside_is_kept_and_may_not_be_answered_too() {
    let mut kept = clean();
    kept.received.remove(3);
    kept.replayed.remove(3);
    kept.filed.remove(3);
    kept.calls.remove(3);
    kept.parked.push(id("job", 3));
    kept.progress = Some(progress(Tally { ok: 9, ..Tally::default() }));
    assert_eq!(check(&kept), []);
    let mut both = clean();
    both.parked.push(id("job", 3));
    assert!(check(&both).contains(&Problem::ParkedAndAnswered(id("job", 3))));
}

#[test]
fn under_park_a_second_charge_is_found_even_where_it_is_listed() {
    let mut history = clean();
    history.calls.push(called(3));
    history.listed.push(Listed { job: id("job", 3), then: Lost::Resent });
    assert_eq!(check(&history), [Problem::PaidTwice(id("job", 3), 2)]);
    assert_eq!(figures(&history).paid_twice, 1);
}

#[test]
fn resent_once_a_second_charge_is_allowed_where_it_is_listed_and_never_a_third() {
    let mut listed = History { policy: Policy::ResendOnce, ..clean() };
    listed.calls.push(called(3));
    let unlisted = check(&listed);
    assert_eq!(unlisted, [Problem::PaidTwice(id("job", 3), 2), Problem::Unlisted(id("job", 3), 2)]);
    listed.listed.push(Listed { job: id("job", 3), then: Lost::Resent });
    assert_eq!(check(&listed), []);
    listed.calls.push(called(3));
    listed.listed.push(Listed { job: id("job", 3), then: Lost::Resent });
    assert_eq!(check(&listed), [Problem::PaidTwice(id("job", 3), 3)]);
}

#[test]
fn an_answer_that_nobody_could_read_is_paid_for_and_another_one_follows_only_where_it_is_resent() {
    let mut resent = History { policy: Policy::ResendOnce, ..clean() };
    resent.calls.push(CallSeen { unreadable: true, ..called(3) });
    assert_eq!(check(&resent), []);
    assert_eq!(check(&History { policy: Policy::Park, ..resent }), [Problem::PaidTwice(id("job", 3), 2)]);
}

#[test]
fn a_charge_without_an_answer_that_is_not_listed_is_found() {
    let mut history = one_parked();
    history.listed.clear();
    assert_eq!(check(&history), [Problem::Unlisted(id("job", 3), 1)]);
}

#[test]
fn what_costs_nothing_may_be_called_again() {
    let mut history = clean();
    history.calls.push(CallSeen { charged: false, ..called(3) });
    assert_eq!(check(&history), []);
    history.calls.push(called(12));
    assert_eq!(check(&history), [Problem::Stray(url(12))]);
}

#[test]
fn a_job_that_is_left_in_a_queue_is_found() {
    let left = vec![("pixfleet.jobs.v1.normal.0".to_owned(), 0, 1)];
    let history = History { left: left.clone(), ..clean() };
    assert_eq!(check(&history), [Problem::Left(left[0].0.clone(), 0, 1)]);
}

#[test]
fn a_batch_that_counts_otherwise_or_never_ends_is_found() {
    let uncounted = |history: &History| {
        let problems = check(history);
        assert!(problems.iter().all(|problem| matches!(problem, Problem::Uncounted(_))), "{problems:?}");
        problems.len()
    };
    assert_eq!(uncounted(&History { progress: None, ..clean() }), 1);
    let open = Progress { closed: false, ..progress(Tally { ok: 10, ..Tally::default() }) };
    assert_eq!(uncounted(&History { progress: Some(open), ..clean() }), 1);
    let nine = progress(Tally { ok: 9, ..Tally::default() });
    assert_eq!(uncounted(&History { progress: Some(nine), ..clean() }), 2);
    let eleven = progress(Tally { ok: 10, dead: 1, ..Tally::default() });
    assert_eq!(uncounted(&History { progress: Some(eleven), ..clean() }), 2);
}
