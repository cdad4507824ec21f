//! Dead letters, as the file keeps them: replayed once, whoever does it and however it is cut off.

use pixfleet_shared::{
    embedded::Embedded,
    job::Job,
    ledger::Known,
    queue::{DeadLetter, Reason},
    result::{Failure, ImageResult, Outcome},
};
use pixfleet_tests::conformance::{
    ledger::{intent, replayed},
    queue::job,
};

use super::{counts, fleet, lend, next, state};

/// Puts a job in, and has it die.
async fn bury(engine: &Embedded) {
    engine.queue().enqueue(vec![job("b", 1)]).await.unwrap();
    let mut intake = lend(engine).await;
    let (job, unsettled) = next(&mut intake).await.split();
    let failure = Failure { class: "transient".into(), message: "no answer".into() };
    let result = ImageResult { failure: Some(failure), ..ImageResult::of(&job, "m", Outcome::Dead) };
    unsettled.dead_letter(job, vec![result], Reason::AttemptsExhausted).await.unwrap();
    intake.stop().await;
}

async fn letters(engine: &Embedded) -> Vec<DeadLetter> {
    let mut look = engine.queue().dead_letters().await.unwrap();
    let mut letters = Vec::new();
    while let Some(letter) = look.next().await.unwrap() {
        letters.push(letter);
    }
    look.close().await;
    letters
}

/// The letter's job, as it is sent again.
fn sent_again(letter: &DeadLetter) -> Job {
    replayed(letter.job.as_ref().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_two_replay_is_one_job_and_its_death_counts_no_more() {
    let (_folder, path) = state();
    let engines = fleet(&path, 2).await;
    bury(&engines[0]).await;
    let dead = counts(&engines[0]).await;
    assert_eq!((dead.dead_letters, dead.of(Outcome::Dead), dead.failures.len()), (1, 1, 1));

    let (mut ours, mut theirs) = (letters(&engines[0]).await, letters(&engines[1]).await);
    for (engine, letters) in engines.iter().zip([&mut ours, &mut theirs]) {
        let letter = letters.pop().expect("the letter");
        let job = sent_again(&letter);
        engine.ledger().reopen(&job).await.unwrap();
        letter.replay(job).await.unwrap();
    }
    let open = counts(&engines[0]).await;
    assert_eq!((open.jobs, open.dead_letters, open.of(Outcome::Dead), open.failures.len()), (1, 0, 0, 0));

    // Another job behind it: whoever comes twice would come before.
    engines[0].queue().enqueue(vec![job("b", 2)]).await.unwrap();
    let mut intake = lend(&engines[1]).await;
    for expected in [("i1", 1), ("i2", 0)] {
        let (job, unsettled) = next(&mut intake).await.split();
        assert_eq!((job.image.id.as_str(), job.replays), expected);
        let result = ImageResult::of(&job, "m", Outcome::Ok);
        unsettled.complete(vec![result]).await.unwrap();
    }
    let done = counts(&engines[0]).await;
    assert_eq!((done.jobs, done.ended, done.dead_letters, done.of(Outcome::Ok)), (2, 2, 0, 2));
    assert!(letters(&engines[0]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_cut_off_half_way_is_gone_on_with() {
    let (_folder, path) = state();
    let engine = &fleet(&path, 1).await[0];
    bury(engine).await;
    let letter = letters(engine).await.pop().expect("the letter");
    assert!(engine.ledger().reopen(&sent_again(&letter)).await.unwrap());
    engine.close().await;

    let engine = Embedded::open(&path).await.unwrap();
    let letter = letters(&engine).await.pop().expect("the letter is still there");
    let job = sent_again(&letter);
    assert!(!engine.ledger().reopen(&job).await.unwrap(), "it was said before");
    letter.replay(job.clone()).await.unwrap();
    let mut intake = lend(&engine).await;
    let (again, unsettled) = next(&mut intake).await.split();
    assert_eq!(engine.ledger().depart(&intent(&again)).await.unwrap(), Known::Clear);
    unsettled.complete(vec![ImageResult::of(&again, "m", Outcome::Ok)]).await.unwrap();
    let done = counts(&engine).await;
    assert_eq!((done.jobs, done.ended, done.dead_letters), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_was_opened_and_is_thrown_away_counts_as_dead_after_all() {
    let (_folder, path) = state();
    let engine = &fleet(&path, 1).await[0];
    bury(engine).await;
    let before = counts(engine).await;
    let letter = letters(engine).await.pop().expect("the letter");
    assert!(engine.ledger().reopen(&sent_again(&letter)).await.unwrap());
    assert_eq!(counts(engine).await.of(Outcome::Dead), 0);
    letter.purge().await.unwrap();
    let after = counts(engine).await;
    assert_eq!((after.dead_letters, after.of(Outcome::Dead), after.failures.len()), (1, 1, 1));
    assert_eq!((after.jobs, after.ended), (before.jobs, before.ended));
    assert!(letters(engine).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_says_what_the_last_call_said() {
    let (_folder, path) = state();
    let engine = &fleet(&path, 1).await[0];
    bury(engine).await;
    let death = letters(engine).await.pop().expect("the letter").death;
    assert_eq!((death.class.as_deref(), death.message.as_str()), (Some("transient"), "no answer"));
    assert_eq!(death.reason, Reason::AttemptsExhausted);
}
