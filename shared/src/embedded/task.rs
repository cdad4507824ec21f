//! One thing to be done in a transaction, and whoever waits for it.

use std::sync::mpsc;

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::trouble::StoreError;

/// What is done in a transaction, and told of its end.
pub(super) trait Task: Send {
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()>;
    fn end(self: Box<Self>, outcome: Result<(), StoreError>);
}

pub(super) struct Work<F, T> {
    work: Option<F>,
    made: Option<T>,
    reply: Reply<T>,
}

/// Whoever waits: a task, or a thread.
pub(super) enum Reply<T> {
    Task(oneshot::Sender<Result<T, StoreError>>),
    Thread(mpsc::Sender<Result<T, StoreError>>),
}

impl<T> Reply<T> {
    /// Whoever asked may have given up waiting.
    fn send(self, made: Result<T, StoreError>) {
        match self {
            Self::Task(task) => drop(task.send(made)),
            Self::Thread(thread) => drop(thread.send(made)),
        }
    }
}

impl<F, T> Task for Work<F, T>
where
    F: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, db: &Connection) -> rusqlite::Result<()> {
        if let Some(work) = self.work.take() {
            self.made = Some(work(db)?);
        }
        Ok(())
    }

    fn end(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { made, reply, .. } = *self;
        reply.send(outcome.and_then(|()| made.ok_or(StoreError::Closed)));
    }
}

impl<F, T> Work<F, T> {
    /// `work`, whose end is told to `reply`.
    pub(super) fn new(work: F, reply: Reply<T>) -> Self {
        Self { work: Some(work), made: None, reply }
    }
}
