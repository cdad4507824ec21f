//! The limiter and the ledger on Redis.
