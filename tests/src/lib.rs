//! What the tests of the whole share: the servers, the conformance suites, and the fleet under test.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod conformance;
pub mod crash_loop;
pub mod fleet;
pub mod one_machine;
pub mod private_redis;
pub mod servers;
pub mod site;
pub mod venv;
