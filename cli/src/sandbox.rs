//! `pixfleet sandbox`: an image API that judges, on one's own machine.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;
use pixfleet_sandbox::{Bill, Cost, Faults, Judging, Latency, RetryAfter, Rule, Running, Sandbox, Settings};
use serde_json::json;
use tokio::net::TcpListener;

const EXAMPLES: &str = "\
Examples:
  An obliging API, any key, no limit:
    pixfleet sandbox
  Restb as in its tutorial, 4 calls a second in any window, about 1160 ms a call:
    pixfleet sandbox --judge sliding --limit 4 --latency-ms 1160 --latency-sigma 0.2
  A gateway with a token bucket, one answer in fifty lost after it was paid for, every call logged:
    pixfleet sandbox --judge bucket --limit 200 --burst 20 --fault drop=0.02 --access-log access.jsonl
  For a script: the URL is one JSON line on standard output, the bill another when it ends:
    pixfleet sandbox --listen 127.0.0.1:0 --json
";

/// Serve an image API that judges, charges and misbehaves as told, until interrupted
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8089")]
    listen: SocketAddr,
    /// A key that is let in (repeat it, or separate by commas); without any, every non-empty key is
    #[arg(
        long = "key",
        value_name = "KEY",
        env = "PIXFLEET_SANDBOX_KEYS",
        hide_env_values = true,
        value_delimiter = ','
    )]
    keys: Vec<String>,
    /// A model that the Restb contract knows (repeat it), or `*` for all [default: the six of the vendor's library]
    #[arg(long = "restb-model", value_name = "MODEL", value_delimiter = ',')]
    restb_models: Vec<String>,

    /// Who decides that a key is over its rate
    #[arg(long, value_enum, default_value_t = Judge::None, help_heading = "Judge")]
    judge: Judge,
    /// Calls a window, or in flight for `concurrent`
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Judge")]
    limit: u32,
    /// The window in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1_000, help_heading = "Judge")]
    window_ms: u64,
    /// Burst of `bucket` (its size, at least 1) and of `leaky` [default: 1 for bucket, 0 for leaky]
    #[arg(long, value_name = "N", help_heading = "Judge")]
    burst: Option<u32>,
    /// Refused calls count, too: a retry storm never recovers
    #[arg(long, help_heading = "Judge")]
    count_refused: bool,
    /// What a call with several models counts for, at the judge and on the bill
    #[arg(long, value_enum, default_value_t = CostArg::PerCall, help_heading = "Judge")]
    cost: CostArg,
    /// What a throttled call is told about when to come back
    #[arg(long, value_enum, default_value_t = RetryAfterArg::None, help_heading = "Judge")]
    retry_after: RetryAfterArg,
    /// The HTTP status of a throttled call
    #[arg(long, value_name = "STATUS", default_value_t = 429, help_heading = "Judge")]
    throttle_status: u16,

    /// How long an accepted call takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0, help_heading = "Latency and faults")]
    latency_ms: u64,
    /// Make the latency log-normal around --latency-ms, with this spread (0.2 calm, 1 wild)
    #[arg(long, value_name = "SIGMA", help_heading = "Latency and faults")]
    latency_sigma: Option<f64>,
    /// A fault and its probability: 500, hang, cut, drop, malformed or huge (repeat it)
    #[arg(long = "fault", value_name = "KIND=P", value_parser = fault, value_delimiter = ',', help_heading = "Latency and faults")]
    faults: Vec<(FaultKind, f64)>,
    /// The faults and latencies follow from this number and the order of the calls
    #[arg(long, value_name = "SEED", default_value_t = 0, help_heading = "Latency and faults")]
    seed: u64,
    /// How long a `hang` holds the connection, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 600_000, help_heading = "Latency and faults")]
    hang_ms: u64,
    /// Size of a `huge` body, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20, help_heading = "Latency and faults")]
    huge_bytes: u64,

    /// Append one JSON object a call to this file
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// Print the URL, and at the end the bill, as JSON lines on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Judge {
    /// Nobody: everything passes
    None,
    /// At most N in each window of the clock
    Fixed,
    /// At most N in any window
    Sliding,
    /// A token bucket of --burst, refilled with N a window
    Bucket,
    /// nginx limit_req with --burst and nodelay
    Leaky,
    /// At most N in flight
    Concurrent,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CostArg {
    /// One a call
    PerCall,
    /// One a model
    PerModel,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RetryAfterArg {
    /// No Retry-After
    None,
    /// Whole seconds
    Seconds,
    /// An HTTP date
    HttpDate,
}

#[derive(Debug, Clone, Copy)]
enum FaultKind {
    Error500,
    Hang,
    Cut,
    Drop,
    Malformed,
    Huge,
}

/// Serves until SIGINT or SIGTERM, then prints the bill.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (listen, json) = (args.listen, args.json);
    let settings = settings(args);
    // Listened for before the URL is known to anybody: who reads it may stop us at once.
    let mut stopped = Signals::listen()?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}; free the port or give another --listen"))?;
    let sandbox = Sandbox::start(listener, settings)?;
    greet(&sandbox, json)?;
    stopped.wait().await;
    let bill = sandbox.shutdown().await?;
    present(&bill, json)?;
    Ok(ExitCode::SUCCESS)
}

