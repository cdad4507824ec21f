//! `pixfleet dead`, on servers and on a state file: what was given up is looked at, sent again, thrown away, exported.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Output, Stdio},
    time::Duration,
};

use pixfleet_sandbox::Settings;
use pixfleet_shared::{
    job::{Image, Job, Source},
    queue::{Intake, Reason},
    result::{Failure, ImageResult, Outcome},
};
use pixfleet_tests::fleet::{Fleet, KEY};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(30);
const PRICE: &str = "cost = { price = 0.5, count = \"per_model\", currency = \"EUR\" }";
const SIGNATURE: &str = "X-Signature=hush-2718";

/// Runs each of these on servers, and on a state file.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod on_servers {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Fleet::start(super::settings(), super::PRICE, "").await).await;
            })*
        }
        mod on_a_state_file {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Fleet::on_one_machine(super::settings(), super::PRICE, "").await).await;
            })*
        }
    };
}

on_both!(
    a_list_says_why_each_died_and_keeps_secrets,
    one_is_shown_by_the_first_digits_of_its_id,
    a_replay_is_priced_first_and_needs_a_yes,
    a_replayed_job_is_answered_and_its_letter_is_gone,
    a_replay_sends_all_in_one_go,
    a_replay_that_is_killed_is_run_again_and_each_call_is_paid_for_once,
    only_what_is_meant_is_thrown_away,
    an_export_holds_everything_and_takes_nothing,
    a_spent_budget_can_be_raised_for_a_replay,
);

fn settings() -> Settings {
    Settings { keys: vec![KEY.into()], ..Settings::default() }
}

fn job(batch: &str, n: usize, models: &[&str]) -> Job {
    let source = Source::Url(format!("http://images.example/{n}.jpg?{SIGNATURE}"));
    let models = models.iter().map(|&model| model.to_owned()).collect();
    Job::new(batch.parse().unwrap(), Image { id: format!("i{n}"), source }, "sandbox".into(), models)
}

async fn intake(fleet: &Fleet) -> Box<dyn Intake> {
    let (keep, prefetch) = watch::channel(10);
    std::mem::forget(keep);
    fleet.queue.receive(prefetch).await.unwrap()
}

/// Gives jobs up, in their order.
async fn bury(fleet: &Fleet, jobs: &[Job], reason: Reason, class: &str) {
    let mut intake = intake(fleet).await;
    let mut left: BTreeSet<_> = jobs.iter().map(|job| job.id).collect();
    for chunk in jobs.chunks(200) {
        fleet.queue.enqueue(chunk.to_vec()).await.unwrap();
        for _ in chunk {
            let delivery = timeout(PATIENCE, intake.next()).await.expect("a job in time").unwrap();
            let (job, unsettled) = delivery.split();
            assert!(left.remove(&job.id));
            let results = job.models.iter().map(|model| ImageResult {
                failure: Some(Failure { class: class.into(), message: format!("{} is bad", job.image.id) }),
                ..ImageResult::of(&job, model, Outcome::Dead)
            });
            let results = results.collect();
            unsettled.dead_letter(job, results, reason).await.unwrap();
        }
    }
    intake.stop().await;
}

fn run(fleet: &Fleet, line: &str) -> Output {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    fleet.command(&arguments).stdin(Stdio::null()).output().unwrap()
}

