//! Whether somebody wants what costs money, or can't be undone.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::error::ErrorKind;

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is wanted.
    Yes,
    /// It is not.
    No,
}

/// Asks on a terminal; elsewhere `--yes` has to say it.
///
/// # Errors
/// Nobody can be asked, and nobody said it: a misuse of the command line.
pub(super) async fn ask(yes: bool, question: String) -> anyhow::Result<Answer> {
    if yes {
        return Ok(Answer::Yes);
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let why = "nobody can be asked here: give --yes to do it\n";
        return Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, why).into());
    }
    // A person may take long: the connections live on meanwhile.
    Ok(tokio::task::spawn_blocking(move || answer(&question, &mut io::stdin().lock(), &mut io::stderr()))
        .await??)
}

fn answer(question: &str, typed: &mut impl BufRead, shown: &mut impl Write) -> io::Result<Answer> {
    write!(shown, "{question} [y/N] ")?;
    shown.flush()?;
    let mut line = String::new();
    typed.read_line(&mut line)?;
    let yes = matches!(line.trim().to_lowercase().as_str(), "y" | "yes");
    Ok(if yes { Answer::Yes } else { Answer::No })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        for (typed, meant) in [
            ("y\n", Answer::Yes),
            ("YES\n", Answer::Yes),
            ("\n", Answer::No),
            ("", Answer::No),
            ("yep\n", Answer::No),
        ] {
            let mut shown = Vec::new();
            assert_eq!(answer("Do it?", &mut typed.as_bytes(), &mut shown).unwrap(), meant, "{typed:?}");
            assert_eq!(shown, b"Do it? [y/N] ");
        }
    }
}
