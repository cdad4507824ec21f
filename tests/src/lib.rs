//! What the tests of the whole share: the servers, the conformance suites, and the fleet under test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod certificates;
pub mod conformance;
pub mod crash_loop;
pub mod fault_proxy;
pub mod faults;
pub mod fleet;
pub mod judges;
pub mod one_machine;
pub mod private_redis;
pub mod raw_amqp;
pub mod redis_fleet;
pub mod redis_sets;
pub mod scripted;
pub mod servers;
pub mod site;
pub mod venv;
