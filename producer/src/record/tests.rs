use std::{fs, path::PathBuf};

use super::*;
use crate::plan::{Plan, Tariff};
use pixfleet_shared::job::{Image, Priority, Source};
use proptest::prelude::*;
use tempfile::TempDir;

fn identity(models: &[&str]) -> Identity {
    let models: Vec<String> = models.iter().map(|m| (*m).to_owned()).collect();
    let plan = Plan::new("restb", &models, 1, Tariff::default()).unwrap();
    Identity::new(&"spring".parse().unwrap(), &plan, Priority::Normal, "localhost:5672/")
}

fn id(n: u64) -> Id {
    Id::of(&[b"test", &n.to_be_bytes()])
}

fn ids(range: std::ops::Range<u64>) -> Vec<Id> {
    range.map(id).collect()
}

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("below/spring.sqlite");
    (folder, path)
}

fn open(path: &Path) -> Record {
    Record::open(path, &identity(&["a"])).unwrap()
}

#[test]
fn what_was_confirmed_is_already_there_for_the_next_run_and_what_was_only_claimed_is_not() {
    let (_folder, path) = folder();
    let mut first = open(&path);
    assert!(first.claim(&ids(0..10)).unwrap().iter().all(|c| *c == Claim::Fresh));
    first.confirm(&ids(0..6), 6).unwrap();
    drop(first); // as a kill would: nothing is said in farewell
    let mut second = open(&path);
    let claims = second.claim(&ids(0..10)).unwrap();
    assert!(claims[..6].iter().all(|c| *c == Claim::Already));
    assert!(claims[6..].iter().all(|c| *c == Claim::Fresh));
    assert_eq!(second.totals(), Totals { jobs: 6, results: 6 });
}

#[test]
fn a_repetition_within_a_run_is_a_duplicate_whether_claimed_confirmed_or_confirmed_before() {
    let (_folder, path) = folder();
    let mut record = open(&path);
    record.claim(&[id(1), id(2)]).unwrap();
    assert_eq!(record.claim(&[id(1)]).unwrap(), [Claim::Duplicate]);
    record.confirm(&[id(1)], 1).unwrap();
    assert_eq!(record.claim(&[id(1)]).unwrap(), [Claim::Duplicate]);
    drop(record);
    let mut record = open(&path);
    assert_eq!(record.claim(&[id(1), id(1)]).unwrap(), [Claim::Already, Claim::Duplicate]);
    assert_eq!(record.claim(&[id(1)]).unwrap(), [Claim::Duplicate]);
    assert_eq!(record.totals().jobs, 1, "seeing a job again does not count it again");
}

#[test]
fn ids_are_known_on_both_sides_of_a_merge() {
    let (_folder, path) = folder();
    let all = ids(0..(MERGE_AT as u64 + 5000));
    let mut record = open(&path);
    for chunk in all.chunks(1000) {
        assert!(record.claim(chunk).unwrap().iter().all(|c| *c == Claim::Fresh));
        record.confirm(chunk, chunk.len() as u64).unwrap();
    }
    assert!(record.in_tail < MERGE_AT && record.recent.len() == record.in_tail, "memory is given back");
    assert!(record.claim(&all).unwrap().iter().all(|c| *c == Claim::Duplicate));
    drop(record);
    let mut again = open(&path);
    assert!(again.claim(&all).unwrap().iter().all(|c| *c == Claim::Already));
    assert_eq!(again.totals().jobs, all.len() as u64);
}

#[test]
fn a_merge_that_was_killed_on_its_way_is_done_again() {
    let (_folder, path) = folder();
    let mut record = open(&path);
    record.claim(&ids(0..10)).unwrap();
    record.confirm(&ids(0..10), 10).unwrap();
    let begun = record.home.change(|db| tail::move_in(db, &tail::read(db)?[..4]));
    begun.unwrap();
    drop(record);
    let mut again = open(&path);
    assert!(again.home.change(tail::read).unwrap().is_empty());
    assert!(again.claim(&ids(0..10)).unwrap().iter().all(|c| *c == Claim::Already));
    assert_eq!(again.totals().jobs, 10);
}

