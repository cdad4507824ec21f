//! One round trip of many words, and what was heard of each.

use std::collections::HashMap;

use redis::{ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value, aio::ConnectionLike};

use super::{
    pool::{Away, Link},
    servers::Connection,
    word::{Word, together},
};

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
        let mut open: Vec<usize> = (0..words.len()).collect();
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
        ill.map_or(Ok(()), Err)
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
    futures_util::future::join_all(said).await.concat()
}

/// Words that are one command: a single one, or parts of a script.
struct Bundle {
    words: Vec<usize>,
    are_parts: bool,
}

/// Puts the parts of one call of a script together. What is said of one job stays in its order; all else is of the order that
/// it was said in, but for parts that go ahead with others.
fn bundles(words: &[Word], open: &[usize]) -> Vec<Bundle> {
    let mut bundles: Vec<Bundle> = Vec::new();
    let (mut of_call, mut of_job) = (HashMap::new(), HashMap::new());
    for &at in open {
        let Some((script, part)) = words[at].as_part() else {
            bundles.push(Bundle { words: vec![at], are_parts: false });
            continue;
        };
        let call = (script, &words[at].tag, &part.common);
        let not_before = of_job.get(&part.job).copied().unwrap_or(0);
        let place = match of_call.get(&call) {
            Some(&place) if place >= not_before => place,
            _ => {
                bundles.push(Bundle { words: Vec::new(), are_parts: true });
                bundles.len() - 1
            }
        };
        bundles[place].words.push(at);
        of_call.insert(call, place);
        of_job.insert(part.job, place);
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

    proptest! {
        /// Each word is said once, those of one job in the order in which they were handed in, and parts of different calls
        /// never in one.
        #[test]
        fn what_is_said_of_a_job_stays_in_order(said in prop::collection::vec((0..3usize, 0..2u8, 0..4u8), 0..60)) {
            let scripts = ["a", "b", "c"].map(LedgerScript::new);
            let words: Vec<Word> = said.iter().map(|(script, batch, job)| word(&scripts[*script], *batch, *job)).collect();
            let open: Vec<usize> = (0..words.len()).collect();
            let bundles = bundles(&words, &open);
            let order: Vec<usize> = bundles.iter().flat_map(|bundle| bundle.words.clone()).collect();
            let mut all = order.clone();
            all.sort_unstable();
            prop_assert_eq!(all, open);
            for (batch, job) in said.iter().map(|(_, batch, job)| (batch, job)) {
                let of_it: Vec<usize> =
                    order.iter().copied().filter(|at| said[*at].1 == *batch && said[*at].2 == *job).collect();
                prop_assert!(of_it.is_sorted(), "{:?}", of_it);
            }
            for bundle in bundles {
                let first = &said[bundle.words[0]];
                prop_assert!(bundle.words.iter().all(|at| said[*at].0 == first.0 && said[*at].1 == first.1));
            }
        }
    }

    #[test]
    fn words_of_many_jobs_are_few_commands() {
        let scripts = ["a", "b", "c"].map(LedgerScript::new);
        let words: Vec<Word> =
            (0..30).flat_map(|job| scripts.each_ref().map(|script| word(script, 0, job))).collect();
        assert_eq!(bundles(&words, &(0..90).collect::<Vec<_>>()).len(), 3);
    }
}
