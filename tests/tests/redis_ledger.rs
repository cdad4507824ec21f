//! The ledger, the answers and the batches on a real Redis, and what befalls it and those who use it.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test, and says where")]

use std::time::Duration;

use futures_util::{FutureExt, future::join_all};
use jiff::{Timestamp, tz::TimeZone};
use pixfleet_shared::{
    answers::Recalled,
    batch::Tally,
    batches::{Expected, Held, Hold},
    fleet::redis::{Config, Redis},
    id::Id,
    ledger::{Answered, End, Known, LedgerError},
};
use pixfleet_tests::{
    conformance::{
        self,
        ledger::{intent, job, mark, mark_of, next, replayed, settlement},
        process::{Process, until},
    },
    fault_proxy::{Fault, FaultProxy},
    private_redis::{PrivateRedis, connection},
    redis_fleet::{PATIENCE, config, fleet, processes},
    redis_sets::{Cluster, Sentinels, master_and_replica},
    servers::{fresh_name, redis_url},
};
use redis::{AsyncCommands, aio::ConnectionLike};
use tokio::{runtime::Runtime, time::timeout};

const OK: Tally = Tally { ok: 1, cached: 0, rejected: 0, dead: 0, cancelled: 0, ambiguous: 0 };

async fn three_processes() -> Vec<Process> {
    processes(fleet(&config(&redis_url()), 3).await)
}

mod ledger {
    pixfleet_tests::ledger_conforms!(super::three_processes);
}

mod answers {
    pixfleet_tests::answers_conform!(super::three_processes);
}

