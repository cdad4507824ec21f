//! The promises of a ledger. `fleet` is two or more clients of one ledger, as processes of one fleet are.

use pixfleet_shared::{
    id::Id,
    ledger::{Begun, Ledger},
};

/// A job that no other test of the server knows.
fn job(test: &str, n: u8) -> Id {
    Id::of(&[b"conformance", test.as_bytes(), &[n]])
}

/// What one client says to be settled, every client knows; of other jobs nothing is known.
pub async fn a_settled_job_is_known_to_every_client(test: &str, fleet: &[&dyn Ledger]) {
    let settled = job(test, 1);
    for client in fleet {
        assert_eq!(client.begin(settled).await.unwrap(), Begun::Fresh);
    }
    fleet[0].settled(settled).await.unwrap();
    for client in fleet {
        assert_eq!(client.begin(settled).await.unwrap(), Begun::Settled);
        assert_eq!(client.begin(job(test, 2)).await.unwrap(), Begun::Fresh);
    }
}

/// Saying it twice, from whichever client, is no error and changes nothing.
pub async fn a_job_may_be_settled_twice(test: &str, fleet: &[&dyn Ledger]) {
    let settled = job(test, 3);
    for client in fleet {
        client.settled(settled).await.unwrap();
    }
    assert_eq!(fleet[0].begin(settled).await.unwrap(), Begun::Settled);
}

/// A question changes nothing: a job that was only begun is fresh for the next one who asks.
pub async fn a_question_settles_nothing(test: &str, fleet: &[&dyn Ledger]) {
    for client in fleet {
        assert_eq!(client.begin(job(test, 4)).await.unwrap(), Begun::Fresh);
    }
}
