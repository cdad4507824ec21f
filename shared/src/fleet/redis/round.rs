//! One round trip of many words, and what was heard of each.

use std::collections::HashMap;

use redis::{ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value, aio::ConnectionLike};

use super::{
    pool::{Away, Link},
    servers::Connection,
    word::{Word, together},
};
use crate::id::Id;

/// What was heard of a word.
pub(super) enum Answer {
    /// The server's answer.
    Heard(Value),
    /// The server will not have it, whenever it is said.
    Refused(String),
    /// Nothing, or that the server can't: it may have been done.
    Unheard,
}

/// Says `words` in their order. Answers what was heard of each, why some were not heard, and the round trips that it took.
pub(super) async fn round(link: &Link, words: &[Word]) -> (Vec<Answer>, Option<Away>, u64) {
    let mut answers: Vec<Answer> = words.iter().map(|_| Answer::Unheard).collect();
    let mut trips = 0;
    if words.is_empty() {
        return (answers, None, trips);
    }
    let (heard, counted) = (&mut answers, &mut trips);
    let work = move |connection: Connection| async move {
        let mut left: Vec<usize> = (0..words.len()).collect();
        while !left.is_empty() {
            let (mut open, behind) = in_turn(words, &left);
            let mut ill = None;
            for forgotten in [false, true] {
                *counted += 1;
                let mut unknown = Vec::new();
                for (at, answer) in say(&connection, words, &open, forgotten).await {
                    match sort(answer) {
                        Sorted::Sound(answer) => heard[at] = answer,
                        Sorted::NoScript => unknown.push(at),
                        Sorted::Ill(error) => ill = ill.or(Some(error)),
                    }
                }
                open = unknown;
                if open.is_empty() {
                    break;
                }
            }
            if let Some(error) = ill {
                return Err(error);
            }
            left = behind;
        }
        Ok(())
    };
    let away = link.exchange(work).await.err();
    (answers, away, trips)
}

/// The words at `open` in one pipeline; on a cluster in one for each of their tags, all at once. With the text of their scripts
/// where those are `forgotten`: what was loaded ahead of them could be forgotten in between.
async fn say(
    connection: &Connection,
    words: &[Word],
    open: &[usize],
    forgotten: bool,
) -> Vec<(usize, RedisResult<Value>)> {
    let mut groups: Vec<Vec<Bundle>> = Vec::new();
    for bundle in bundles(words, open) {
        let of_tag = |group: &&mut Vec<Bundle>| match connection {
            Connection::Server(_) => true,
            Connection::Cluster(_) => words[group[0].words[0]].tag == words[bundle.words[0]].tag,
        };
        match groups.iter_mut().find(of_tag) {
            Some(group) => group.push(bundle),
            None => groups.push(vec![bundle]),
        }
    }
    let said = groups.into_iter().map(|group| {
        let mut connection = connection.clone();
        async move {
            let mut pipeline = Pipeline::with_capacity(group.len());
            for bundle in &group {
                let said: Vec<&Word> = bundle.words.iter().map(|at| &words[*at]).collect();
                pipeline.add_command(together(&said, forgotten));
            }
            match connection.req_packed_commands(&pipeline, 0, pipeline.len()).await {
                Ok(values) => {
                    group.into_iter().zip(values).flat_map(|(bundle, value)| bundle.answers(value)).collect()
                }
                Err(error) => {
                    let words = group.into_iter().flat_map(|bundle| bundle.words);
                    words.map(|at| (at, Err(error.clone()))).collect::<Vec<_>>()
                }
            }
        }
    });
    futures_util::future::join_all(said).await.into_iter().flatten().collect()
}

/// Words that are one command: a single one, or parts of a script.
struct Bundle {
    words: Vec<usize>,
    are_parts: bool,
}

/// Which of `left` are said now, and which only when those were heard: a script may be forgotten, and what is said of one job
/// stays in its order, also then. Parts of one call are done or forgotten together.
fn in_turn(words: &[Word], left: &[usize]) -> (Vec<usize>, Vec<usize>) {
    // By job, the word that is said of it now; none where another one waits for it.
    let mut of_job: HashMap<Id, Option<usize>> = HashMap::new();
    left.iter().partition(|at| {
        let word = &words[**at];
        let Some(job) = word.job else { return true };
        let goes = match of_job.get(&job) {
            None => true,
            Some(None) => false,
            Some(Some(first)) => words[*first].shares_a_call_with(word),
        };
        of_job.insert(job, goes.then_some(**at));
        goes
    })
}

