//! Lends jobs of the state file: a few dozen in one transaction, handed on one by one.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::{
    jobs,
    lending::{self, Lending, Lent, Outlook, Served},
    process::now_us,
    settle::EmbeddedSettle,
    store::Store,
    trouble::StoreError,
};
use crate::{
    job::Job,
    lanes::Turns,
    queue::{Delivery, Intake},
};

/// The most jobs of one lending: more would be picked long before their turn.
const AT_ONCE: usize = 64;
/// A waiting job is looked for at least this often, whatever the clock does meanwhile.
const LONGEST_REST: Duration = Duration::from_secs(5);
/// Pause before a file that failed is asked again.
const PAUSE: Duration = Duration::from_millis(250);

/// The handle that a worker holds; a task of its own does the work, so `next` can be dropped at any await.
pub(super) struct EmbeddedIntake {
    deliveries: mpsc::Receiver<Delivery>,
    stop: CancellationToken,
    pump: Option<tokio::task::JoinHandle<()>>,
}

#[async_trait]
impl Intake for EmbeddedIntake {
    async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        if let Some(pump) = self.pump.take() {
            let _ = pump.await;
        }
        // What was picked and not lent goes back with the rest.
        self.deliveries.close();
        while let Some(delivery) = self.deliveries.recv().await {
            let (job, unsettled) = delivery.split();
            // At worst its lease ends, and it comes back then.
            let _ = unsettled.release(job, Duration::ZERO).await;
        }
    }
}

/// An intake that is dropped unstopped lends no more.
impl Drop for EmbeddedIntake {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts lending.
pub(super) fn start(store: Arc<Store>, served: Served, prefetch: watch::Receiver<u16>) -> EmbeddedIntake {
    // Room for one: a job picked earlier than needed was picked by stale weights.
    let (lend, deliveries) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let pump = Pump {
        store,
        served,
        prefetch,
        lend,
        stop: stop.clone(),
        turns: Some(Turns::default()),
        ahead: VecDeque::new(),
    };
    EmbeddedIntake { deliveries, stop, pump: Some(tokio::spawn(pump.run())) }
}

struct Pump {
    store: Arc<Store>,
    served: Served,
    prefetch: watch::Receiver<u16>,
    lend: mpsc::Sender<Delivery>,
    stop: CancellationToken,
    /// Away only while they are in the writer's hands.
    turns: Option<Turns<usize>>,
    ahead: VecDeque<Lent>,
}

impl Pump {
    async fn run(mut self) {
        self.lend_on().await;
        let seqs: Vec<i64> = self.ahead.drain(..).map(|lent| lent.seq).collect();
        if !seqs.is_empty() {
            let token = self.store.membership().token();
            // At worst the lease ends, and they come back then.
            let _ = self.store.write(move |db| jobs::give_back(db, token, &seqs)).await;
        }
    }

    /// Until told to stop, or nobody takes jobs any more. A lending is never left half-way: its jobs would stay lent.
    async fn lend_on(&mut self) {
        let mut news = self.store.news().jobs.subscribe();
        while !self.stop.is_cancelled() {
            news.borrow_and_update();
            let rest = match self.refill().await {
                Ok(rest) => rest,
                Err(error) => {
                    warn!(%error, "no jobs can be lent");
                    Some(PAUSE)
                }
            };
            while !self.ahead.is_empty() {
                let Some(place) = self.place().await else { return };
                if let Some(delivery) = self.ahead.pop_front().and_then(|lent| self.deliver(lent)) {
                    place.send(delivery);
                }
            }
            let Some(rest) = rest else { continue };
            tokio::select! {
                _ = news.changed() => {}
                () = sleep(rest) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Room for one more delivery; none when nobody takes any.
    async fn place(&self) -> Option<mpsc::OwnedPermit<Delivery>> {
        tokio::select! {
            place = self.lend.clone().reserve_owned() => place.ok(),
            () = self.stop.cancelled() => None,
        }
    }

    /// Lends some more; answers how long to rest, where there was less than asked for.
    async fn refill(&mut self) -> Result<Option<Duration>, StoreError> {
        let served = self.served.clone();
        let outlook = self.store.read(move |db| lending::outlook(db, &served)).await?;
        if let Outlook::NothingBefore(due_us) = outlook {
            return Ok(Some(self.rest(due_us)));
        }
        let most = usize::from(*self.prefetch.borrow()).div_ceil(2).clamp(1, AT_ONCE);
        let Lending { lent, next_due_us } = self.lend_some(most).await?;
        let short = lent.len() < most;
        self.ahead.extend(lent);
        Ok(short.then(|| self.rest(next_due_us)))
    }

    async fn lend_some(&mut self, most: usize) -> Result<Lending, StoreError> {
        let (shared, served) = (self.store.shared(), self.served.clone());
        let mut turns = self.turns.take().unwrap_or_default();
        let lending = self.store.write(move |db| {
            let holder = shared.membership.join(db)?;
            let lending = lending::lend(db, holder, &served, &mut turns, most)?;
            Ok((lending, turns))
        });
        let (lending, turns) = lending.await?;
        self.turns = Some(turns);
        Ok(lending)
    }

    fn rest(&self, due_us: Option<u64>) -> Duration {
        let until_due = due_us.map(|due| Duration::from_micros(due.saturating_sub(now_us()) + 1_000));
        until_due.unwrap_or(LONGEST_REST).min(LONGEST_REST)
    }

    /// A row that is no job was not written by this build: it stays lent to this process, and is told of.
    fn deliver(&self, lent: Lent) -> Option<Delivery> {
        match Job::from_message(&lent.message) {
            Ok(job) => {
                let settle = EmbeddedSettle::new(self.store.clone(), lent.seq, &job);
                Some(Delivery::new(job, lent.again, Box::new(settle)))
            }
            Err(why) => {
                error!(job.seq = lent.seq, %why, "a row of the state file is no job; it is left where it is");
                None
            }
        }
    }
}
