//! One look through the dead letters.

use std::{collections::BTreeMap, ops::ControlFlow};

use pixfleet_shared::queue::{DeadLetter, Queue, Reason};

use super::filter::Filter;
use crate::words::count;

/// How many letters there are of each reason.
pub(super) type Reasons = BTreeMap<Reason, u64>;

/// Hands each letter that passes `filter` to `see`, until it has seen enough. Letters that it keeps no hold of stay where
/// they are.
///
/// # Errors
/// When the queue is away, and whatever `see` could not do.
pub(super) async fn each(
    queue: &dyn Queue,
    filter: &Filter,
    mut see: impl AsyncFnMut(DeadLetter) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<()> {
    let mut letters = queue.dead_letters().await?;
    let seen = async {
        while let Some(letter) = letters.next().await? {
            if filter.passes(&letter) && see(letter).await?.is_break() {
                break;
            }
        }
        Ok(())
    }
    .await;
    letters.close().await;
    seen
}

/// The numbers in words: `3 dead letters: 2 rejected, 1 poison`.
pub(super) fn in_words(reasons: &Reasons) -> String {
    let all: u64 = reasons.values().sum();
    let noun = if all == 1 { "dead letter" } else { "dead letters" };
    let each: Vec<String> =
        reasons.iter().map(|(reason, n)| format!("{} {}", count(*n), reason.as_str())).collect();
    match each.is_empty() {
        true => "no dead letters".to_owned(),
        false => format!("{} {noun}: {}", count(all), each.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_said_by_reason() {
        let reasons = Reasons::from([(Reason::Rejected, 1200), (Reason::Poison, 1)]);
        assert_eq!(in_words(&reasons), "1,201 dead letters: 1,200 rejected, 1 poison");
        assert_eq!(in_words(&Reasons::new()), "no dead letters");
    }
}
