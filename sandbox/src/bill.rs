//! The bill: what each key asked, what passed, what was charged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything since the start or the last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bill {
    /// All keys together.
    pub total: Counts,
    /// Each key, under its fingerprint (never the key itself).
    pub keys: BTreeMap<String, KeyBill>,
    /// Calls that were let in and have not ended; they are in no count yet.
    pub in_flight: u64,
    /// Connections opened, all keys together.
    pub connections: u64,
    /// Pictures fetched from `/sandbox/images/`.
    pub images_served: u64,
}

/// What one key did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBill {
    /// All of the key's calls.
    #[serde(flatten)]
    pub counts: Counts,
    /// The same by model; a call that asks several models counts at each of them.
    pub models: BTreeMap<String, Counts>,
}

/// Numbers of calls. `calls = accepted + refused`, `refused = throttled + rejected`, and one access line a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Everything that was asked.
    pub calls: u64,
    /// Let in, whether they went well or were struck by a fault.
    pub accepted: u64,
    /// Not let in: throttled or rejected.
    pub refused: u64,
    /// Over the rate.
    pub throttled: u64,
    /// Never to be let in: a bad key, an unknown model, a missing or unreadable image, not understood.
    pub rejected: u64,
    /// Accepted, but struck by a fault.
    pub faulted: u64,
    /// Accepted and to be paid.
    pub charged: u64,
    /// What the charged calls cost: one a call or one a model, as the settings say.
    pub units: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Counts) {
        self.calls += other.calls;
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.throttled += other.throttled;
        self.rejected += other.rejected;
        self.faulted += other.faulted;
        self.charged += other.charged;
        self.units += other.units;
    }
}
