//! The ledger, the answers and the batches on a real Redis.

use pixfleet_tests::{
    conformance::process::Process,
    redis_fleet::{config, fleet, processes},
    servers::redis_url,
};

async fn three_processes() -> Vec<Process> {
    processes(fleet(&config(&redis_url()), 3).await)
}

mod ledger {
    pixfleet_tests::ledger_conforms!(super::three_processes);
}

mod answers {
    pixfleet_tests::answers_conform!(super::three_processes);
}

mod batches {
    pixfleet_tests::batches_conform!(super::three_processes);
}
