//! `pixfleet ledger`: calls that were never answered are listed, resolved, and an invoice of the API agrees with the export.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use pixfleet_sandbox::{Faults, Latency, Settings};
use pixfleet_shared::result::Outcome;
use pixfleet_tests::{
    fleet::{Fleet, KEY},
    site::told,
};
use serde_json::Value;

/// One call of each seven or so is served and charged, and its answer never comes: it is kept for a person to decide.
const PROVIDER: &str = "ambiguous = \"park\"\nmodels_per_call = 2\n\
                        limits = [{ name = \"rate\", calls = 200 }]\n\
                        cost = { price = 0.01, count = \"per_call\", currency = \"USD\" }";
const IMAGES: usize = 60;

fn sandbox() -> Settings {
    Settings {
        keys: vec![KEY.into()],
        latency: Latency::Constant { ms: 10 },
        faults: Faults { drop: 0.15, seed: 7, ..Faults::default() },
        ..Settings::default()
    }
}

/// A fleet that has asked two models about sixty images, and was not always answered.
async fn asked(mut fleet: Fleet) -> Fleet {
    let mut results = fleet.subscribe("spring").await;
    let rows: String = (0..IMAGES).map(|n| format!("i{n},http://images.example/{n}.jpg\n")).collect();
    let manifest = fleet.file("images.csv", &format!("id,url\n{rows}"));
    let manifest = manifest.to_str().unwrap();
    told(fleet.command(&[
        "enqueue",
        manifest,
        "--batch",
        "spring",
        "--models",
        "m,n",
        "--provider",
        "sandbox",
        "--quiet",
    ]));
    fleet.start_worker();
    let (results, _) = fleet.collect(&mut *results, 2 * IMAGES).await;
    let ambiguous = results.values().filter(|result| result.outcome == Outcome::Ambiguous).count();
    assert_eq!(ambiguous as u64, 2 * dropped(&fleet), "both models of each call that was not answered");
    fleet
}

/// Calls that the API served, charged and never answered.
fn dropped(fleet: &Fleet) -> u64 {
    let bill = fleet.sandbox.bill().total;
    assert!(bill.faulted > 2, "too few faults to show anything: {bill:?}");
    bill.faulted
}

fn ledger(fleet: &Fleet, task: &[&str]) -> Command {
    fleet.command(&[&["ledger"], task].concat())
}

