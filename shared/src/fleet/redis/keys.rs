//! The names of the ledger's keys. All of a batch's have its hash tag, so that a script may use several of them.

use std::sync::Arc;

use jiff::civil::Date;

use crate::{batch::BatchName, id::Id};

/// How the keys of a namespace are called.
#[derive(Clone)]
pub(super) struct Keys(Arc<str>);

impl Keys {
    pub(super) fn new(namespace: Arc<str>) -> Self {
        Self(namespace)
    }

    /// What is known of a batch.
    pub(super) fn batch(&self, batch: &BatchName) -> Vec<u8> {
        format!("{{{}:b:{batch}}}", self.0).into_bytes()
    }

    /// What its dead letters count as.
    pub(super) fn dead(&self, batch: &BatchName) -> Vec<u8> {
        [&*self.batch(batch), b":d"].concat()
    }

    /// The states of some of its jobs: of those whose ids begin alike, one in 4,096.
    pub(super) fn shard(&self, batch: &BatchName, job: Id) -> Vec<u8> {
        let [first, second, ..] = job.to_bytes();
        format!("{{{}:b:{batch}}}:j:{:03x}", self.0, u16::from_be_bytes([first, second]) >> 4).into_bytes()
    }

    /// Of its jobs' calls, the intents of those that are under way, and what follows from the answers of those that are not settled.
    pub(super) fn calls(&self, batch: &BatchName) -> Vec<u8> {
        [&*self.batch(batch), b":c"].concat()
    }

    /// The processes that have a job in hand which was lent before.
    pub(super) fn hands(&self, batch: &BatchName, job: Id) -> Vec<u8> {
        [&*self.batch(batch), b":t:", &job.to_bytes()].concat()
    }

    /// What a batch adds to the bill of a day.
    pub(super) fn bill(&self, batch: &BatchName, day: Date) -> Vec<u8> {
        [&*self.batch(batch), format!(":bill:{day}").as_bytes()].concat()
    }

    /// The batches that add to the bill of a day.
    pub(super) fn billed(&self, day: Date) -> Vec<u8> {
        self.named(&format!("bill:{day}"))
    }

    /// The calls of a day that were never answered.
    pub(super) fn lost(&self, day: Date) -> Vec<u8> {
        self.named(&format!("lost:{day}"))
    }

    /// The days of which there is a bill, or a call that was never answered.
    pub(super) fn days(&self) -> Vec<u8> {
        self.named("days")
    }

    /// The batches, by the time at which they were first heard of.
    pub(super) fn batches(&self) -> Vec<u8> {
        self.named("batches")
    }

    /// What keeps batches.
    pub(super) fn held(&self) -> Vec<u8> {
        self.named("held")
    }

    /// The batches that were closed, and not yet said to be complete.
    pub(super) fn closed(&self) -> Vec<u8> {
        self.named("closed")
    }

    /// That a process lives.
    pub(super) fn process(&self, token: &str) -> Vec<u8> {
        self.named(&format!("p:{token}"))
    }

    /// An answer that is kept, or the claim on it.
    pub(super) fn answer(&self, key: Id) -> Vec<u8> {
        [self.0.as_bytes(), b":a:", &key.to_bytes()].concat()
    }

    fn named(&self, name: &str) -> Vec<u8> {
        format!("{}:{name}", self.0).into_bytes()
    }
}

/// The keys that all parts of a script have in common: the batch, its dead letters, its calls, and its bill of a day. `tag` is
/// theirs.
pub(super) fn in_common(tag: &[u8], bill: Option<Date>) -> Vec<Vec<u8>> {
    let of = |rest: &str| [b"{", tag, b"}", rest.as_bytes()].concat();
    let bill = bill.map(|day| of(&format!(":bill:{day}")));
    [of(""), of(":d"), of(":c")].into_iter().chain(bill).collect()
}

/// What of a key decides where a cluster keeps it.
pub(super) fn tag(key: &[u8]) -> &[u8] {
    let Some(begin) = key.iter().position(|byte| *byte == b'{') else { return key };
    match key[begin + 1..].iter().position(|byte| *byte == b'}') {
        Some(length @ 1..) => &key[begin + 1..begin + 1 + length],
        _ => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_batch_have_one_tag_and_those_of_a_job_its_shard() {
        let keys = Keys::new("fleet".into());
        let (batch, job) = ("spring".parse().unwrap(), Id::from_bytes([0xab; 16]));
        assert_eq!(keys.shard(&batch, job), b"{fleet:b:spring}:j:aba");
        let day = jiff::civil::date(2026, 11, 26);
        assert!(keys.bill(&batch, day).ends_with(b"}:bill:2026-11-26"));
        for key in [keys.batch(&batch), keys.calls(&batch), keys.hands(&batch, job), keys.bill(&batch, day)] {
            assert_eq!(tag(&key), b"fleet:b:spring");
        }
        let common = in_common(tag(&keys.shard(&batch, job)), Some(day));
        let named = [keys.batch(&batch), keys.dead(&batch), keys.calls(&batch), keys.bill(&batch, day)];
        assert_eq!(common, named);
        assert_eq!(tag(b"fleet:days"), b"fleet:days");
        assert_eq!(tag(b"a{}b"), b"a{}b");
    }
}