fn done(fleet: &Fleet, line: &str) -> String {
    let output = run(fleet, line);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn listed(fleet: &Fleet) -> Vec<String> {
    let letters = json(&done(fleet, "dead list --json"));
    letters.iter().map(|letter| letter["image"].as_str().unwrap().to_owned()).collect()
}

async fn a_list_says_why_each_died_and_keeps_secrets(fleet: Fleet) {
    assert!(done(&fleet, "dead list").contains("no dead letters"));
    bury(&fleet, &[job("b", 1, &["m", "n"]), job("b", 2, &["m"])], Reason::Rejected, "rejected").await;
    bury(&fleet, &[job("other", 3, &["m"])], Reason::AttemptsExhausted, "transient").await;
    let table = done(&fleet, "dead list");
    for part in
        ["i1 is bad", "attempts-exhausted", "m, n", "3 dead letters: 2 rejected, 1 attempts-exhausted"]
    {
        assert!(table.contains(part), "no `{part}` in:\n{table}");
    }
    let one = done(&fleet, "dead list --limit 1");
    assert!(one.contains("i1 is bad") && !one.contains("i2 is bad") && one.contains("2 not shown"), "{one}");
    let text = done(&fleet, "dead list --json");
    let letters = json(&text);
    assert_eq!(letters.len(), 3);
    assert_eq!(letters[0]["source"], "http://images.example/1.jpg");
    assert_eq!((&letters[2]["class"], &letters[2]["batch"]), (&"transient".into(), &"other".into()));
    assert!(letters[0]["at"].as_str().is_some(), "{}", letters[0]);
    assert!(!table.contains("hush") && !text.contains("hush"), "a signature is shown");
    for (filter, images) in [
        ("--batch other", vec!["i3"]),
        ("--model n", vec!["i1"]),
        ("--reason rejected --since 1h", vec!["i1", "i2"]),
        ("--until 1h", vec![]),
    ] {
        let letters = json(&done(&fleet, &format!("dead list --json {filter}")));
        let seen: Vec<&str> = letters.iter().map(|letter| letter["image"].as_str().unwrap()).collect();
        assert_eq!(seen, images, "{filter}");
    }
}

async fn one_is_shown_by_the_first_digits_of_its_id(fleet: Fleet) {
    let job = job("b", 1, &["m"]);
    bury(&fleet, std::slice::from_ref(&job), Reason::Rejected, "rejected").await;
    let text = done(&fleet, &format!("dead show {:.6}", job.id.to_string()));
    for part in
        [job.id.to_string().as_str(), "i1 is bad", "rejected", "\"enqueued_at\"", "images.example/1.jpg"]
    {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    assert!(!text.contains("hush"), "{text}");
    let shown = json(&done(&fleet, &format!("dead show {} --json", job.id)));
    assert_eq!(shown[0]["job"]["image"]["source"]["url"], "http://images.example/1.jpg");
    let missing = run(&fleet, "dead show ffffffffffff");
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("dead list"));
    assert_eq!(run(&fleet, "dead show x").status.code(), Some(2));
}

async fn a_replay_is_priced_first_and_needs_a_yes(fleet: Fleet) {
    let elsewhere = Job { provider: "elsewhere".into(), ..job("b", 3, &["m"]) };
    let jobs = [job("b", 1, &["m", "n"]), job("b", 2, &["m"]), elsewhere];
    bury(&fleet, &jobs, Reason::Rejected, "rejected").await;
    let intended = done(&fleet, "dead replay --dry-run");
    assert!(intended.contains("sandbox: 2 calls, 3 results, 1.5 EUR"), "{intended}");
    assert!(
        intended.contains("elsewhere: 1 calls, 1 results, at a price that the settings do not say"),
        "{intended}"
    );
    let refused = run(&fleet, "dead replay");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--yes"));
    let report = json(&done(&fleet, "dead replay --batch nothing --yes --json"));
    assert_eq!((&report[0]["jobs"], &report[0]["replayed"]), (&0.into(), &0.into()));
    assert_eq!(listed(&fleet), ["i1", "i2", "i3"]);
}

async fn a_replayed_job_is_answered_and_its_letter_is_gone(mut fleet: Fleet) {
    let mut subscriber = fleet.subscribe("b").await;
    bury(&fleet, &[job("b", 1, &["m", "n"]), job("b", 2, &["m"])], Reason::Rejected, "rejected").await;
    bury(&fleet, &[job("b", 3, &["m"])], Reason::Poison, "poison").await;
    let report = json(&done(&fleet, "dead replay --reason rejected --yes --json"));
    assert_eq!((&report[0]["jobs"], &report[0]["replayed"]), (&2.into(), &2.into()));
    assert_eq!(report[0]["providers"]["sandbox"]["price"], 1.5);
    assert_eq!(listed(&fleet), ["i3"]);
    fleet.start_worker();
    let ended = async {
        let mut outcomes: BTreeMap<_, Vec<Outcome>> = BTreeMap::new();
        // Each of the three results is announced twice: dead, then answered. The letter that stays, once.
        while outcomes.values().map(Vec::len).sum::<usize>() < 7 {
            if let pixfleet_shared::result::Announcement::Result(result, _) = subscriber.next().await.unwrap()
            {
                outcomes
                    .entry((result.image.clone(), result.model.clone()))
                    .or_default()
                    .push(result.outcome);
            }
        }
        outcomes
    };
    let outcomes = timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("no answers:\n{}", fleet.logs()));
    for ((image, model), outcomes) in outcomes {
        let expected: &[Outcome] =
            if image == "i3" { &[Outcome::Dead] } else { &[Outcome::Dead, Outcome::Ok] };
        assert_eq!(outcomes, expected, "{image} {model}");
    }
    assert_eq!(listed(&fleet), ["i3"]);
}

async fn a_replay_sends_all_in_one_go(fleet: Fleet) {
    let jobs: Vec<Job> = (0..150).map(|n| job("b", n, &["m"])).collect();
    bury(&fleet, &jobs, Reason::AttemptsExhausted, "transient").await;
    let report = json(&done(&fleet, "dead replay --yes --json"));
    assert_eq!((&report[0]["jobs"], &report[0]["replayed"]), (&150.into(), &150.into()));
    assert!(listed(&fleet).is_empty());
    let mut intake = intake(&fleet).await;
    for _ in 0..150 {
        let (job, unsettled) = timeout(PATIENCE, intake.next()).await.expect("a job").unwrap().split();
        assert_eq!((job.replays, job.attempt), (1, 0));
        unsettled.complete(Vec::new()).await.unwrap();
    }
}

