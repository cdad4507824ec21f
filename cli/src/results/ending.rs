//! When a reader of results is done. Pure: data and the time that passed.

use std::time::Duration;

use serde::Serialize;

use crate::exit::Exit;

/// A batch whose last result is here stays open for this long: an enqueue that adds to it may be next in the log.
const LINGER: Duration = Duration::from_millis(300);
/// With the batch complete in the log, a durable queue that is silent for this long has no more of it.
const DRAINED: Duration = Duration::from_secs(2);
/// A replay that is silent for this long has reached the present.
const PRESENT: Duration = Duration::from_secs(3);

/// What ends a reader, as it was asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ending {
    /// When every result of the batch is here.
    pub batch: bool,
    /// When the replay has reached the moment at which the reader began.
    pub present: bool,
    /// When nothing came for so long.
    pub idle: Option<Duration>,
    /// When so much time has passed.
    pub timeout: Option<Duration>,
}

/// Where a reader stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// Since it began.
    pub running: Duration,
    /// Since the last arrival.
    pub silent: Duration,
    /// Every promised result of the batch was counted.
    pub complete: bool,
    /// Counted results that this reader did not get itself.
    pub elsewhere: u64,
    /// A result was read that was made after the reader began.
    pub passed_present: bool,
    /// The queue can be reached: silence means that there is nothing.
    pub reachable: bool,
}

/// Why a reader is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    /// The batch is complete.
    Complete,
    /// The replay reached the present.
    CaughtUp,
    /// Nothing came for as long as `--idle` allows.
    Idle,
    /// `--timeout` is over.
    TimedOut,
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// Whoever read the output has closed it.
    OutputClosed,
}

impl Ending {
    /// Whether the reader is done, and why.
    pub(crate) fn verdict(&self, standing: &Standing) -> Option<Ended> {
        let silent_for = |long: Duration| standing.reachable && standing.silent >= long;
        let here = standing.elsewhere == 0 && silent_for(LINGER);
        if self.batch && standing.complete && (here || silent_for(DRAINED)) {
            return Some(Ended::Complete);
        }
        if self.present && (standing.passed_present || silent_for(PRESENT)) {
            return Some(Ended::CaughtUp);
        }
        if self.idle.is_some_and(silent_for) {
            return Some(Ended::Idle);
        }
        self.timeout.is_some_and(|timeout| standing.running >= timeout).then_some(Ended::TimedOut)
    }
}

impl Ended {
    /// How the command ended: with work left when a `batch` was waited for and is not complete.
    pub(crate) fn exit(self, batch: bool) -> Exit {
        match self {
            Self::TimedOut | Self::Idle | Self::Interrupted if batch => Exit::WorkLeft,
            _ => Exit::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANDING: Standing = Standing {
        running: Duration::from_secs(60),
        silent: Duration::from_secs(1),
        complete: false,
        elsewhere: 0,
        passed_present: false,
        reachable: true,
    };

    #[test]
    fn a_batch_ends_with_its_last_result_and_its_failure_to_end_has_a_code() {
        let ending = Ending { batch: true, timeout: Some(Duration::from_secs(60)), ..Ending::default() };
        assert_eq!(ending.verdict(&STANDING), Some(Ended::TimedOut));
        let complete = Standing { complete: true, ..STANDING };
        assert_eq!(ending.verdict(&complete), Some(Ended::Complete));
        let busy = Standing { silent: Duration::ZERO, running: Duration::ZERO, ..complete };
        assert_eq!(ending.verdict(&busy), None, "the log may go on with a second enqueue");
        assert_eq!((Ended::Complete.exit(true), Ended::TimedOut.exit(true)), (Exit::Done, Exit::WorkLeft));
        assert_eq!(
            (Ended::TimedOut.exit(false), Ended::Interrupted.exit(true)),
            (Exit::Done, Exit::WorkLeft)
        );
    }

    #[test]
    fn results_that_an_earlier_run_took_are_not_waited_for() {
        let ending = Ending { batch: true, ..Ending::default() };
        let standing = Standing { complete: true, elsewhere: 5, ..STANDING };
        assert_eq!(ending.verdict(&standing), None);
        let silent = Standing { silent: Duration::from_secs(3), ..standing };
        assert_eq!(ending.verdict(&silent), Some(Ended::Complete));
    }

    #[test]
    fn silence_ends_nothing_while_the_queue_is_away() {
        let ending = Ending { batch: true, present: true, idle: Some(Duration::from_secs(1)), timeout: None };
        let away = Standing { silent: Duration::from_secs(99), reachable: false, ..STANDING };
        assert_eq!(ending.verdict(&away), None);
        assert_eq!(ending.verdict(&Standing { reachable: true, ..away }), Some(Ended::CaughtUp));
    }
}
