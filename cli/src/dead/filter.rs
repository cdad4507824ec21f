//! Which dead letters are meant.

use jiff::Timestamp;
use pixfleet_shared::{
    batch::BatchName,
    queue::{DeadLetter, Reason},
};

use crate::spans;

/// The fewest digits of an id that name a letter.
const FEWEST_DIGITS: usize = 4;

/// Which letters are meant: those that pass all that is given. A message that is no job passes only `--id`, `--reason` and
/// the times.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Filter {
    /// Only of this batch
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchName>,
    /// Only for this provider
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Only where this model is among those that have no answer
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Only with this reason, such as rejected or attempts-exhausted
    #[arg(long, value_name = "REASON", value_parser = reason)]
    reason: Option<Reason>,
    /// Only with this class of the last failure, such as transient or ambiguous
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Only what died since then: `2h` ago, or 2026-11-26T10:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = when)]
    since: Option<Timestamp>,
    /// Only what died until then
    #[arg(long, value_name = "WHEN", value_parser = when)]
    until: Option<Timestamp>,
    /// Only this one: the job's id, or its first digits (4 or more)
    #[arg(long, value_name = "ID", value_parser = id_prefix)]
    id: Option<String>,
}

impl Filter {
    /// The letter of this id.
    pub(super) fn of_id(id: &str) -> Self {
        Self { id: Some(id.to_owned()), ..Self::default() }
    }

    /// Whether every letter passes.
    pub(super) fn is_empty(&self) -> bool {
        let Self { batch, provider, model, reason, class, since, until, id } = self;
        let texts = [provider, model, class, id].into_iter().all(Option::is_none);
        texts && batch.is_none() && reason.is_none() && since.is_none() && until.is_none()
    }

    /// Whether the letter is meant.
    pub(super) fn passes(&self, letter: &DeadLetter) -> bool {
        let (death, job) = (&letter.death, letter.job.as_ref().ok());
        self.reason.is_none_or(|reason| reason == death.reason)
            && self.class.as_ref().is_none_or(|class| death.class.as_ref() == Some(class))
            && self.since.is_none_or(|since| death.at.is_some_and(|at| at >= since))
            && self.until.is_none_or(|until| death.at.is_some_and(|at| at <= until))
            && self.id.as_ref().is_none_or(|id| letter.id().to_string().starts_with(id.as_str()))
            && self.batch.as_ref().is_none_or(|batch| job.is_some_and(|job| job.batch == *batch))
            && self.provider.as_ref().is_none_or(|name| job.is_some_and(|job| job.provider == *name))
            && self.model.as_ref().is_none_or(|model| job.is_some_and(|job| job.models.contains(model)))
    }
}

fn reason(word: &str) -> Result<Reason, String> {
    Reason::named(word).ok_or_else(|| {
        let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        format!("the reasons are {}", known.join(", "))
    })
}

fn when(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    spans::span(text).and_then(|ago| Timestamp::now().checked_sub(ago).ok()).ok_or_else(|| {
        "give how long ago, like 90s, 2h or `1d 12h`, or a moment, like 2026-11-26T10:00:00Z".to_owned()
    })
}

/// The first digits of an id.
///
/// # Errors
/// A text that begins no id.
pub(super) fn id_prefix(text: &str) -> Result<String, String> {
    let digits = text.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
    if digits && (FEWEST_DIGITS..=32).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(format!("an id has 32 digits of 0-9 and a-f: give it, or its first {FEWEST_DIGITS} or more"))
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use clap::Parser;
    use pixfleet_shared::{
        job::{Image, Job, Source},
        queue::{Buried, Death, QueueError},
    };

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        filter: Filter,
    }

    struct Unburied;

    #[async_trait]
    impl Buried for Unburied {
        async fn end(self: Box<Self>, _: Option<Job>) -> Result<(), QueueError> {
            Ok(())
        }
    }

    fn letter(readable: bool) -> DeadLetter {
        let image = Image { id: "i1".into(), source: Source::Url("http://e.com/1.jpg".into()) };
        let job = Job::new("b1".parse().unwrap(), image, "restb".into(), vec!["m".into(), "n".into()]);
        let death = Death {
            reason: Reason::Rejected,
            class: Some("rejected".into()),
            message: String::new(),
            status: None,
            worker: None,
            at: Some("2026-11-26T10:00:00Z".parse().unwrap()),
        };
        DeadLetter::new(death, if readable { Ok(job) } else { Err(b"no job".to_vec()) }, Box::new(Unburied))
    }

    fn filter(line: &str) -> Result<Filter, clap::Error> {
        Cli::try_parse_from(std::iter::once("x").chain(line.split_whitespace())).map(|cli| cli.filter)
    }

    #[test]
    fn a_letter_is_meant_when_it_passes_all_that_is_given() {
        let id = letter(true).id().to_string();
        for (line, meant) in [
            ("", true),
            ("--batch b1 --provider restb --model n --reason rejected --class rejected", true),
            ("--batch b2", false),
            ("--batch b1 --provider other", false),
            ("--model o", false),
            ("--reason poison", false),
            ("--class transient", false),
            ("--since 2026-11-26T10:00:00Z --until 2026-11-26T10:00:00Z", true),
            ("--since 2026-11-26T10:00:01Z", false),
            ("--until 2026-11-26T09:59:59Z", false),
            (&format!("--id {}", &id[..6]), true),
            (&format!("--id {id}"), true),
            ("--id 0000", false),
        ] {
            assert_eq!(filter(line).unwrap().passes(&letter(true)), meant, "{line}");
        }
    }

    #[test]
    fn a_message_that_is_no_job_has_no_batch_and_still_a_reason_and_an_id() {
        let unreadable = letter(false);
        assert!(!filter("--batch b1").unwrap().passes(&unreadable));
        assert!(filter("--reason rejected").unwrap().passes(&unreadable));
        assert!(Filter::of_id(&unreadable.id().to_string()).passes(&unreadable));
    }

    #[test]
    fn a_time_is_how_long_ago_or_a_moment() {
        let hours = |text: &str| {
            let ago = Timestamp::now().duration_since(when(text).unwrap());
            (ago.as_secs_f64() / 360.0).round() / 10.0
        };
        for (text, expected) in
            [("90m", 1.5), ("2h", 2.0), ("1d 12h", 36.0), ("30d", 720.0), ("2 weeks", 336.0)]
        {
            assert_eq!(hours(text), expected, "{text}");
        }
        assert_eq!(when("2026-11-26T11:00:00+01:00").unwrap(), "2026-11-26T10:00:00Z".parse().unwrap());
    }

    #[test]
    fn a_wrong_word_is_refused_with_those_that_are_right() {
        for (line, said) in [
            ("--reason tired", "attempts-exhausted"),
            ("--since yesterday", "2h"),
            ("--since=-2h", "2h"),
            ("--id xyz1", "0-9 and a-f"),
            ("--id abc", "4 or more"),
        ] {
            let refusal = filter(line).unwrap_err().to_string();
            assert!(refusal.contains(said), "{line}: {refusal}");
        }
        assert!(filter("").unwrap().is_empty() && !filter("--since 2h").unwrap().is_empty());
    }
}