#[test]
fn a_merge_takes_nothing_out_of_the_tail_that_it_has_not_moved() {
    let (_folder, path) = folder();
    let mut record = open(&path);
    record.confirm(&ids(0..3), 3).unwrap();
    let moved = record.home.change(tail::read).unwrap();
    // Another process merges, too, and adds a row of its own batch: it gets the number of one that is gone.
    record.home.change(|db| db.execute("DELETE FROM tail", [])).unwrap();
    record.confirm(&[id(7)], 1).unwrap();
    record.home.change(move |db| tail::clear(db, &moved)).unwrap();
    let left: Vec<Id> = record.home.change(tail::read).unwrap().iter().map(|row| row.id).collect();
    assert_eq!(left, [id(7)]);
}

#[test]
fn a_batch_keeps_to_its_lane_over_runs() {
    let (_folder, path) = folder();
    let mut record = open(&path);
    assert_eq!(record.lane(), None);
    record.keep_to_lane(3).unwrap();
    drop(record);
    assert_eq!(open(&path).lane(), Some(3));
}

#[test]
fn another_question_under_the_same_batch_name_is_refused_with_both_values_and_a_way_out() {
    let (_folder, path) = folder();
    open(&path).keep_to_lane(0).unwrap();
    let message = Record::open(&path, &identity(&["a", "b"])).unwrap_err().to_string();
    for part in ["spring", "models", "`a`", "`a,b`", "--batch", "spring.sqlite"] {
        assert!(message.contains(part), "{message} lacks {part}");
    }
}

#[test]
fn a_question_may_be_mended_as_long_as_no_job_can_be_on_the_queue() {
    let (_folder, path) = folder();
    drop(open(&path));
    drop(Record::open(&path, &identity(&["b"])).unwrap());
    open(&path).keep_to_lane(0).unwrap();
    assert!(Record::open(&path, &identity(&["b"])).is_err());
}

#[test]
fn a_second_run_at_the_same_time_is_refused() {
    let (_folder, path) = folder();
    let mut first = open(&path);
    first.keep_to_lane(0).unwrap();
    assert!(matches!(Record::open(&path, &identity(&["a"])), Err(RecordError::InUse(_))));
    assert!(matches!(Record::rehearse(&path, &identity(&["a"])), Err(RecordError::InUse(_))));
}

#[test]
fn somebody_elses_file_is_left_alone() {
    let (_folder, path) = folder();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "listing,url\n1,https://e.com/1.jpg\n".repeat(100)).unwrap();
    assert!(matches!(Record::open(&path, &identity(&["a"])), Err(RecordError::NotARecord(_))));
    assert!(matches!(Record::rehearse(&path, &identity(&["a"])), Err(RecordError::NotARecord(_))));
    assert!(fs::read_to_string(&path).unwrap().starts_with("listing,url"));
    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE photos (id)").unwrap();
    assert!(matches!(Record::open(&path, &identity(&["a"])), Err(RecordError::NotARecord(_))));
}

#[test]
fn a_rehearsal_knows_what_is_on_record_and_leaves_no_trace() {
    let (_folder, path) = folder();
    let mut record = open(&path);
    record.keep_to_lane(0).unwrap();
    record.claim(&ids(0..3)).unwrap();
    record.confirm(&ids(0..3), 3).unwrap();
    drop(record);
    let mut rehearsal = Record::rehearse(&path, &identity(&["a"])).unwrap();
    assert_eq!(
        rehearsal.claim(&[id(2), id(3), id(3)]).unwrap(),
        [Claim::Already, Claim::Fresh, Claim::Duplicate]
    );
    rehearsal.confirm(&[id(3)], 1).unwrap();
    assert!(Record::rehearse(&path, &identity(&["a", "b"])).is_err(), "the same refusals");
    drop(rehearsal);
    let mut record = open(&path);
    assert_eq!(record.totals().jobs, 3);
    assert_eq!(record.claim(&[id(3)]).unwrap(), [Claim::Fresh]);
}

