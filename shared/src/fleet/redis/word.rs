//! A word to the server: a command, who hears its answer, and how long it may wait for others to go along.

use std::time::Duration;

use redis::{Arg, Cmd, ToRedisArgs, Value};
use tokio::{sync::oneshot, time::Instant};

use super::{keys::tag, scripts::LedgerScript};
use crate::{batch::BatchName, id::Id};

/// What matters after a crash waits this long for others to go along.
pub(super) const SOON: Duration = Duration::from_millis(2);
/// What costs a repetition that is noticed when it was not said.
pub(super) const LATER: Duration = Duration::from_millis(20);

/// What a script is told of what may have been done before.
const AGAIN: &str = "again";
/// What a word takes beside its arguments, in bytes, about.
const ALONE: usize = 300;

/// What is said to the server in one answer's worth.
pub(super) struct Word {
    pub(super) said: Said,
    /// What it is about: decides which server of a cluster is told.
    pub(super) tag: Vec<u8>,
    pub(super) heard: Heard,
    pub(super) due: Instant,
    is_again: bool,
    /// Times that it was sent, and nothing sound was heard.
    pub(super) tries: u32,
}

/// How it is said.
pub(super) enum Said {
    /// As a plain command.
    Command(Cmd),
    /// As a call of a script, or a part of one.
    Call(Call),
}

/// A script with its keys and arguments.
pub(super) struct Call {
    /// The script's.
    pub(super) hash: String,
    text: &'static str,
    /// Of a part of a script that takes those of many jobs, and answers each.
    pub(super) part: Option<Part>,
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
}

/// What makes a word one of many in one call.
pub(super) struct Part {
    /// What all parts of the call have in common: keys, and arguments.
    pub(super) shared: Common,
    /// What is said of one job is said in its order.
    pub(super) job: Id,
}

/// Keys, and arguments.
pub(super) type Common = (Vec<Vec<u8>>, Vec<Vec<u8>>);

/// Who hears the answer.
pub(super) enum Heard {
    /// Nobody.
    No,
    /// Whoever asked.
    Asked(oneshot::Sender<Result<Value, Unheard>>),
    /// Whoever settles the job, as soon as it is stored: whether what was said stands.
    Told(oneshot::Sender<bool>),
    /// Whoever announces this batch, where it is complete by it.
    Completed(BatchName),
}

/// There was no answer.
#[derive(Debug)]
pub(super) struct Unheard {
    pub(super) why: String,
    /// The word left: it may have been done all the same.
    pub(super) left: bool,
}

impl Word {
    /// A script's: `keys` share one tag.
    pub(super) fn script(script: &LedgerScript, keys: &[Vec<u8>]) -> Self {
        Self::call(script, keys.to_vec(), None)
    }

    /// A job's part of a script. All keys, the shared ones among them, share one tag; behind its arguments the script finds
    /// whether the part may have been done before.
    pub(super) fn part(script: &LedgerScript, shared: Common, job: Id, keys: Vec<Vec<u8>>) -> Self {
        Self::call(script, keys, Some(Part { shared, job }))
    }

    fn call(script: &LedgerScript, keys: Vec<Vec<u8>>, part: Option<Part>) -> Self {
        let tag = tag(&keys[0]).to_vec();
        let (hash, text) = (script.script.get_hash().to_owned(), script.text);
        Self::new(Said::Call(Call { hash, text, part, keys, arguments: Vec::new() }), tag)
    }

    /// A plain command's, on one key.
    pub(super) fn plain(name: &str, key: &[u8]) -> Self {
        let mut command = redis::cmd(name);
        command.arg(key);
        Self::new(Said::Command(command), tag(key).to_vec())
    }

    fn new(said: Said, tag: Vec<u8>) -> Self {
        Self { said, tag, heard: Heard::No, due: Instant::now(), is_again: false, tries: 0 }
    }

    pub(super) fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        match &mut self.said {
            Said::Command(command) => {
                command.arg(argument);
            }
            Said::Call(call) => call.arguments.extend(argument.to_redis_args()),
        }
        self
    }

    pub(super) fn within(mut self, time: Duration) -> Self {
        self.due = Instant::now() + time;
        self
    }

    pub(super) fn heard_by(mut self, heard: Heard) -> Self {
        self.heard = heard;
        self
    }

    /// The script, and what it is a part of, where it is one.
    pub(super) fn as_part(&self) -> Option<(&str, &Part)> {
        match &self.said {
            Said::Call(Call { hash, part: Some(part), .. }) => Some((hash, part)),
            _ => None,
        }
    }

    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let length = |argument| if let Arg::Simple(bytes) = argument { <[u8]>::len(bytes) } else { 1 };
        let said: usize = match &self.said {
            Said::Command(command) => command.args_iter().map(length).sum(),
            Said::Call(Call { keys, arguments, .. }) => keys.iter().chain(arguments).map(Vec::len).sum(),
        };
        said + ALONE
    }

    /// It was not heard. Where it left, it may have been done all the same: a script is told so.
    pub(super) fn say_again(&mut self, left: bool) {
        self.tries += 1;
        self.is_again |= left;
    }
}

/// The command that says `words`: a single one, or parts of one call. With its script's text where that is `forgotten`.
pub(super) fn together(words: &[&Word], forgotten: bool) -> Cmd {
    let calls = || {
        words.iter().filter_map(|word| match &word.said {
            Said::Call(call) => Some((call, word.is_again)),
            Said::Command(_) => None,
        })
    };
    let first = match &words[0].said {
        Said::Command(command) => return command.clone(),
        Said::Call(call) => call,
    };
    let mut command = if forgotten { redis::cmd("EVAL") } else { redis::cmd("EVALSHA") };
    command.arg(if forgotten { first.text } else { &first.hash });
    let (keys, arguments) = first.part.as_ref().map_or_else(<(&[_], &[_])>::default, |part| {
        let (keys, arguments) = &part.shared;
        (&keys[..], &arguments[..])
    });
    let own: usize = calls().map(|(call, _)| call.keys.len()).sum();
    command.arg(keys.len() + own).arg(keys);
    for (call, _) in calls() {
        command.arg(&call.keys);
    }
    command.arg(arguments);
    for (call, is_again) in calls() {
        command.arg(&call.arguments);
        match (is_again, &call.part) {
            (true, _) => drop(command.arg(AGAIN)),
            // Each part has as many arguments.
            (false, Some(_)) => drop(command.arg("")),
            (false, None) => {}
        }
    }
    command
}
