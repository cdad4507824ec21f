//! One round trip of many words, and what was heard of each.

use redis::{ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value, aio::ConnectionLike};

use super::{
    pool::{Away, Link},
    scripts::OF_THE_LEDGER,
    servers::Connection,
    word::Word,
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
        for loaded in [false, true] {
            *counted += 1;
            let mut unknown = Vec::new();
            for (at, answer) in say(&connection, words, &open, loaded).await {
                match sort(answer) {
                    Sorted::Sound(answer) => heard[at] = answer,
                    Sorted::NoScript if !loaded => unknown.push(at),
                    Sorted::NoScript => {}
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

/// The words at `open` in one pipeline; on a cluster in one for each of their tags, all at once. With `loading` the scripts go
/// ahead in it, so that nobody makes the server forget them in between.
async fn say(
    connection: &Connection,
    words: &[Word],
    open: &[usize],
    loading: bool,
) -> Vec<(usize, RedisResult<Value>)> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    match connection {
        Connection::Server(_) => groups.push(open.to_vec()),
        Connection::Cluster(_) => {
            for &at in open {
                match groups.iter_mut().find(|group| words[group[0]].tag == words[at].tag) {
                    Some(group) => group.push(at),
                    None => groups.push(vec![at]),
                }
            }
        }
    }
    let scripts: &[&str] = if loading { &OF_THE_LEDGER } else { &[] };
    let said = groups.into_iter().map(|group| {
        let mut connection = connection.clone();
        async move {
            let mut pipeline = Pipeline::with_capacity(scripts.len() + group.len());
            for script in scripts {
                pipeline.cmd("SCRIPT").arg("LOAD").arg(*script);
            }
            for &at in &group {
                pipeline.add_command(words[at].command.clone());
            }
            match connection.req_packed_commands(&pipeline, 0, pipeline.len()).await {
                Ok(values) => {
                    let values = values.into_iter().skip(scripts.len()).map(Value::extract_error);
                    group.into_iter().zip(values).collect()
                }
                Err(error) => group.into_iter().map(|at| (at, Err(error.clone()))).collect::<Vec<_>>(),
            }
        }
    });
    futures_util::future::join_all(said).await.concat()
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