mod batches {
    pixfleet_tests::batches_conform!(super::three_processes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_all_of_it() {
    let cluster = Cluster::start().await;
    let three = async || processes(fleet(&config(&cluster.url()), 3).await);
    pixfleet_tests::ledger_conforms!(in turn three());
    pixfleet_tests::answers_conform!(in turn three());
    pixfleet_tests::batches_conform!(in turn three());
    let fleet = three().await;
    cluster.each("SCRIPT FLUSH").await;
    let name = fresh_name("forgotten");
    conformance::ledger::whatever_is_said_in_whatever_order_keeps_the_promises(&name, fleet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_while_another_master_takes_over_is_stored_once() {
    let (mut master, replica) = master_and_replica(&[]).await;
    let sentinels = Sentinels::watch(&master).await;
    let config = config(&sentinels.url());
    let (engine, other) = (&fleet(&config, 1).await[0], &fleet(&config, 1).await[0]);
    let said = Said::begin(engine, &fresh_name("failover")).await;
    // What the replica has of a later write, it has of all before.
    let () = master.ask("SET behind-it 1").await;
    replica.says("EXISTS behind-it", "1").await;
    master.kill();
    said.go_on(engine);
    sentinels.agree_on(replica.port()).await;
    said.is_stored(engine, other).await;
}

/// A process of the fleet that can be killed: it says no goodbye.
async fn mortal(config: &Config) -> (Runtime, Redis) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let config = config.clone();
    let engine = runtime.spawn(async move { fleet(&config, 1).await.remove(0) }).await.unwrap();
    (runtime, engine)
}

async fn tally(engine: &Redis, test: &str) -> Tally {
    let progress = engine.batches().progress(&test.parse().unwrap()).await.unwrap();
    progress.map(|progress| progress.tally).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_had_in_hand_is_known_within_seconds() {
    let (config, name) = (config(&redis_url()), fresh_name("killed"));
    let (runtime, killed) = mortal(&config).await;
    let others = fleet(&config, 2).await;
    let (called, held, last) = (job(&name, 1), job(&name, 2), job(&name, 3));
    let key = Id::of(&[name.as_bytes()]);
    let said = intent(&called);
    assert_eq!(killed.ledger().depart(&said).await.unwrap(), Known::Clear);
    killed.ledger().take_up(&held).await.unwrap();
    let claimed = killed.answers().recall(&[key], Duration::from_secs(600)).await.unwrap();
    assert_eq!(claimed, [Recalled::Claimed]);
    let expected = Expected { batch: called.batch.clone(), jobs: 1, results: 1, closed: true };
    others[0].batches().expect(&expected).await.unwrap();
    killed.ledger().settled(mark(&last, End::Done));
    killed.ledger().flush().await;
    // Handed out, and never announced.
    timeout(PATIENCE, killed.batches().complete()).await.unwrap();
    assert!(matches!(others[0].ledger().depart(&said).await.unwrap(), Known::UnderWay(_)));

    runtime.shutdown_background();
    let unanswered =
        until("the call is unanswered", async || match others[0].ledger().depart(&said).await.unwrap() {
            Known::Unanswered(intent) => Some(*intent),
            Known::UnderWay(_) => None,
            other => panic!("{other:?}"),
        });
    assert_eq!(unanswered.await, said);
    assert_eq!(others[1].ledger().take_up(&held).await.unwrap().crashed, 1);
    let claimed = others[1].answers().recall(&[key], Duration::from_secs(600)).await.unwrap();
    assert_eq!(claimed, [Recalled::Claimed]);
    let complete = timeout(PATIENCE, others[1].batches().complete()).await.expect("somebody else says it");
    assert_eq!((complete.batch, complete.tally), (expected.batch, OK));
    drop(killed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_counts_though_whoever_paid_for_it_died_before_it_settled_the_turn() {
    let (config, name) = (config(&redis_url()), fresh_name("overtaken"));
    let engines = fleet(&config, 2).await;
    let (first, second) = (job(&name, 1), next(&job(&name, 1)));
    engines[0].ledger().depart(&intent(&first)).await.unwrap();
    engines[0].ledger().answered(&intent(&first), Answered::Paid(settlement(&first)));
    engines[0].ledger().flush().await;
    // What followed was published, and nobody said so: the next turn's message shows it.
    assert_eq!(engines[1].ledger().depart(&intent(&second)).await.unwrap(), Known::Clear);
    assert_eq!(tally(&engines[1], &name).await, OK);
    engines[0].ledger().settled(mark(&first, End::Again));
    engines[0].ledger().flush().await;
    engines[1].ledger().settled(mark(&second, End::Done));
    engines[1].ledger().flush().await;
    assert_eq!(tally(&engines[1], &name).await, Tally { ok: 2, ..OK }, "each turn once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_taken_out_of_its_batch_though_its_state_is_forgotten() {
    let (config, name) = (Config { ledger_ttl_s: 1, ..config(&redis_url()) }, fresh_name("old"));
    let engine = &fleet(&config, 1).await[0];
    let dead = job(&name, 1);
    engine.ledger().settled(mark_of(&dead, End::Dead, Tally { dead: 1, ..OK }));
    engine.ledger().flush().await;
    until("its state is forgotten", async || {
        (engine.ledger().take_up(&dead).await.unwrap().known == Known::Clear).then_some(())
    })
    .await;
    assert_eq!(tally(engine, &name).await, Tally { dead: 1, ..OK });
    assert!(engine.ledger().reopen(&replayed(&dead)).await.unwrap());
    assert_eq!(tally(engine, &name).await, OK);
    assert!(!engine.ledger().reopen(&replayed(&dead)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_nobody_waits_for_leaves_no_intent_and_no_claim() {
    let (config, name) = (config(&redis_url()), fresh_name("dropped"));
    let engines = fleet(&config, 2).await;
    let (job, key) = (job(&name, 1), Id::of(&[name.as_bytes()]));
    let (ledger, answers) = (engines[0].ledger(), engines[0].answers());
    // Asked, and dropped before there is an answer.
    assert!(ledger.depart(&intent(&job)).now_or_never().is_none());
    assert!(answers.recall(&[key], Duration::from_secs(600)).now_or_never().is_none());
    ledger.flush().await;
    assert_eq!(engines[1].ledger().depart(&intent(&job)).await.unwrap(), Known::Clear);
    let recalled = engines[1].answers().recall(&[key], Duration::from_secs(600)).await.unwrap();
    assert_eq!(recalled, [Recalled::Claimed]);
}

/// A script of the ledger, to be called as no process would.
macro_rules! text {
    ($file:literal) => {
        concat!(
            include_str!("../../shared/src/fleet/redis/state.lua"),
            include_str!(concat!("../../shared/src/fleet/redis/", $file))
        )
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intent_that_arrives_after_it_was_taken_back_is_not_recorded() {
    let (depart, answered) =
        (redis::Script::new(text!("depart.lua")), redis::Script::new(text!("answered.lua")));
    let connection = connection(&redis_url()).await;
    let [batch, dead, calls, bill, shard] = ["", "d", "c", "bill", "j"].map(|part| format!("{{late}}{part}"));
    let departs = async |number: u64| {
        let mut script = depart.key(&[&batch, &dead, &calls, &shard]);
        script.arg("process").arg(60).arg("job").arg(0).arg("call").arg(number).arg(60_000).arg("{}").arg("");
        script.invoke_async::<Vec<Vec<String>>>(&mut connection.clone()).await.unwrap().remove(0).remove(0)
    };
    assert_eq!(departs(1).await, "clear");
    let mut taken_back = answered.key(&[&batch, &dead, &calls, &bill, &shard]);
    taken_back.arg("process").arg(60).arg("untold").arg("job").arg(0).arg("call").arg(3);
    taken_back.arg("").arg("").arg("").arg("");
    taken_back.invoke_async::<()>(&mut connection.clone()).await.unwrap();
    assert_eq!(departs(2).await, "over", "it comes late");
    assert_eq!(departs(4).await, "clear", "it was said later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_can_not_be_stored_hears_so_though_the_others_complete_their_batch() {
    let connection = connection(&redis_url()).await;
    let mut redis = connection.clone();
    let [batch, dead, calls, sound, wrong, hands] =
        ["", "d", "c", "sound", "wrong", "hands"].map(|part| format!("{{complete}}{part}"));
    let _: () = redis.hset_multiple(&batch, &[("expected", 1), ("closed", 1)]).await.unwrap();
    let _: () = redis.set(&wrong, "no hash").await.unwrap();
    let mut settled = redis::cmd("EVAL");
    settled.arg(text!("settled.lua")).arg(7).arg(&[&batch, &dead, &calls, &sound, &hands, &wrong, &hands]);
    settled.arg("process").arg(60);
    for job in ["first", "second"] {
        settled.arg(job).arg(0).arg("done").arg("1,0,0,0,0,0").arg("");
    }
    let mut both = redis::Pipeline::new();
    both.add_command(settled);
    let redis::Value::Array(answers) = redis.req_packed_commands(&both, 0, 1).await.unwrap().remove(0) else {
        panic!("no answers")
    };
    let [complete, refused] = &answers[..] else { panic!("{answers:?}") };
    assert!(
        matches!(complete, redis::Value::Array(known) if !known.is_empty()),
        "the news is lost: {complete:?}"
    );
    assert!(matches!(refused, redis::Value::ServerError(_)), "nobody would say it again: {refused:?}");
    let counted: u64 = redis.hget(&batch, "total").await.unwrap();
    assert_eq!(counted, 1, "what is not stored is counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settled_job_leaves_nothing_of_its_call_and_of_who_had_it_in_hand() {
    let (config, name) = (config(&redis_url()), fresh_name("left"));
    let engine = fleet(&config, 1).await.remove(0);
    let (ledger, job) = (engine.ledger(), job(&name, 1));
    let mut redis = connection(&redis_url()).await;
    let mut left = async || {
        let keys: Vec<Vec<u8>> = redis.keys(format!("*b:{name}}}:*")).await.unwrap();
        let ends =
            keys.iter().map(|key| String::from_utf8_lossy(key).rsplit_once("}:").unwrap().1[..1].to_owned());
        let mut ends: Vec<String> = ends.collect();
        ends.sort();
        ends.concat()
    };
    ledger.take_up(&job).await.unwrap();
    assert_eq!(ledger.depart(&intent(&job)).await.unwrap(), Known::Clear);
    assert_eq!(left().await, "cjt", "its intent, its state, and who has it in hand");
    ledger.answered(&intent(&job), Answered::Paid(settlement(&job)));
    ledger.flush().await;
    assert_eq!(left().await, "bcjt", "and the bill");
    ledger.settled(mark(&job, End::Done));
    ledger.flush().await;
    assert_eq!(left().await, "bj");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_share_round_trips() {
    let (config, name) = (config(&redis_url()), fresh_name("trips"));
    let engine = fleet(&config, 1).await.remove(0);
    let ledger = engine.ledger();
    let jobs: Vec<_> = (0..200).map(|n| job(&name, n)).collect();
    let before = engine.ledger_trips();
    let known = join_all(jobs.iter().map(|job| async { ledger.depart(&intent(job)).await.unwrap() })).await;
    assert!(known.iter().all(|known| *known == Known::Clear));
    for job in &jobs {
        ledger.answered(&intent(job), Answered::Paid(settlement(job)));
        ledger.settled(mark(job, End::Done));
    }
    ledger.flush().await;
    let trips = engine.ledger_trips() - before;
    assert!(trips < 100, "{trips} round trips of 200 calls");
    assert_eq!(tally(&engine, &name).await, Tally { ok: 200, ..OK });
}

/// What one process says of calls: a turn that was paid for and settled, one that is paid for, and one under way.
struct Said {
    name: String,
}

impl Said {
    async fn begin(engine: &Redis, name: &str) -> Self {
        for n in 1..=3 {
            assert_eq!(engine.ledger().depart(&intent(&job(name, n))).await.unwrap(), Known::Clear);
        }
        Self { name: name.to_owned() }
    }

    fn go_on(&self, engine: &Redis) {
        let (settled, paid) = (job(&self.name, 1), job(&self.name, 2));
        engine.ledger().answered(&intent(&settled), Answered::Paid(settlement(&settled)));
        engine.ledger().settled(mark_of(
            &settled,
            End::Again,
            Tally { ok: 2, rejected: 1, ..Tally::default() },
        ));
        engine.ledger().answered(&intent(&paid), Answered::Paid(settlement(&paid)));
    }

    /// Waits until it is stored, as seen by another process.
    async fn is_stored(&self, engine: &Redis, other: &Redis) {
        let well = until("the server answers", async || engine.ledger().days().await.ok());
        well.await;
        engine.ledger().flush().await;
        let (settled, paid, open) = (job(&self.name, 1), job(&self.name, 2), job(&self.name, 3));
        let known = async |job| {
            until("the server answers", async || other.ledger().depart(&intent(job)).await.ok()).await
        };
        assert_eq!(known(&settled).await, Known::Over);
        assert!(matches!(known(&paid).await, Known::Answered(_)));
        assert!(matches!(known(&open).await, Known::UnderWay(_)));
        assert_eq!(tally(other, &self.name).await, Tally { ok: 2, rejected: 1, ..Tally::default() });
        let day = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let bill = other.ledger().bill(day).await.unwrap();
        let all = bill.iter().find(|line| line.model == "*").unwrap();
        assert_eq!((all.answered, all.charged, all.cost_micros), (2, 2, 5_000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_while_the_server_is_away_is_stored_once_when_it_is_back() {
    let mut server = PrivateRedis::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let config = config(&server.url());
    let (engine, other) = (&fleet(&config, 1).await[0], &fleet(&config, 1).await[0]);
    let said = Said::begin(engine, &fresh_name("away")).await;
    server.kill();
    said.go_on(engine);
    let why = engine.ledger().depart(&intent(&job(&said.name, 4))).await.unwrap_err();
    assert!(matches!(&why, LedgerError::Away(why) if why.contains(&server.port().to_string())), "{why}");
    server.revive().await;
    said.is_stored(engine, other).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_though_its_answer_was_lost_is_done_once() {
    for fault in [Fault::Mute, Fault::Blackhole] {
        let server = PrivateRedis::start(&[]).await;
        let proxy = FaultProxy::start(server.port()).await;
        let direct = config(&server.url());
        let through = Config {
            url: format!("redis://127.0.0.1:{}/0", proxy.port()),
            response_timeout_ms: 200,
            connect_timeout_ms: 200,
            ..direct.clone()
        };
        let (engine, other) = (&fleet(&through, 1).await[0], &fleet(&direct, 1).await[0]);
        let said = Said::begin(engine, &fresh_name("mute")).await;
        proxy.set(fault);
        said.go_on(engine);
        assert!(engine.ledger().depart(&intent(&job(&said.name, 4))).await.is_err());
        proxy.set(Fault::None);
        said.is_stored(engine, other).await;
        // The question was not heard, so the call did not leave, and stands in nobody's way.
        assert_eq!(other.ledger().depart(&intent(&job(&said.name, 4))).await.unwrap(), Known::Clear);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_was_completed_by_a_word_whose_answer_was_lost_is_said_to_be_complete() {
    let server = PrivateRedis::start(&[]).await;
    let proxy = FaultProxy::start(server.port()).await;
    let url = format!("redis://127.0.0.1:{}/0", proxy.port());
    let engine = &fleet(&Config { response_timeout_ms: 200, ..config(&url) }, 1).await[0];
    let job = job(&fresh_name("unheard"), 1);
    let expected = Expected { batch: job.batch.clone(), jobs: 1, results: 1, closed: true };
    engine.batches().expect(&expected).await.unwrap();
    proxy.set(Fault::Mute);
    engine.ledger().settled(mark(&job, End::Done));
    assert!(engine.batches().progress(&job.batch).await.is_err());
    proxy.set(Fault::None);
    let complete = timeout(PATIENCE, engine.batches().complete()).await.expect("it is heard of");
    assert_eq!((complete.batch, complete.tally), (job.batch, OK));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_can_not_write_is_stored_once_when_it_can() {
    for (ill, well, word) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OOM"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "NOREPLICAS"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "READONLY"),
    ] {
        let server = PrivateRedis::start(&["--maxmemory-policy", "noeviction"]).await;
        let config = config(&server.url());
        let (engine, other) = (&fleet(&config, 1).await[0], &fleet(&config, 1).await[0]);
        let said = Said::begin(engine, &fresh_name("full")).await;
        let () = server.ask(ill).await;
        said.go_on(engine);
        let why = engine.ledger().depart(&intent(&job(&said.name, 4))).await.unwrap_err().to_string();
        assert!(why.contains(word) || why.to_lowercase().contains("read only"), "{why}");
        let () = server.ask(well).await;
        said.is_stored(engine, other).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_are_forgotten_again_and_again_are_loaded_again_and_no_word_is_lost() {
    let server = PrivateRedis::start(&[]).await;
    let config = config(&server.url());
    let fleet = processes(fleet(&config, 3).await);
    let forgets = async {
        let mut connection = server.connection().await;
        loop {
            redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut connection).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let name = fresh_name("forgotten");
    let keeps = conformance::ledger::whatever_is_said_in_whatever_order_keeps_the_promises(&name, fleet);
    tokio::select! {
        () = keeps => {}
        () = forgets => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_forgot_is_clear() {
    let server = PrivateRedis::start(&[]).await;
    let engines = fleet(&config(&server.url()), 2).await;
    let (job, settled) = (job("forgot", 1), job("forgot", 2));
    engines[0].ledger().depart(&intent(&job)).await.unwrap();
    engines[0].ledger().settled(mark(&settled, End::Done));
    engines[0].ledger().flush().await;
    let () = server.ask("FLUSHALL").await;
    for job in [&job, &settled] {
        assert_eq!(engines[1].ledger().depart(&intent(job)).await.unwrap(), Known::Clear);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgot_what_is_paused_and_cancelled_is_told_again() {
    let server = PrivateRedis::start(&[]).await;
    let config = config(&server.url());
    let engine = &fleet(&config, 1).await[0];
    let [paused, cancelled, resumed] = ["paused", "cancelled", "resumed"].map(|batch| batch.parse().unwrap());
    let held = |hold| Some(Held { hold, by: "ana".into(), at: Timestamp::UNIX_EPOCH });
    for (batch, hold) in [(&paused, Hold::Paused), (&cancelled, Hold::Cancelled), (&resumed, Hold::Paused)] {
        engine.batches().hold(batch, held(hold)).await.unwrap();
    }
    engine.batches().hold(&resumed, None).await.unwrap();
    let () = server.ask("FLUSHALL").await;
    let newcomer = &fleet(&config, 1).await[0];
    for (batch, hold) in [(&paused, Hold::Paused), (&cancelled, Hold::Cancelled)] {
        until("it is said again", async || newcomer.batches().held(batch).filter(|held| *held == hold)).await;
        assert_eq!(engine.batches().held(batch), Some(hold), "it was never in doubt");
    }
    assert_eq!(newcomer.batches().held(&resumed), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_silence_nobody_counts_as_gone_before_it_could_say_that_it_lives() {
    let server = PrivateRedis::start(&[]).await;
    let proxy = FaultProxy::start(server.port()).await;
    let direct = config(&server.url());
    let through = Config {
        url: format!("redis://127.0.0.1:{}/0", proxy.port()),
        response_timeout_ms: 200,
        connect_timeout_ms: 200,
        ..direct.clone()
    };
    let (maker, other) = (&fleet(&direct, 1).await[0], &fleet(&through, 1).await[0]);
    let job = job(&fresh_name("silence"), 1);
    maker.ledger().depart(&intent(&job)).await.unwrap();
    proxy.set(Fault::Blackhole);
    assert!(other.ledger().take_up(&job).await.is_err());
    // As if the maker had been silent, too, for as long.
    let keys: Vec<String> = server.ask(&format!("KEYS {}:p:*", direct.namespace)).await;
    for key in keys {
        let () = server.ask(&format!("DEL {key}")).await;
    }
    proxy.set(Fault::None);
    let known = until("the server answers", async || other.ledger().depart(&intent(&job)).await.ok()).await;
    assert!(matches!(known, Known::UnderWay(_)), "{known:?}");
}
