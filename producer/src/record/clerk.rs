//! The clerk: a thread of its own that keeps the record, so that no disk ever holds up a confirm.

use std::thread;

use pixfleet_shared::{id::Id, job::Job};
use tokio::sync::{mpsc, oneshot};

use super::{Claim, Record, RecordError, Totals};

/// Questions that may wait for the clerk; each asker has at most one.
const WAITING: usize = 64;

enum Question {
    Claim(Vec<Id>, oneshot::Sender<Result<Vec<Claim>, RecordError>>),
    Confirm(Vec<Id>, u64, oneshot::Sender<Result<Totals, RecordError>>),
    Put(Vec<Job>, oneshot::Sender<Result<Totals, RecordError>>),
}

/// The way to ask the thread that keeps a record.
#[derive(Debug)]
pub(crate) struct Clerk {
    questions: mpsc::Sender<Question>,
    thread: thread::JoinHandle<Record>,
}

impl Clerk {
    /// Hands `record` to a thread of its own.
    pub(crate) fn employ(record: Record) -> Self {
        let (questions, inbox) = mpsc::channel(WAITING);
        let thread = thread::spawn(move || serve(record, inbox));
        Self { questions, thread }
    }

    /// See [`Record::claim`].
    pub(crate) async fn claim(&self, ids: Vec<Id>) -> Result<Vec<Claim>, RecordError> {
        self.ask(|answer| Question::Claim(ids, answer)).await
    }

    /// See [`Record::confirm`].
    pub(crate) async fn confirm(&self, ids: Vec<Id>, results: u64) -> Result<Totals, RecordError> {
        self.ask(|answer| Question::Confirm(ids, results, answer)).await
    }

    /// See [`Record::put`].
    pub(crate) async fn put(&self, jobs: Vec<Job>) -> Result<Totals, RecordError> {
        self.ask(|answer| Question::Put(jobs, answer)).await
    }

    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<Result<T, RecordError>>) -> Question,
    ) -> Result<T, RecordError> {
        let (answer, answered) = oneshot::channel();
        let gone = || RecordError::Broken {
            path: "of this batch".to_owned(),
            cause: "the thread that keeps it has ended; see the log above".to_owned(),
        };
        self.questions.send(question(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Waits until everything said is written, and ends the run.
    pub(crate) async fn dismiss(self) -> Result<(), RecordError> {
        drop(self.questions);
        let thread = self.thread;
        // A thread that panicked has said so in the log; what it wrote is there.
        let ended = move || thread.join().map_or(Ok(()), Record::end);
        tokio::task::spawn_blocking(ended).await.unwrap_or(Ok(()))
    }
}

fn serve(mut record: Record, mut inbox: mpsc::Receiver<Question>) -> Record {
    // An asker that has gone needs no answer.
    while let Some(question) = inbox.blocking_recv() {
        match question {
            Question::Claim(ids, answer) => drop(answer.send(record.claim(&ids))),
            Question::Put(jobs, answer) => drop(answer.send(record.put(&jobs))),
            Question::Confirm(ids, results, answer) => drop(answer.send(record.confirm(&ids, results))),
        }
    }
    record
}
