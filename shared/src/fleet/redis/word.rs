//! A word to the server: a command, who hears its answer, and how long it may wait for others to go along.

use std::time::Duration;

use redis::{Arg, Cmd, Script, ToRedisArgs, Value};
use tokio::{sync::oneshot, time::Instant};

use super::keys::tag;
use crate::batch::BatchName;

/// What matters after a crash waits this long for others to go along.
pub(super) const SOON: Duration = Duration::from_millis(2);
/// What costs a repetition that is noticed when it was not said.
pub(super) const LATER: Duration = Duration::from_millis(20);

/// What a word takes beside its arguments, in bytes, about.
const ALONE: usize = 300;

/// A command on its way to the server.
pub(super) struct Word {
    pub(super) command: Cmd,
    /// What it is about: decides which server of a cluster is told.
    pub(super) tag: Vec<u8>,
    pub(super) heard: Heard,
    pub(super) due: Instant,
    is_script: bool,
    is_again: bool,
    /// Times that it was sent, and nothing sound was heard.
    pub(super) tries: u32,
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
        Self::new(command, &keys[0], true)
    }

    /// A plain command's, on one key.
    pub(super) fn plain(name: &str, key: &[u8]) -> Self {
        let mut command = redis::cmd(name);
        command.arg(key);
        Self::new(command, key, false)
    }

    fn new(command: Cmd, key: &[u8], is_script: bool) -> Self {
        let (tag, due) = (tag(key).to_vec(), Instant::now());
        Self { command, tag, heard: Heard::No, due, is_script, is_again: false, tries: 0 }
    }

    pub(super) fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        self.command.arg(argument);
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

    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let length = |argument| if let Arg::Simple(bytes) = argument { <[u8]>::len(bytes) } else { 1 };
        self.command.args_iter().map(length).sum::<usize>() + ALONE
    }

    /// It was not heard. Where it left, it may have been done all the same: a script is told so.
    pub(super) fn say_again(&mut self, left: bool) {
        self.tries += 1;
        if left && self.is_script && !self.is_again {
            self.is_again = true;
            self.command.arg("again");
        }
    }
}
