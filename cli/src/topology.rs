//! `pixfleet topology`: what has to be on the broker, and what of it differs.

use std::process::ExitCode;

use pixfleet_shared::fleet::rabbit::{Bound, Needed, needed, verify};
use serde::Serialize;

use crate::{config::Config, exit::Exit, output};

/// Show and check the exchanges and queues on RabbitMQ
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES
  pixfleet topology show
  pixfleet topology verify

EXIT CODES
  0 all is as it has to be    1 it is not, or the broker is away    2 wrong command line or settings")]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Show what there has to be; asks no server
    #[command(after_help = "EXAMPLES
  pixfleet topology show
  pixfleet topology show --json | jq '.[] | select(.kind == \"quorum\")'")]
    Show {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Compare what there is with what there has to be, and declare what is missing
    #[command(after_help = "EXAMPLES
  pixfleet topology verify
  pixfleet topology verify --json | jq -r '.differences[]'")]
    Verify {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// The one JSON object.
#[derive(Debug, Serialize)]
struct Verified {
    broker: String,
    differences: Vec<String>,
}

/// Does one task of `pixfleet topology`.
///
/// # Errors
/// When the broker is away.
pub(crate) async fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let rabbitmq = &config.rabbitmq;
    match args.task {
        Task::Show { json: true } => output::json(&needed(rabbitmq.lanes))?,
        Task::Show { json: false } => {
            for line in needed(rabbitmq.lanes).iter().map(line) {
                output::line(line)?;
            }
        }
        Task::Verify { json } => {
            let verified = Verified { broker: rabbitmq.endpoint(), differences: verify(rabbitmq).await? };
            let differs = !verified.differences.is_empty();
            print(&verified, json)?;
            return Ok(if differs { Exit::Failed } else { Exit::Done }.into());
        }
    }
    Ok(Exit::Done.into())
}

fn print(verified: &Verified, json: bool) -> anyhow::Result<()> {
    if json {
        return Ok(output::json(verified)?);
    }
    for difference in &verified.differences {
        output::line(difference)?;
    }
    if verified.differences.is_empty() {
        output::line(format!("{}: all exchanges and queues are as they have to be", verified.broker))?;
    }
    Ok(())
}

/// `pixfleet.jobs.v1.high.0  quorum  x-delivery-limit=20 ...  <- pixfleet.jobs high.0`
fn line(needed: &Needed) -> String {
    let Needed { name, kind, arguments, bindings } = needed;
    let mut words = vec![format!("{name:<28}"), format!("{kind:<7}")];
    words.extend(arguments.iter().map(|(name, value)| match value.as_str() {
        Some(text) => format!("{name}={text}"),
        None => format!("{name}={value}"),
    }));
    words.extend(bindings.iter().map(|Bound { exchange, key }| format!("<- {exchange} {key}")));
    words.join(" ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_queue_is_and_where_it_hangs() {
        let needed = needed(1);
        let lines: Vec<String> = needed.iter().map(line).collect();
        let lane = lines.iter().find(|line| line.starts_with("pixfleet.jobs.v1.high.0 ")).unwrap();
        assert!(lane.contains(" quorum ") && lane.contains("x-delivery-limit=20"), "{lane}");
        assert!(lane.ends_with("<- pixfleet.jobs high.0"), "{lane}");
        assert!(lines[0].starts_with("pixfleet.jobs ") && lines[0].ends_with("direct"), "{}", lines[0]);
    }
}