#[test]
fn a_rehearsal_of_a_new_batch_creates_no_file() {
    let (_folder, path) = folder();
    let mut rehearsal = Record::rehearse(&path, &identity(&["a"])).unwrap();
    assert_eq!(rehearsal.claim(&[id(1)]).unwrap(), [Claim::Fresh]);
    assert!(!path.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// However a batch is cut into chunks and runs, each id is fresh until confirmed, and once only in each run.
    #[test]
    fn the_record_agrees_with_a_plain_set(
        runs in proptest::collection::vec(
            proptest::collection::vec((proptest::collection::vec(0u64..40, 0..8), any::<bool>()), 0..8), 1..4),
    ) {
        let (_folder, path) = folder();
        let mut confirmed = HashSet::new();
        for run in runs {
            let mut record = open(&path);
            let mut seen = HashSet::new();
            for (numbers, confirm) in run {
                let chunk: Vec<Id> = numbers.into_iter().map(id).collect();
                let claims = record.claim(&chunk).unwrap();
                let mut fresh = Vec::new();
                for (id, claim) in chunk.iter().zip(claims) {
                    let expected = if !seen.insert(*id) {
                        Claim::Duplicate
                    } else if confirmed.contains(id) {
                        Claim::Already
                    } else {
                        fresh.push(*id);
                        Claim::Fresh
                    };
                    prop_assert_eq!(claim, expected);
                }
                if confirm {
                    record.confirm(&fresh, fresh.len() as u64).unwrap();
                    confirmed.extend(fresh);
                }
            }
            prop_assert_eq!(record.totals().jobs, confirmed.len() as u64);
        }
    }
}

fn job(n: u64) -> Job {
    let image = Image { id: n.to_string(), source: Source::Url("https://example.com/".into()) };
    Job::new("spring".parse().unwrap(), image, "restb".into(), vec!["a".into()])
}

#[tokio::test(flavor = "multi_thread")]
async fn within_a_state_file_a_job_and_its_mention_go_in_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let jobs: Vec<Job> = (0..6).map(job).collect();
    let ids: Vec<Id> = jobs.iter().map(|job| job.id).collect();
    for (known, run) in [(0, "first"), (6, "second")] {
        let store = Store::open(&path).unwrap();
        let mut record = Record::within(store.clone(), &identity(&["a"])).unwrap();
        assert!(record.holds_the_jobs());
        let claims = record.claim(&ids).unwrap();
        let already = claims.iter().filter(|claim| **claim == Claim::Already).count();
        assert_eq!(already, known, "{run}");
        if known == 0 {
            record.put(&jobs).unwrap();
        }
        assert_eq!(record.totals(), Totals { jobs: 6, results: 6 });
        record.end().unwrap();
        let counts = store.batch(&"spring".parse().unwrap()).await.unwrap().unwrap();
        assert_eq!((counts.jobs, counts.expected), (6, 6), "{run}");
        store.close().await;
    }
    let mut rehearsal = Record::rehearse_within(&path, &identity(&["a"])).unwrap();
    assert!(rehearsal.claim(&ids).unwrap().iter().all(|claim| *claim == Claim::Already));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_batches_of_one_state_file_do_not_mix_and_one_batch_has_one_run_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("state")).unwrap();
    let other_process = Store::open(&folder.path().join("state")).unwrap();
    let plan = Plan::new("tiliter", &["b".to_owned()], 1, Tariff::default()).unwrap();
    let autumn = Identity::new(&"autumn".parse().unwrap(), &plan, Priority::Normal, "localhost:5672/");
    let mut spring = Record::within(store.clone(), &identity(&["a"])).unwrap();
    spring.put(&[job(1)]).unwrap();
    assert_eq!(Record::within(other_process.clone(), &autumn).unwrap().totals(), Totals::default());
    let refused = Record::within(other_process.clone(), &identity(&["a"])).unwrap_err();
    assert!(matches!(refused, RecordError::InUse(_)), "{refused}");
    spring.end().unwrap();
    assert_eq!(Record::within(other_process, &identity(&["a"])).unwrap().totals().jobs, 1);
}
