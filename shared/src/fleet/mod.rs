//! The engine for many machines: jobs and results in RabbitMQ, limits and the ledger in Redis.

pub mod rabbit;
pub mod redis;