async fn a_replay_that_is_killed_is_run_again_and_each_call_is_paid_for_once(mut fleet: Fleet) {
    const JOBS: usize = 300;
    let jobs: Vec<Job> = (0..JOBS).map(|n| job("b", n, &["m"])).collect();
    bury(&fleet, &jobs, Reason::AttemptsExhausted, "transient").await;
    fleet.start_worker();
    let mut killed = 0;
    for _ in 0..3 {
        let arguments = ["dead", "replay", "--batch", "b", "--yes"];
        let mut replay =
            fleet.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let answered = fleet.sandbox.bill().total.charged;
        let under_way = async {
            while fleet.sandbox.bill().total.charged < answered + 10 && replay.try_wait().unwrap().is_none() {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, under_way).await.unwrap_or_else(|_| panic!("nothing is called:\n{}", fleet.logs()));
        killed += usize::from(replay.try_wait().unwrap().is_none());
        let _ = replay.kill();
        replay.wait().unwrap();
    }
    assert!(killed > 0, "every replay was done before it could be killed");
    // A broker takes back what a killed one held when it notices.
    let rest = async {
        while !listed(&fleet).is_empty() {
            let _ = run(&fleet, "dead replay --batch b --yes");
        }
    };
    timeout(PATIENCE, rest).await.expect("all letters are replayed");
    let answered = async {
        while (fleet.sandbox.bill().total.charged as usize) < JOBS {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, answered).await.unwrap_or_else(|_| panic!("not all are answered:\n{}", fleet.logs()));
    let (code, report) = fleet.terminate(0);
    assert_eq!(code, 0);
    // A job that was put in twice is completed twice, and called once.
    assert!(report["completed"].as_u64().unwrap() as usize >= JOBS, "{report}");
    assert_eq!(fleet.sandbox.bill().total.charged as usize, JOBS, "a replayed job was paid for twice");
}

async fn only_what_is_meant_is_thrown_away(fleet: Fleet) {
    bury(&fleet, &[job("b", 1, &["m"]), job("b", 2, &["m"])], Reason::Rejected, "rejected").await;
    bury(&fleet, &[job("b", 3, &["m"])], Reason::Poison, "poison").await;
    for wrong in ["dead purge --yes", "dead purge --all --batch b --yes", "dead purge --batch b"] {
        assert_eq!(run(&fleet, wrong).status.code(), Some(2), "{wrong}");
    }
    assert_eq!(listed(&fleet), ["i1", "i2", "i3"]);
    let said = done(&fleet, "dead purge --reason rejected --yes");
    assert!(said.contains("2 dead letters: 2 rejected") && said.contains("2 thrown away"), "{said}");
    assert_eq!(listed(&fleet), ["i3"]);
    let report = json(&done(&fleet, "dead purge --all --yes --json"));
    assert_eq!((&report[0]["purged"], &report[0]["reasons"]["poison"]), (&1.into(), &1.into()));
    assert!(listed(&fleet).is_empty());
}

async fn an_export_holds_everything_and_takes_nothing(fleet: Fleet) {
    bury(&fleet, &[job("b", 1, &["m"]), job("c", 2, &["m"])], Reason::Rejected, "rejected").await;
    let file = fleet.file("letters.jsonl", "of before\n");
    let said = done(&fleet, &format!("dead export {} --batch b", file.display()));
    assert!(said.contains("1 dead letters in"), "{said}");
    let lines = json(&std::fs::read_to_string(&file).unwrap());
    assert_eq!(lines.len(), 1);
    assert_eq!(
        (&lines[0]["death"]["reason"], &lines[0]["death"]["message"]),
        (&"rejected".into(), &"i1 is bad".into())
    );
    let exported: Job = serde_json::from_value(lines[0]["job"].clone()).unwrap();
    assert_eq!((exported.id, exported.image), (job("b", 1, &["m"]).id, job("b", 1, &["m"]).image));
    assert_eq!(json(&done(&fleet, "dead export -")).len(), 2);
    assert_eq!(listed(&fleet), ["i1", "i2"]);
}

async fn a_spent_budget_can_be_raised_for_a_replay(mut fleet: Fleet) {
    let mut subscriber = fleet.subscribe("b").await;
    let jobs: Vec<Job> =
        (0..6).map(|n| Job { budget: Some("2calls".parse().unwrap()), ..job("b", n, &["m"]) }).collect();
    fleet.queue.enqueue(jobs).await.unwrap();
    fleet.start_worker();
    let (results, _) = fleet.collect(&mut *subscriber, 6).await;
    let ok =
        |results: &BTreeMap<_, ImageResult>| results.values().filter(|r| r.outcome == Outcome::Ok).count();
    assert_eq!(ok(&results), 2);
    assert_eq!(listed(&fleet).len(), 4);
    done(&fleet, "dead replay --reason budget-spent --budget 5calls --yes");
    let mut subscriber_results = BTreeMap::new();
    while subscriber_results.len() < 4 {
        let (more, _) = fleet.collect(&mut *subscriber, 1).await;
        subscriber_results.extend(more);
    }
    assert_eq!(ok(&subscriber_results), 3, "the budget is the whole batch's");
    assert_eq!(fleet.sandbox.bill().total.charged, 5);
}