/// Puts the parts of one call of a script together, where the first of them stands.
fn bundles(words: &[Word], open: &[usize]) -> Vec<Bundle> {
    let mut bundles: Vec<Bundle> = Vec::new();
    let mut of_call = HashMap::new();
    for &at in open {
        let call = words[at].call();
        let place = call.and_then(|call| of_call.get(&call).copied());
        match place {
            Some(place) => {
                let bundle: &mut Bundle = &mut bundles[place];
                bundle.words.push(at);
            }
            None => {
                of_call.extend(call.map(|call| (call, bundles.len())));
                bundles.push(Bundle { words: vec![at], are_parts: call.is_some() });
            }
        }
    }
    bundles
}

impl Bundle {
    /// The answer to each word of it. A script that could not be called at all is no answer to any of its parts.
    fn answers(self, value: Value) -> Vec<(usize, RedisResult<Value>)> {
        match value {
            Value::Array(answers) if self.are_parts && answers.len() == self.words.len() => {
                let answers = answers.into_iter().map(Value::extract_error);
                self.words.into_iter().zip(answers).collect()
            }
            value => {
                let answer = value.extract_error();
                self.words.into_iter().map(|at| (at, answer.clone())).collect()
            }
        }
    }
}

enum Sorted {
    Sound(Answer),
    NoScript,
    Ill(RedisError),
}

fn sort(answer: RedisResult<Value>) -> Sorted {
    match answer {
        Ok(value) => Sorted::Sound(Answer::Heard(value)),
        Err(error) => match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoScript) => Sorted::NoScript,
            ErrorKind::Server(ServerErrorKind::ResponseError) => {
                Sorted::Sound(Answer::Refused(error.to_string()))
            }
            _ if error.code() == Some("WRONGTYPE") => Sorted::Sound(Answer::Refused(error.to_string())),
            _ => Sorted::Ill(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fleet::redis::{scripts::LedgerScript, word::Common},
        id::Id,
    };
    use proptest::prelude::*;

    fn word(script: &LedgerScript, batch: u8, job: u8) -> Word {
        let common = Common { bill: None, token: "me".into(), ttl_s: 60 };
        Word::part(script, common, Id::from_bytes([job; 16]), &[format!("{{{batch}}}:j").into_bytes()])
    }

    /// A script that is no part of a call, and a plain command.
    fn alone(script: &LedgerScript, batch: u8, job: u8) -> [Word; 2] {
        let (job, key) = (Id::from_bytes([job; 16]), format!("{{{batch}}}:j").into_bytes());
        [Word::script(script, std::slice::from_ref(&key)).of_job(job), Word::plain("GET", &key).of_job(job)]
    }

    /// All that is said, in turns.
    fn turns(words: &[Word]) -> Vec<Vec<Bundle>> {
        let (mut turns, mut left) = (Vec::new(), (0..words.len()).collect::<Vec<_>>());
        while !left.is_empty() {
            let (open, behind) = in_turn(words, &left);
            assert!(!open.is_empty(), "nothing is ever said");
            turns.push(bundles(words, &open));
            left = behind;
        }
        turns
    }

    proptest! {
        /// Each word is said once, those of one job in the order in which they were handed in, whatever scripts are forgotten,
        /// and parts of different calls never in one.
        #[test]
        fn what_is_said_of_a_job_stays_in_order(said in prop::collection::vec((0..5usize, 0..2u8, 0..4u8), 0..60)) {
            let scripts = ["a", "b", "c"].map(LedgerScript::new);
            let words: Vec<Word> = said.iter().map(|&(what, batch, job)| match what {
                3 | 4 => { let [script, plain] = alone(&scripts[0], batch, job); if what == 3 { script } else { plain } }
                _ => word(&scripts[what], batch, job),
            }).collect();
            let turns = turns(&words);
            let mut all: Vec<usize> = turns.iter().flatten().flat_map(|bundle| bundle.words.clone()).collect();
            let order = all.clone();
            all.sort_unstable();
            prop_assert_eq!(all, (0..words.len()).collect::<Vec<_>>());
            for job in 0..4 {
                let of_it = |at: &usize| said[*at].2 == job;
                let of_job: Vec<usize> = order.iter().copied().filter(of_it).collect();
                prop_assert!(of_job.is_sorted(), "{:?}", of_job);
                // Nothing else is said of it before that is heard.
                for turn in &turns {
                    let bundles = turn.iter().filter(|bundle| bundle.words.iter().any(of_it));
                    prop_assert!(bundles.count() <= 1);
                }
            }
            for bundle in turns.iter().flatten() {
                let first = &said[bundle.words[0]];
                prop_assert!(bundle.words.iter().all(|at| said[*at].0 == first.0 && said[*at].1 == first.1));
            }
        }
    }

    #[test]
    fn words_of_many_jobs_are_few_commands() {
        let scripts = ["a", "b", "c"].map(LedgerScript::new);
        let words: Vec<Word> = (0..90).map(|job| word(&scripts[usize::from(job) % 3], 0, job)).collect();
        let turns = turns(&words);
        assert_eq!((turns.len(), turns[0].len()), (1, 3));
    }
}
