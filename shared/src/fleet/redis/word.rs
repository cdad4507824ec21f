//! A word to the server: a command, who hears its answer, and how long it may wait for others to go along.

use std::{sync::Arc, time::Duration};

use jiff::civil::Date;
use redis::{Arg, Cmd, ToRedisArgs, Value};
use tokio::{sync::oneshot, time::Instant};

use super::{
    keys::{in_common, tag},
    scripts::LedgerScript,
};
use crate::{batch::BatchName, id::Id};

/// What matters after a crash waits this long for others to go along.
pub(super) const SOON: Duration = Duration::from_millis(2);
/// What costs a repetition that is noticed when it was not said.
pub(super) const LATER: Duration = Duration::from_millis(20);

/// What a script is told of what may have been done before.
const AGAIN: &str = "again";
/// Of a script's, at most, about.
const MOST_ARGUMENTS: usize = 10;
/// What a word takes beside its arguments, in bytes, about.
const ALONE: usize = 300;

/// What is said to the server in one answer's worth.
pub(super) struct Word {
    pub(super) said: Said,
    /// What it is about: decides which server of a cluster is told.
    pub(super) tag: Vec<u8>,
    /// What is said of one job is said in its order.
    pub(super) job: Option<Id>,
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
    /// Of a part of a script that takes those of many jobs, and answers each: what all parts of a call have in common.
    common: Option<Common>,
    /// So many keys, and the arguments.
    keys: usize,
    own: Cmd,
}

/// What all parts of a call have in common, beside the batch.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Common {
    /// The day whose bill they are on.
    pub(super) bill: Option<Date>,
    /// The process that says them, and for how long they are kept.
    pub(super) token: Arc<str>,
    pub(super) ttl_s: u64,
}

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
        Self::said_by(script, keys, None)
    }

    /// A job's part of a script, whose keys are the batch's. Behind its arguments the script finds whether the part may have
    /// been done before.
    pub(super) fn part(script: &LedgerScript, common: Common, job: Id, keys: &[Vec<u8>]) -> Self {
        Self::said_by(script, keys, Some(common)).of_job(job)
    }

    fn said_by(script: &LedgerScript, keys: &[Vec<u8>], common: Option<Common>) -> Self {
        let (hash, text) = (script.script.get_hash().to_owned(), script.text);
        let mut own = Cmd::with_capacity(keys.len() + MOST_ARGUMENTS, ALONE);
        own.arg(keys);
        Self::new(Said::Call(Call { hash, text, common, keys: keys.len(), own }), tag(&keys[0]).to_vec())
    }

    /// A plain command's, on one key.
    pub(super) fn plain(name: &str, key: &[u8]) -> Self {
        let mut command = redis::cmd(name);
        command.arg(key);
        Self::new(Said::Command(command), tag(key).to_vec())
    }

    fn new(said: Said, tag: Vec<u8>) -> Self {
        Self { said, tag, job: None, heard: Heard::No, due: Instant::now(), is_again: false, tries: 0 }
    }

    pub(super) fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        match &mut self.said {
            Said::Command(command) => command.arg(argument),
            Said::Call(call) => call.own.arg(argument),
        };
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

    /// It is about a job, of which other things may be said.
    pub(super) fn of_job(mut self, job: Id) -> Self {
        self.job = Some(job);
        self
    }

    /// The call that it is a part of, where it is one: all that has to be equal of parts that go together.
    pub(super) fn call(&self) -> Option<(&str, &[u8], &Common)> {
        match &self.said {
            Said::Call(Call { hash, common: Some(common), .. }) => Some((hash, &self.tag, common)),
            _ => None,
        }
    }

    /// Whether both are parts of one call.
    pub(super) fn shares_a_call_with(&self, other: &Self) -> bool {
        self.call().is_some_and(|call| other.call() == Some(call))
    }

    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let said = match &self.said {
            Said::Command(command) => command,
            Said::Call(call) => &call.own,
        };
        arguments(said).map(<[u8]>::len).sum::<usize>() + ALONE
    }

    /// It was not heard. Where it left, it may have been done all the same: a script is told so.
    pub(super) fn say_again(&mut self, left: bool) {
        self.tries += 1;
        self.is_again |= left;
    }
}

/// The command that says `words`: a single one, or parts of one call. With its script's text where that is `forgotten`.
pub(super) fn together(words: &[&Word], forgotten: bool) -> Cmd {
    let Call { hash, text, common, .. } = match &words[0].said {
        Said::Command(command) => return command.clone(),
        Said::Call(call) => call,
    };
    let calls = || {
        words.iter().filter_map(|word| match &word.said {
            Said::Call(call) => Some((call, word.is_again)),
            Said::Command(_) => None,
        })
    };
    let (many, length) = calls().fold((MOST_ARGUMENTS, text.len()), |(many, length), (call, _)| {
        (many + call.own.args_iter().len() + 1, length + arguments(&call.own).map(<[u8]>::len).sum::<usize>())
    });
    // Under load it is some ten thousand bytes, which need not be moved again and again.
    let mut command = Cmd::with_capacity(many, length);
    command.arg(if forgotten { "EVAL" } else { "EVALSHA" });
    command.arg(if forgotten { *text } else { hash });
    let keys = common.as_ref().map_or_else(Vec::new, |common| in_common(&words[0].tag, common.bill));
    command.arg(keys.len() + calls().map(|(call, _)| call.keys).sum::<usize>()).arg(keys);
    for (call, _) in calls() {
        for key in arguments(&call.own).take(call.keys) {
            command.arg(key);
        }
    }
    if let Some(Common { token, ttl_s, .. }) = common {
        command.arg(&**token).arg(ttl_s);
    }
    for (call, is_again) in calls() {
        for argument in arguments(&call.own).skip(call.keys) {
            command.arg(argument);
        }
        // Each part has as many arguments.
        if is_again || call.common.is_some() {
            command.arg(if is_again { AGAIN } else { "" });
        }
    }
    command
}

fn arguments(command: &Cmd) -> impl Iterator<Item = &[u8]> {
    command.args_iter().map(|argument| if let Arg::Simple(bytes) = argument { bytes } else { b"" })
}
