//! The promises of answers that are kept. A fleet is three processes that share them.

use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use pixfleet_shared::{
    answers::{Kept, Recalled},
    id::Id,
    result::{Answer, Label},
};

use super::process::{Process, until};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

fn key(test: &str, n: u8) -> Id {
    Id::of(&[test.as_bytes(), &[n]])
}

fn kept(n: u8) -> Kept {
    let label = Label { label: format!("label-{n}"), confidence: Some(0.5) };
    let answer = Answer { labels: vec![label], value: Some(serde_json::json!(n)), raw: None };
    Kept { answer, call: Id::of(&[&[n]]), at: Timestamp::UNIX_EPOCH }
}

fn found(n: u8) -> Recalled {
    Recalled::Found(Box::new(kept(n)))
}

async fn recall(process: &Process, keys: &[Id]) -> Vec<Recalled> {
    let recalled = process.answers.recall(keys, LONG).await.unwrap();
    assert_eq!(recalled.len(), keys.len(), "{recalled:?}");
    recalled
}

/// Asks for one key until the claim is this process's.
async fn claims(process: &Process, key: Id) {
    until("the claim", async || {
        let recalled = recall(process, &[key]).await.remove(0);
        assert!(matches!(recalled, Recalled::Claimed | Recalled::Awaited(_)), "{recalled:?}");
        (recalled == Recalled::Claimed).then_some(())
    })
    .await;
}

/// Asks for one key until an answer is there.
async fn finds(process: &Process, key: Id) -> Kept {
    until("the answer", async || match recall(process, &[key]).await.remove(0) {
        Recalled::Found(kept) => Some(*kept),
        Recalled::Awaited(_) => None,
        Recalled::Claimed => panic!("claimed twice"),
    })
    .await
}

fn is_awaited(recalled: &Recalled) -> bool {
    matches!(recalled, Recalled::Awaited(_))
}

/// Who finds nothing has the claim; all others wait for the answer, and find it.
pub async fn who_finds_nothing_has_the_claim_and_others_wait_for_the_answer(test: &str, fleet: Vec<Process>) {
    let key = key(test, 1);
    assert_eq!(recall(&fleet[0], &[key]).await, [Recalled::Claimed]);
    for process in &fleet {
        let recalled = recall(process, &[key]).await;
        assert!(is_awaited(&recalled[0]), "the same process waits, too: {recalled:?}");
    }
    fleet[0].answers.keep(key, kept(1), LONG);
    for process in &fleet {
        assert_eq!(finds(process, key).await, kept(1));
    }
    fleet[1].answers.give_up(key);
    fleet[1].ledger.flush().await;
    assert_eq!(recall(&fleet[1], &[key]).await, [found(1)], "giving up takes no answer away");
}

/// A claim that is given up is the next one's.
pub async fn a_claim_that_is_given_up_is_the_next_ones(test: &str, fleet: Vec<Process>) {
    let key = key(test, 1);
    assert_eq!(recall(&fleet[0], &[key]).await, [Recalled::Claimed]);
    fleet[1].answers.give_up(key);
    fleet[1].ledger.flush().await;
    assert!(is_awaited(&recall(&fleet[1], &[key]).await[0]), "nobody gives up another one's claim");
    fleet[0].answers.give_up(key);
    claims(&fleet[1], key).await;
    assert!(is_awaited(&recall(&fleet[0], &[key]).await[0]));
}

/// A claim ends with its time.
pub async fn a_claim_ends_with_its_time(test: &str, fleet: Vec<Process>) {
    let key = key(test, 1);
    let short = Duration::from_millis(100);
    assert_eq!(fleet[0].answers.recall(&[key], short).await.unwrap(), [Recalled::Claimed]);
    claims(&fleet[1], key).await;
    // What the first one kept after all is as good.
    fleet[0].answers.keep(key, kept(1), LONG);
    assert_eq!(finds(&fleet[2], key).await, kept(1));
}

/// The claim of a process that died is the next one's, long before its time.
pub async fn a_claim_ends_with_its_process(test: &str, mut fleet: Vec<Process>) {
    let key = key(test, 1);
    let dies = fleet.remove(0);
    assert_eq!(recall(&dies, &[key]).await, [Recalled::Claimed]);
    dies.die().await;
    claims(&fleet[0], key).await;
}

/// An answer that is kept outlives the process that kept it.
pub async fn an_answer_outlives_the_process_that_kept_it(test: &str, mut fleet: Vec<Process>) {
    let key = key(test, 1);
    let dies = fleet.remove(0);
    assert_eq!(recall(&dies, &[key]).await, [Recalled::Claimed]);
    dies.answers.keep(key, kept(1), LONG);
    dies.ledger.flush().await;
    dies.die().await;
    assert_eq!(recall(&fleet[0], &[key]).await, [found(1)]);
}

/// An answer goes when its time is over.
pub async fn an_answer_goes_when_its_time_is_over(test: &str, fleet: Vec<Process>) {
    let (brief, lasting) = (key(test, 1), key(test, 2));
    assert_eq!(recall(&fleet[0], &[brief, lasting]).await, [Recalled::Claimed, Recalled::Claimed]);
    fleet[0].answers.keep(brief, kept(1), Duration::from_secs(1));
    fleet[0].answers.keep(lasting, kept(2), LONG);
    fleet[0].ledger.flush().await;
    until("the answer goes", async || {
        let recalled = recall(&fleet[1], &[brief, lasting]).await;
        assert_eq!(recalled[1], found(2));
        (recalled[0] == Recalled::Claimed).then_some(())
    })
    .await;
}

/// Behind a key that another one has the claim on nothing is claimed, so that no two wait for each other.
pub async fn nothing_is_claimed_behind_a_key_that_is_awaited(test: &str, fleet: Vec<Process>) {
    let keys = [1, 2, 3, 4].map(|n| key(test, n));
    fleet[0].answers.keep(keys[3], kept(4), LONG);
    fleet[0].ledger.flush().await;
    assert_eq!(recall(&fleet[0], &keys[1..2]).await, [Recalled::Claimed]);
    let recalled = recall(&fleet[1], &keys).await;
    assert_eq!(recalled[0], Recalled::Claimed);
    assert!(is_awaited(&recalled[1]) && is_awaited(&recalled[2]), "{recalled:?}");
    assert_eq!(recalled[3], found(4), "what is there is found all the same");
    claims(&fleet[2], keys[2]).await;
    assert!(is_awaited(&recall(&fleet[2], &keys[..1]).await[0]));
}

/// Of many who ask at once one has the claim.
pub async fn of_many_who_ask_at_once_one_has_the_claim(test: &str, fleet: Vec<Process>) {
    for n in 0..10 {
        let keys = [key(test, n)];
        let asked = fleet.iter().chain(&fleet).map(|process| recall(process, &keys));
        let recalled = join_all(asked).await.concat();
        let claims = recalled.iter().filter(|recalled| **recalled == Recalled::Claimed).count();
        assert_eq!(claims, 1, "{recalled:?}");
    }
}
