//! `pixfleet limits`, and what else says of limits: on real worker processes, in a fleet and on a state file.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use pixfleet_sandbox::{Judging, Rule, Running, Settings};
use pixfleet_tests::{
    fleet::{Fleet, KEY, busiest},
    site::{SECOND_KEY, Site, command_in, told},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::sleep;

/// How long an order may take to reach every worker.
const REACHED: Duration = Duration::from_secs(1);
/// How long a pause is watched.
const WATCHED: Duration = Duration::from_secs(2);

fn sandbox(rule: Rule, limit: u32) -> Settings {
    let judging = Judging { rule, limit, ..Judging::default() };
    Settings { keys: vec![KEY.into()], judging, ..Settings::default() }
}

/// The exit code of a command, and what it said on stderr.
fn refused(mut command: Command) -> (i32, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into())
}

fn json(command: Command) -> Value {
    serde_json::from_str(&told(command)).unwrap()
}

async fn calls(sandbox: &Running) -> usize {
    sandbox.access().await.len()
}

/// Waits until the sandbox was called so often.
async fn called(sandbox: &Running, least: usize) {
    let all = async {
        while calls(sandbox).await < least {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("calls within 30 s");
}

/// Pauses, changes and resumes by `limits`, and looks at what reaches the API. `work` has to last.
async fn orders_reach_workers(sandbox: &Running, limits: impl Fn(&[&str]) -> Command) {
    called(sandbox, 10).await;
    told(limits(&["pause", "sandbox", "--by", "night watch"]));
    sleep(REACHED).await;
    let paused_at = calls(sandbox).await;
    sleep(WATCHED).await;
    assert_eq!(calls(sandbox).await, paused_at, "calls left while it was paused");

    let shown = json(limits(&["show", "sandbox", "--json"]));
    assert_eq!(shown["stacks"][0]["paused"], "night watch", "{shown}");

    told(limits(&["resume", "sandbox", "--by", "day watch"]));
    called(sandbox, paused_at + 10).await;

    let set = told(limits(&["set", "sandbox", "rate", "--calls", "5", "--by", "deploy"]));
    assert!(set.contains("CHANGED at run time (the settings say calls = 40)"), "{set}");
    sleep(REACHED).await;
    let changed_at = calls(sandbox).await;
    called(sandbox, changed_at + 12).await;
    let arrivals: Vec<u64> = sandbox.access().await.iter().skip(changed_at).map(|line| line.at_us).collect();
    assert!(busiest(&arrivals, 1_000_000) <= 5, "{arrivals:?}");

    told(limits(&["reset", "sandbox", "rate", "--by", "deploy"]));
    let reset_at = calls(sandbox).await;
    called(sandbox, reset_at + 40).await;

    let shown = json(limits(&["show", "sandbox", "--history", "--json"]));
    let history = shown["stacks"][0]["history"].as_array().unwrap();
    let said = |one: &Value| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&one["by"]), text(&one["change"]["kind"]))
    };
    let ordered: Vec<(String, String)> =
        history.iter().map(said).filter(|(_, kind)| kind != "jitter").collect();
    let wanted = [("deploy", "reset"), ("deploy", "set"), ("day watch", "resume"), ("night watch", "pause")];
    assert_eq!(ordered, wanted.map(|(by, kind)| (by.to_owned(), kind.to_owned())), "{shown}");
    assert_eq!(shown["stacks"][0]["limits"][0]["settings"], Value::Null, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_is_paused_resumed_and_slowed_down_without_a_restart_and_history_names_who_did_it() {
    let limit = "limits = [{ name = \"rate\", calls = 40 }]";
    let mut fleet = Fleet::start(sandbox(Rule::None, 1), limit, "").await;
    for _ in 0..2 {
        fleet.start_worker();
    }
    fleet.enqueue("b", 2_000).await;
    orders_reach_workers(&fleet.sandbox, |task| fleet.command(&[&["limits"], task].concat())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_fleet_counts_the_jobs_of_its_lanes_and_says_when_they_are_done() {
    let limit = "limits = [{ name = \"rate\", calls = 10 }]";
    let fleet = Fleet::start(sandbox(Rule::None, 1), limit, "").await;
    fleet.enqueue("b", 25).await;
    // Confirmed, and a moment later counted.
    let counted = async {
        loop {
            let shown = json(fleet.command(&["status", "--json"]));
            if shown["ready"] == 25 {
                return shown;
            }
        }
    };
    let shown = tokio::time::timeout(Duration::from_secs(30), counted).await.expect("25 ready jobs");
    assert_eq!(shown["times"][0]["calls"], 25, "{shown}");
    assert_eq!(shown["times"][0]["binding"]["limit"], "rate", "{shown}");
    let said = told(fleet.command(&["status"]));
    assert!(said.starts_with("25 jobs ready in the lanes\n  normal.0: 25\n"), "{said}");
    assert!(said.contains("25 calls of 10 models of sandbox: done at best"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_on_a_state_file_obey_the_same_orders() {
    let site = Site::new(sandbox(Rule::None, 1), "limits = [{ name = \"rate\", calls = 40 }]").await;
    site.enqueue(2_000);
    let _workers = [site.start_worker(), site.start_worker()];
    orders_reach_workers(&site.sandbox, |task| {
        site.command(&[&["limits"], task, &["--state", "b.pixfleet"]].concat())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_limit_can_not_be_is_refused_with_exit_code_2_and_changes_nothing() {
    let limits =
        "models_per_call = 2\nlimits = [{ name = \"rate\", calls = 40, unit = \"model\", burst = 2 }]";
    let site = Site::new(sandbox(Rule::None, 1), limits).await;
    site.enqueue(1);
    let limits = |task: &[&str]| site.command(&[&["limits"], task, &["--state", "b.pixfleet"]].concat());
    for (task, why) in [
        (&["set", "sandbox", "day", "--calls", "5"][..], "no limit `day`: it has rate"),
        (&["set", "sandbox", "rate", "--burst", "90"], "burst = 90 above calls = 40"),
        (&["set", "sandbox", "rate", "--burst", "1"], "2 models takes 2 units"),
        (&["set", "sandbox", "rate", "--calls", "0"], "allows 0 calls"),
        (&["set", "sandbox", "rate", "--spent", "3"], "no quota"),
        (&["set", "sandbox", "rate"], "required"),
    ] {
        let (code, said) = refused(limits(task));
        assert!(code == 2 && said.contains(why), "{task:?}: {code} {said}");
    }
    let shown = json(limits(&["show", "--history", "--json"]));
    assert_eq!(shown["stacks"][0]["limits"][0]["calls"], 40, "{shown}");
    assert_eq!(shown["stacks"][0]["history"].as_array().map(Vec::len), Some(0), "{shown}");
    let (code, said) = refused(limits(&["pause", "sandbox/other"]));
    assert!(code == 2 && said.contains("no limit stack `other`: it has sandbox"), "{code} {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_has_the_numbers_and_the_reasons_and_asks_no_server() {
    let toml = r#"
[redis]
url = "redis://127.0.0.1:1/0"
[providers.a]
preset = "generic"
endpoint = "http://127.0.0.1:1"
models_per_call = 6
limits = [
  { name = "rate", calls = 4 },
  { name = "day", calls = 50000, quota = "day", zone = "America/Los_Angeles", unit = "model" },
]
[providers.b]
preset = "generic"
endpoint = "http://127.0.0.1:1"
limits = [{ name = "rate", calls = 100, judge = "leaky", burst = 0 }]
"#;
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("pixfleet.toml"), toml).unwrap();
    let explained = json(command_in(folder.path(), &["limits", "explain", "--json"]));
    let stack = &explained[0]["stacks"][0];
    assert_eq!(stack["limits"][0]["interval_ms"], 252.0, "{stack}");
    assert_eq!(stack["limits"][0]["margin_from"], "adaptive");
    assert_eq!(stack["limits"][1]["call_takes"], 6.0);
    assert_eq!(stack["binds"], "day");
    assert!((stack["calls_per_day"].as_f64().unwrap() - 50_000.0 / 6.0).abs() < 1e-6, "{stack}");

    let said = told(command_in(folder.path(), &["limits", "explain"]));
    assert!(said.lines().all(|line| line.chars().count() <= 100), "{said}");
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "T = (W + J) / n = (1,000 + 8) ms / 4",
        "99.21 % of the limit at best",
        "from midnight to midnight in America/Los_Angeles",
        "limit `day`, 0.09645 calls/s, 8,333 calls a day",
        "nginx counts in whole milliseconds",
        "With `burst=1` in its limit_req, and burst = 1 here, 100 % of the limit would be reached instead of 83.33 %",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_says_when_it_is_done_by_what_is_used_of_its_quota_and_what_was_changed() {
    let limits =
        "limits = [{ name = \"rate\", calls = 100 }, { name = \"day\", calls = 1000, quota = \"day\" }]";
    let site = Site::new(sandbox(Rule::None, 1), limits).await;
    site.enqueue(300);
    let ending = || json(site.command(&["status", "--state", "b.pixfleet", "--json"]))["endings"][0].clone();
    let before = ending();
    assert_eq!((before["jobs"].as_u64(), before["binding"]["limit"].as_str()), (Some(300), Some("rate")));
    assert_eq!(before["used_up"], Value::Null, "{before}");

    let state = ["--state", "b.pixfleet"];
    told(site.command(&[&["limits", "set", "sandbox", "day", "--spent", "900"][..], &state].concat()));
    let spent = ending();
    assert_eq!(spent["binding"]["limit"], "day", "{spent}");
    assert_eq!(spent["used_up"]["resets"], 1, "{spent}");
    let resets_at = spent["used_up"]["resets_at"].as_str().unwrap();
    assert!(resets_at.ends_with("T00:00:00Z"), "{spent}");
    assert!(spent["done_at"].as_str().unwrap() > resets_at, "{spent}");

    let line = told(site.command(&["status", "--state", "b.pixfleet"]));
    assert!(line.contains("300 jobs are left: done at best ") && line.contains("`day` is used up"), "{line}");
    let shown = json(site.command(&[&["limits", "show", "--for", "50", "--json"][..], &state].concat()));
    assert_eq!(shown["stacks"][0]["limits"][1]["left"], 100.0, "{shown}");
    assert_eq!(shown["times"][0]["binding"]["limit"], "rate", "{shown}");
    assert_eq!(shown["times"][0]["used_up"], Value::Null, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_names_the_quota_that_it_uses_up_and_when_it_resets() {
    let limits =
        "limits = [{ name = \"rate\", calls = 100 }, { name = \"month\", calls = 100, quota = \"month\" }]";
    let site = Site::new(sandbox(Rule::None, 1), limits).await;
    site.enqueue(1);
    std::fs::write(
        site.path().join("more.csv"),
        (0..150)
            .fold("id,url\n".to_owned(), |rows, n| rows + &format!("{n},http://images.example/{n}.jpg\n")),
    )
    .unwrap();
    let dry =
        ["enqueue", "more.csv", "--batch", "more", "--models", "m", "--state", "b.pixfleet", "--dry-run"];
    let said = told(site.command(&dry));
    assert!(said.contains("limit `month` of `sandbox` binds"), "{said}");
    let forecast = json(site.command(&[&dry[..], &["--json", "--quiet"]].concat()))["forecast"].clone();
    assert_eq!(forecast["used_up"]["limit"], "month", "{forecast}");
    assert!(forecast["used_up"]["resets_at"].as_str().unwrap().ends_with("-01T00:00:00Z"), "{forecast}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_a_worker_tell_what_it_took_of_each_limit() {
    let limits =
        "limits = [{ name = \"rate\", calls = 50 }, { name = \"day\", calls = 30, quota = \"day\" }]";
    let mut fleet = Fleet::start(sandbox(Rule::None, 1), limits, "").await;
    let worker = fleet.start_worker();
    fleet.enqueue("b", 40).await;
    // The day's thirty are called, the other ten wait for tomorrow.
    let page = fleet.page_with(worker, "/metrics", "pixfleet_parked{provider=\"sandbox\"} 1").await;
    for line in [
        "pixfleet_limit_units_total{stack=\"sandbox\",limit=\"rate\"} 30.0",
        "pixfleet_limit_units_total{stack=\"sandbox\",limit=\"day\"} 30.0",
        "pixfleet_limit_units_per_second{stack=\"sandbox\",limit=\"rate\"} 50.0",
        "pixfleet_throttled_total{stack=\"sandbox\"} 0",
        "pixfleet_hold_offs_total{stack=\"sandbox\"} 0",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
    let value = |name: &str| -> f64 {
        let line =
            page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}\n{page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let share = value("pixfleet_worker_limit_utilisation_ratio{stack=\"sandbox\",limit=\"rate\"}");
    assert!(share > 0.0 && share <= 1.2, "{share}");
    let jitter = value("pixfleet_limit_jitter_seconds{stack=\"sandbox\",limit=\"rate\"}");
    assert!((0.001..=0.05).contains(&jitter), "{jitter}");

    // Somebody looked at the vendor's page: less is used than was thought. The others are called at once.
    told(fleet.command(&["limits", "set", "sandbox", "day", "--spent", "0"]));
    called(&fleet.sandbox, 40).await;
    fleet.page_with(worker, "/metrics", "pixfleet_parked{provider=\"sandbox\"} 0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_accounts_share_the_calls_and_are_faster_than_one() {
    let limits = "limits = [{ name = \"rate\", calls = 20 }]
        accounts = [{ name = \"main\" }, { name = \"second\", key_env = \"SECOND_KEY\" }]";
    let settings = Settings { keys: vec![KEY.into(), SECOND_KEY.into()], ..sandbox(Rule::None, 1) };
    let site = Site::new(settings, limits).await;
    site.enqueue(80);
    let _worker = site.start_worker();
    called(&site.sandbox, 80).await;
    let shares: Vec<u64> = site.sandbox.bill().keys.values().map(|key| key.counts.calls).collect();
    assert!(shares.len() == 2 && shares.iter().all(|calls| *calls >= 30), "{shares:?}");
    let arrivals: Vec<u64> = site.sandbox.access().await.iter().map(|line| line.at_us).collect();
    assert!(busiest(&arrivals, 1_000_000) > 20, "one account alone would do that");

    // One of them can be paused alone.
    let state = ["--state", "b.pixfleet"];
    let mut pause = site.command(&[&["limits", "pause", "sandbox/sandbox.second"][..], &state].concat());
    pause.env("PIXFLEET_BY", "nightly job");
    assert!(told(pause).contains("by nightly job: nothing leaves until it is resumed"));
    let shown = json(site.command(&[&["limits", "show", "--json"][..], &state].concat()));
    let paused: Vec<bool> =
        shown["stacks"].as_array().unwrap().iter().map(|stack| stack["paused"].is_string()).collect();
    assert_eq!(paused, [false, true], "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_is_counted_by_its_stack() {
    let limits = "limits = [{ name = \"rate\", calls = 40 }]";
    let mut fleet = Fleet::start(sandbox(Rule::Fixed, 5), limits, "").await;
    let mut subscriber = fleet.subscribe("b").await;
    let worker = fleet.start_worker();
    fleet.enqueue("b", 12).await;
    fleet.collect(&mut *subscriber, 12).await;
    let throttled = fleet.sandbox.bill().total.throttled;
    assert!(throttled > 0, "the judge never judged");
    let page = fleet.page(worker, "/metrics").await.unwrap();
    let line = format!("pixfleet_throttled_total{{stack=\"sandbox\"}} {throttled}\n");
    assert!(page.contains(&line), "{line}{page}");
}
