//! How a command ended, as its exit code. `docs/configuration.md` lists them for users.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use pixfleet_shared::settings::Problems;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything that was asked for is done.
    Done = 0,
    /// It could not be done, or what was checked does not hold.
    Failed = 1,
    /// The command line or the settings are wrong; nothing was started.
    Usage = 2,
    /// Done, but for rows of the manifest that could not be read.
    RowsLeftOut = 3,
    /// Ended by a signal or a time limit before everything was done; what is left is still in the queue.
    WorkLeft = 4,
}

impl Exit {
    /// Every way to end, with its meaning for users.
    pub(crate) const ALL: [(Self, &str); 5] = [
        (Self::Done, "done"),
        (Self::Failed, "failed, or what was checked does not hold"),
        (Self::Usage, "the command line or the settings are wrong; nothing was started"),
        (Self::RowsLeftOut, "done, but for manifest rows that could not be read"),
        (
            Self::WorkLeft,
            "ended before everything was done, by a signal or a time limit; what is left is still in the queue",
        ),
    ];

    /// How a command ended that could not go on, after saying why.
    ///
    /// A role refuses a combination of arguments with `clap::Error::raw`.
    pub(crate) fn of_error(error: &anyhow::Error, stderr: &mut impl Write) -> Self {
        if is_broken_pipe(error) {
            return Self::Done;
        }
        // Not eprintln, and no unwrap: stderr may be closed, too.
        if let Some(misused) = error.downcast_ref::<clap::Error>() {
            let _ = write!(stderr, "{misused}");
            return Self::Usage;
        }
        match error.downcast_ref::<Problems>() {
            Some(problems) => {
                let count = problems.iter().len();
                let noun = if count == 1 { "problem" } else { "problems" };
                let _ = writeln!(stderr, "{problems}\n{count} {noun} in the settings: nothing was started");
                Self::Usage
            }
            None => {
                let _ = writeln!(stderr, "error: {error:#}");
                Self::Failed
            }
        }
    }
}

/// Whoever read our output has had enough: `pixfleet results | head`.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use pixfleet_shared::settings::Problem;

    use super::*;

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let error: Result<(), _> = Err(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(Exit::of_error(&error.context("writing a row").unwrap_err(), &mut io::sink()), Exit::Done);
    }

    #[test]
    fn wrong_settings_and_other_failures_have_their_own_codes() {
        let mut said = Vec::new();
        let problems = Problems::from(Problem::of("--set", "wrong"));
        let misused = clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, "leave --name out\n");
        assert_eq!(Exit::of_error(&misused.into(), &mut io::sink()), Exit::Usage);
        assert_eq!(Exit::of_error(&problems.into(), &mut said), Exit::Usage);
        assert_eq!(Exit::of_error(&anyhow::anyhow!("the queue is away"), &mut said), Exit::Failed);
        let said = String::from_utf8(said).unwrap();
        assert_eq!(
            said,
            "--set: wrong\n1 problem in the settings: nothing was started\nerror: the queue is away\n"
        );
    }

    #[test]
    fn the_codes_are_the_documented_numbers() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|(exit, _)| *exit as u8).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4]);
    }
}
