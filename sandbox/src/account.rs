//! The accounts: one judge and one bill a key, each behind its own lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::access::Outcome;
use crate::bill::{Bill, Counts, KeyBill};
use crate::image::hex;
use crate::judge::{Judge, Verdict};
use crate::settings::{Cost, Judging};

/// Strangers' keys and models beyond these many share one row each, so that nobody can fill the memory.
const MOST_KEYS: usize = 10_000;
const MOST_MODELS: usize = 1_000;
const OTHERS: &str = "(others)";
const NO_KEY: &str = "(none)";

/// All accounts, and what is counted over them.
#[derive(Debug)]
pub(crate) struct Accounts {
    judging: Judging,
    cost: Cost,
    by_key: RwLock<HashMap<Arc<str>, Arc<Account>>>,
    accepted: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) images_served: AtomicU64,
}

/// One key's account.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) fingerprint: Arc<str>,
    inner: Mutex<(Judge, KeyBill)>,
}

impl Accounts {
    pub(crate) fn new(judging: Judging, cost: Cost) -> Self {
        Self {
            judging,
            cost,
            by_key: RwLock::default(),
            accepted: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            images_served: AtomicU64::new(0),
        }
    }

    /// The account of `key`; calls without one have an account, too.
    pub(crate) fn of(&self, key: Option<&str>) -> Arc<Account> {
        let fingerprint = key.map_or_else(|| NO_KEY.to_owned(), fingerprint);
        let known = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = known.get(fingerprint.as_str()) {
            return account.clone();
        }
        drop(known);
        let mut known = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        let name: Arc<str> = if known.len() < MOST_KEYS { fingerprint.into() } else { OTHERS.into() };
        known.entry(name.clone()).or_insert_with(|| Arc::new(Account::new(name, self.judging))).clone()
    }

    /// Numbers the accepted calls from 0; a call's fate follows from its number.
    pub(crate) fn next_accepted(&self) -> u64 {
        self.accepted.fetch_add(1, Relaxed)
    }

    /// The bill as it stands now.
    pub(crate) fn bill(&self) -> Bill {
        let known = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        let mut bill = Bill {
            in_flight: self.in_flight.load(Relaxed),
            connections: self.connections.load(Relaxed),
            images_served: self.images_served.load(Relaxed),
            ..Bill::default()
        };
        for (fingerprint, account) in known.iter() {
            let key = account.lock().1.clone();
            bill.total.add(key.counts);
            bill.keys.insert(fingerprint.to_string(), key);
        }
        bill
    }

    /// Forgets everything: fresh judges, an empty bill, and the faults from their beginning.
    ///
    /// A call that is under way ends on its old account and is in no bill any more.
    pub(crate) fn reset(&self) {
        self.by_key.write().unwrap_or_else(PoisonError::into_inner).clear();
        for counter in [&self.accepted, &self.connections, &self.images_served] {
            counter.store(0, Relaxed);
        }
    }

    pub(crate) fn cost(&self) -> Cost {
        self.cost
    }
}

impl Account {
    fn new(fingerprint: Arc<str>, judging: Judging) -> Self {
        Self { fingerprint, inner: Mutex::new((Judge::new(judging), KeyBill::default())) }
    }

    /// Judges a call that arrives now; the moment, in Unix microseconds, is the one that the judge saw.
    pub(crate) fn arrive(&self, cost: u32) -> (u64, Verdict) {
        let mut inner = self.lock();
        // Read under the lock: the log then has the order, and the times, that the judge had.
        let now_us = unix_us();
        (now_us, inner.0.arrive(now_us, cost))
    }

    /// An accepted call has ended; what the judge held for it is free again.
    pub(crate) fn finish(&self) {
        self.lock().0.finish();
    }

    /// Puts an ended call on the bill.
    pub(crate) fn settle(&self, models: &[String], outcome: Outcome, cost: Cost) {
        let mut counts = outcome.counts();
        let mut inner = self.lock();
        let bill = &mut inner.1;
        counts.units = counts.charged * u64::from(cost.of(models.len()));
        bill.counts.add(counts);
        counts.units = if cost == Cost::PerModel { counts.charged } else { 0 };
        for model in models {
            add_to(bill, model, counts);
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Judge, KeyBill)> {
        // Nothing panics while it is held, and counts that are off by one are better than a dead sandbox.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add_to(bill: &mut KeyBill, model: &str, counts: Counts) {
    if let Some(row) = bill.models.get_mut(model) {
        return row.add(counts);
    }
    let name = if bill.models.len() < MOST_MODELS { model } else { OTHERS };
    bill.models.entry(name.to_owned()).or_default().add(counts);
}

/// The first six bytes of the key's SHA-256, in hex: tells keys apart and gives none away.
pub(crate) fn fingerprint(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes())[..6])
}

/// Now, in microseconds since 1970.
pub(crate) fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Rule;

    #[test]
    fn keys_are_judged_apart() {
        let judging = Judging { rule: Rule::Sliding, limit: 1, window_ms: 60_000, count_refused: false };
        let accounts = Accounts::new(judging, Cost::PerCall);
        assert_eq!(accounts.of(Some("a")).arrive(1).1, Verdict::Accepted);
        assert!(matches!(accounts.of(Some("a")).arrive(1).1, Verdict::Refused { .. }));
        assert_eq!(accounts.of(Some("b")).arrive(1).1, Verdict::Accepted);
        accounts.reset();
        assert_eq!(accounts.of(Some("a")).arrive(1).1, Verdict::Accepted);
    }

    #[test]
    fn strangers_cannot_fill_the_memory() {
        let accounts = Accounts::new(Judging::default(), Cost::PerCall);
        for key in 0..MOST_KEYS + 50 {
            let models = [format!("model-{key}")];
            accounts.of(Some(&key.to_string())).settle(&models, Outcome::Accepted, Cost::PerCall);
            accounts.of(None).settle(&models, Outcome::Rejected, Cost::PerCall);
        }
        let bill = accounts.bill();
        assert!(bill.keys.len() <= MOST_KEYS + 1, "{} keys", bill.keys.len());
        assert!(bill.keys.values().all(|key| key.models.len() <= MOST_MODELS + 1));
        assert_eq!(bill.total.calls, 2 * (MOST_KEYS as u64 + 50), "nobody is forgotten");
    }

    #[test]
    fn the_bill_never_shows_a_key() {
        let accounts = Accounts::new(Judging::default(), Cost::PerCall);
        accounts.of(Some("s3cret")).settle(&[], Outcome::Accepted, Cost::PerCall);
        assert!(!format!("{:?}", accounts.bill()).contains("s3cret"));
    }
}