fn lines(said: &str) -> Vec<Value> {
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ended(mut command: Command) -> (i32, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The calls that are listed, once they are as many as the API did not answer: a worker tells them within moments.
async fn listed(fleet: &Fleet) -> Vec<Value> {
    for _ in 0..200 {
        let found = lines(&told(ledger(fleet, &["list", "--json"])));
        if found.len() as u64 >= dropped(fleet) {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("fewer calls are listed than were never answered\n{}", fleet.logs())
}

/// The days on which the test's calls may have left, as `--from` and `--to` take them.
fn days() -> [String; 2] {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    [today.yesterday().unwrap().to_string(), today.to_string()]
}

/// The export by model, summed over its days.
fn exported(fleet: &Fleet, file: &str) -> BTreeMap<String, BTreeMap<String, f64>> {
    let path = fleet.file(file, "");
    let [from, to] = days();
    told(ledger(fleet, &["export", path.to_str().unwrap(), "--from", &from, "--to", &to]));
    let mut sums: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    for row in csv::Reader::from_path(path).unwrap().deserialize::<BTreeMap<String, String>>() {
        let row = row.unwrap();
        assert_eq!(
            (&row["provider"][..], &row["account"][..], &row["currency"][..]),
            ("sandbox", "sandbox", "USD")
        );
        let of = sums.entry(row["model"].clone()).or_default();
        for (column, value) in
            row.iter().filter_map(|(column, value)| Some((column, value.parse::<f64>().ok()?)))
        {
            *of.entry(column.clone()).or_default() += value;
        }
    }
    sums
}

async fn what_was_never_answered_is_listed_resolved_and_exported(fleet: Fleet) {
    let fleet = asked(fleet).await;
    let found = listed(&fleet).await;
    assert_eq!(found.len() as u64, dropped(&fleet), "each once");
    for call in &found {
        assert_eq!((&call["batch"], &call["provider"]), (&"spring".into(), &"sandbox".into()), "{call}");
        assert_eq!(
            (&call["models"], &call["cost"]),
            (&serde_json::json!(["m", "n"]), &0.01.into()),
            "{call}"
        );
        assert_eq!((&call["then"], &call["worker"]), (&"parked".into(), &"w0".into()), "{call}");
        assert_eq!(call["resolution"], Value::Null);
    }
    let table = told(ledger(&fleet, &["list"]));
    let sum =
        format!("{} calls without an answer, which may have cost 0.{:02} USD", found.len(), found.len());
    assert!(table.ends_with(&format!("{sum}\n")), "{table}");
    // Filters, and what they let through.
    for (filters, count) in [
        (&["--batch", "spring", "--model", "n", "--since", "1h"][..], found.len()),
        (&["--batch", "autumn"], 0),
        (&["--account", "other"], 0),
        (&["--until", "2020-01-01"], 0),
    ] {
        let said = told(ledger(&fleet, &[&["list", "--json"], filters].concat()));
        assert_eq!(lines(&said).len(), count, "{filters:?}");
    }

    // The vendor's own numbers lie between what is charged, and what may be.
    let invoice = fleet.sandbox.bill().total.charged as f64;
    let (answered, open) = ((IMAGES - found.len()) as f64, found.len() as f64);
    let export = exported(&fleet, "before.csv");
    for model in ["*", "m", "n"] {
        let line = &export[model];
        assert_eq!((line["charged"], line["unanswered"]), (answered, open), "{model}: {line:?}");
        assert!((line["charged_at_least"]..=line["charged_at_most"]).contains(&invoice), "{model}: {line:?}");
    }
    assert!((export["*"]["cost_at_most"] - invoice * 0.01).abs() < 1e-9, "{export:?}");
    assert!((export["m"]["cost"] + export["n"]["cost"] - export["*"]["cost"]).abs() < 1e-9, "{export:?}");

    // Somebody looked at the vendor's page: one of them is not there, and all others are.
    let id = |at: usize| found[at]["call"].as_str().unwrap().to_owned();
    told(ledger(&fleet, &["resolve", &id(0)[..12], "--not-charged", "--by", "ann"]));
    let (code, _, said) = ended(ledger(&fleet, &["resolve", "--batch", "spring", "--charged"]));
    let question = format!("{} calls, which may have cost 0.{:02} USD", found.len() - 1, found.len() - 1);
    assert!(code == 2 && said.contains(&question) && said.contains("--yes"), "{code} {said}");
    let all = ["resolve", "--batch", "spring", "--charged", "--yes", "--by", "invoice 4711"];
    let said = told(ledger(&fleet, &all));
    assert!(said.contains(&format!("{} calls are charged, says invoice 4711", found.len() - 1)), "{said}");
    assert_eq!(told(ledger(&fleet, &["list", "--json"])), "", "nothing is open");
    let resolved = lines(&told(ledger(&fleet, &["list", "--all", "--json"])));
    let by = |by: &str| resolved.iter().filter(|call| call["resolution"]["by"] == by).count();
    assert_eq!((resolved.len(), by("ann"), by("invoice 4711")), (found.len(), 1, found.len() - 1));
    // Now it is known to the call.
    let export = exported(&fleet, "after.csv");
    let line = &export["*"];
    assert_eq!((line["unanswered"], line["unanswered_not_charged"]), (0.0, 1.0), "{line:?}");
    assert_eq!(
        (line["charged_at_least"], line["charged_at_most"]),
        (invoice - 1.0, invoice - 1.0),
        "{line:?}"
    );

    // What is not there is named, and changes nothing.
    let (code, _, said) = ended(ledger(&fleet, &["resolve", &id(0), "ffffffffffff", "--charged"]));
    assert!(
        code == 2 && said.contains("`ffffffffffff`") && said.contains("ledger list --all"),
        "{code} {said}"
    );
    let unchanged = lines(&told(ledger(&fleet, &["list", "--all", "--json"])));
    assert_eq!(unchanged, resolved);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_a_fleet_was_never_answered_are_listed_resolved_and_agree_with_the_invoice() {
    what_was_never_answered_is_listed_resolved_and_exported(Fleet::start(sandbox(), PROVIDER, "").await)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_a_state_file_was_never_answered_are_listed_resolved_and_agree_with_the_invoice() {
    let fleet = Fleet::on_one_machine(sandbox(), PROVIDER, "").await;
    what_was_never_answered_is_listed_resolved_and_exported(fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_away_is_said_with_the_setting_that_leads_to_it() {
    let mut fleet = Fleet::start(sandbox(), PROVIDER, "").await;
    fleet.redis_url = "redis://127.0.0.1:1/0".to_owned();
    let (code, _, said) = ended(ledger(&fleet, &["list"]));
    assert!(
        code == 1 && said.contains("the ledger is away") && said.contains("`redis.url`"),
        "{code} {said}"
    );
    let (code, _, said) = ended(ledger(&fleet, &["resolve", "--charged"]));
    assert!(code == 2 && said.contains("name calls"), "{code} {said}");
    let (code, _, said) = ended(ledger(&fleet, &["export", "--from", "2026-11-02", "--to", "2026-11-01"]));
    assert!(code == 2 && said.contains("before --from"), "{code} {said}");
}