fn settings(args: Args) -> Settings {
    let usual = Settings::default();
    let rule = match args.judge {
        Judge::None => Rule::None,
        Judge::Fixed => Rule::Fixed,
        Judge::Sliding => Rule::Sliding,
        Judge::Bucket => Rule::Bucket { burst: args.burst.unwrap_or(1) },
        Judge::Leaky => Rule::Leaky { burst: args.burst.unwrap_or(0) },
        Judge::Concurrent => Rule::Concurrent,
    };
    let latency = match args.latency_sigma {
        None => Latency::Constant { ms: args.latency_ms },
        Some(sigma) => Latency::Lognormal { mean_ms: args.latency_ms as f64, sigma },
    };
    Settings {
        keys: args.keys,
        restb_models: if args.restb_models.is_empty() { usual.restb_models } else { args.restb_models },
        latency,
        judging: Judging {
            rule,
            limit: args.limit,
            window_ms: args.window_ms,
            count_refused: args.count_refused,
        },
        retry_after: match args.retry_after {
            RetryAfterArg::None => RetryAfter::None,
            RetryAfterArg::Seconds => RetryAfter::Seconds,
            RetryAfterArg::HttpDate => RetryAfter::HttpDate,
        },
        throttle_status: args.throttle_status,
        cost: match args.cost {
            CostArg::PerCall => Cost::PerCall,
            CostArg::PerModel => Cost::PerModel,
        },
        faults: faults(&args.faults, args.seed, args.hang_ms, args.huge_bytes),
        access_log: args.access_log,
        ..usual
    }
}

fn faults(odds: &[(FaultKind, f64)], seed: u64, hang_ms: u64, huge_bytes: u64) -> Faults {
    let mut faults = Faults { seed, hang_ms, huge_bytes, ..Faults::default() };
    for &(kind, odds) in odds {
        *match kind {
            FaultKind::Error500 => &mut faults.error_500,
            FaultKind::Hang => &mut faults.hang,
            FaultKind::Cut => &mut faults.cut,
            FaultKind::Drop => &mut faults.drop,
            FaultKind::Malformed => &mut faults.malformed,
            FaultKind::Huge => &mut faults.huge,
        } = odds;
    }
    faults
}

fn fault(text: &str) -> Result<(FaultKind, f64), String> {
    let (kind, odds) = text.split_once('=').ok_or("give KIND=PROBABILITY, such as drop=0.02")?;
    let kind = match kind {
        "500" => FaultKind::Error500,
        "hang" => FaultKind::Hang,
        "cut" => FaultKind::Cut,
        "drop" => FaultKind::Drop,
        "malformed" => FaultKind::Malformed,
        "huge" => FaultKind::Huge,
        _ => {
            return Err(format!(
                "no fault is called {kind}; there are 500, hang, cut, drop, malformed, huge"
            ));
        }
    };
    let odds = odds.parse().map_err(|_| format!("{odds} is no probability; give a number from 0 to 1"))?;
    Ok((kind, odds))
}

fn greet(sandbox: &Running, json: bool) -> io::Result<()> {
    if json {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", json!({ "url": sandbox.url() }))?;
        return out.flush();
    }
    let url = sandbox.url();
    writeln!(io::stderr(), "sandbox: serving on {url} (bill: {url}/sandbox/bill); stop it with Ctrl-C")
}

fn present(bill: &Bill, json: bool) -> anyhow::Result<()> {
    if json {
        writeln!(io::stdout().lock(), "{}", json!({ "bill": bill }))?;
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "key",
        "model",
        "calls",
        "accepted",
        "throttled",
        "rejected",
        "faulted",
        "charged",
        "units",
    ]);
    for (name, key) in &bill.keys {
        let rows = key.models.iter().map(|(model, counts)| (model.as_str(), counts));
        for (model, counts) in std::iter::once(("(all)", &key.counts)).chain(rows) {
            let numbers = [
                counts.calls,
                counts.accepted,
                counts.throttled,
                counts.rejected,
                counts.faulted,
                counts.charged,
                counts.units,
            ];
            table.add_row([name.clone(), model.to_owned()].into_iter().chain(numbers.map(|n| n.to_string())));
        }
    }
    let mut err = io::stderr().lock();
    if !bill.keys.is_empty() {
        writeln!(err, "{table}")?;
    }
    let total = bill.total;
    writeln!(
        err,
        "sandbox: {} calls: {} accepted ({} faulted), {} throttled, {} rejected; {} charged, {} units; {} connections",
        total.calls,
        total.accepted,
        total.faulted,
        total.throttled,
        total.rejected,
        total.charged,
        total.units,
        bill.connections,
    )?;
    Ok(())
}

/// SIGINT and SIGTERM, heard from the moment of [`Signals::listen`].
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(flags: &str) -> Settings {
        settings(
            Cli::try_parse_from(std::iter::once("sandbox").chain(flags.split_whitespace())).unwrap().args,
        )
    }

    #[test]
    fn no_flag_is_an_obliging_api() {
        let limit = Judging { limit: 4, ..Judging::default() };
        assert_eq!(parsed(""), Settings { judging: limit, ..Settings::default() });
    }

    #[test]
    fn every_example_is_understood_and_can_be_served() {
        let commands: Vec<_> =
            EXAMPLES.lines().filter_map(|line| line.trim().strip_prefix("pixfleet sandbox")).collect();
        assert_eq!(commands.len(), 4);
        for flags in commands {
            assert_eq!(parsed(flags).problems(), Vec::<String>::new(), "{flags}");
        }
    }

    #[test]
    fn faults_are_named_with_their_odds() {
        let faults = parsed("--fault drop=0.02 --fault 500=0.1,cut=0.3 --seed 9").faults;
        assert_eq!((faults.drop, faults.error_500, faults.cut, faults.seed), (0.02, 0.1, 0.3, 9));
        for (wrong, help) in [("explode=1", "no fault is called explode"), ("drop", "KIND=PROBABILITY")] {
            let error = fault(wrong).unwrap_err();
            assert!(error.contains(help), "{error}");
        }
    }
}
