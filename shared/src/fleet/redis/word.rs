//! A word to the server: a command, who hears its answer, and how long it may wait for others to go along.

use std::time::Duration;

use redis::{Arg, Cmd, Script, ToRedisArgs, Value};
use tokio::{sync::oneshot, time::Instant};

use super::keys::tag;
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
    /// As a command of its own.
    Command { command: Cmd, is_script: bool },
    /// Together with others of its kind.
    Part(Part),
}

/// One job's part of a script that takes those of many jobs of a batch, and answers each.
pub(super) struct Part {
    /// The script.
    pub(super) hash: String,
    /// What all parts of one call of it have in common: keys, and arguments.
    pub(super) shared: (Vec<Vec<u8>>, Vec<Vec<u8>>),
    /// The job. What is said of one job is said in its order.
    pub(super) job: Id,
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
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
    pub(super) fn script(script: &Script, keys: &[Vec<u8>]) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(keys.len()).arg(keys);
        Self::new(Said::Command { command, is_script: true }, &keys[0])
    }

    /// A plain command's, on one key.
    pub(super) fn plain(name: &str, key: &[u8]) -> Self {
        let mut command = redis::cmd(name);
        command.arg(key);
        Self::new(Said::Command { command, is_script: false }, key)
    }

    /// A job's part of a script. All keys, the shared ones among them, share one tag; behind its arguments the script finds
    /// whether the part may have been done before.
    pub(super) fn part(
        script: &Script,
        shared: (Vec<Vec<u8>>, Vec<Vec<u8>>),
        job: Id,
        keys: Vec<Vec<u8>>,
    ) -> Self {
        let tagged = keys[0].clone();
        let hash = script.get_hash().to_owned();
        Self::new(Said::Part(Part { hash, shared, job, keys, arguments: Vec::new() }), &tagged)
    }

    fn new(said: Said, key: &[u8]) -> Self {
        let (tag, due) = (tag(key).to_vec(), Instant::now());
        Self { said, tag, heard: Heard::No, due, is_again: false, tries: 0 }
    }

    pub(super) fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        match &mut self.said {
            Said::Command { command, .. } => {
                command.arg(argument);
            }
            Said::Part(part) => part.arguments.extend(argument.to_redis_args()),
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

    /// What it is a part of, where it is one.
    pub(super) fn as_part(&self) -> Option<&Part> {
        if let Said::Part(part) = &self.said { Some(part) } else { None }
    }

    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let length = |argument| if let Arg::Simple(bytes) = argument { <[u8]>::len(bytes) } else { 1 };
        let said: usize = match &self.said {
            Said::Command { command, .. } => command.args_iter().map(length).sum(),
            Said::Part(Part { keys, arguments, .. }) => keys.iter().chain(arguments).map(Vec::len).sum(),
        };
        said + ALONE
    }

    /// It was not heard. Where it left, it may have been done all the same: a script is told so.
    pub(super) fn say_again(&mut self, left: bool) {
        self.tries += 1;
        if left && !self.is_again {
            self.is_again = true;
            if let Said::Command { command, is_script: true } = &mut self.said {
                command.arg(AGAIN);
            }
        }
    }
}

/// One call of a script for all of `words`, which are parts of it.
pub(super) fn together(words: &[&Word]) -> Cmd {
    let parts = || words.iter().filter_map(|word| Some((word.as_part()?, word.is_again)));
    let mut command = redis::cmd("EVALSHA");
    let Some((Part { hash, shared: (keys, arguments), .. }, _)) = parts().next() else { return command };
    let own: usize = parts().map(|(part, _)| part.keys.len()).sum();
    command.arg(hash).arg(keys.len() + own).arg(keys);
    for (part, _) in parts() {
        command.arg(&part.keys);
    }
    command.arg(arguments);
    for (part, is_again) in parts() {
        command.arg(&part.arguments).arg(if is_again { AGAIN } else { "" });
    }
    command
}
