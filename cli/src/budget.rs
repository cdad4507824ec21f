//! What a batch may spend, as `enqueue` and `run` are told it.

use pixfleet_producer::plan::Plan;
use pixfleet_shared::{
    budget::Budget,
    settings::{Problem, Problems},
};
use pixfleet_worker::provider::Provider;
use serde::Serialize;

/// The flag.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Spending {
    /// What the batch may spend: an amount in the provider's currency, or a number of charged calls. It is never
    /// overspent; the rest of the images become dead letters [default: no bound]
    #[arg(long, value_name = "AMOUNT|NUMBERcalls", allow_hyphen_values = true)]
    pub(crate) budget: Option<Budget>,
}

impl Spending {
    /// The budget, once it is one for this provider.
    ///
    /// # Errors
    /// Where it is money and a call costs none, or not enough for any call of an image.
    pub(crate) fn checked(self, provider: &Provider, plan: &Plan) -> Result<Option<Budget>, Problems> {
        let Some(budget) = self.budget else { return Ok(None) };
        let (name, currency) = (provider.name(), &provider.tariff().currency);
        let refused = |message: String| Err(Problem::of("--budget", message).into());
        let prices = plan.prices();
        if matches!(budget, Budget::Thousandths(_)) && provider.tariff().price == 0.0 {
            return refused(format!(
                "a call of `{name}` costs nothing, so a budget of {} bounds nothing: set the price \
                 (cost = {{ price = ... }}), or give a number of calls, like 2000calls",
                budget.shown(currency)
            ));
        }
        if prices.iter().all(|price| budget.covers(&[*price]) == 0) {
            let least = prices.into_iter().fold(f64::INFINITY, f64::min);
            return refused(format!(
                "a budget of {} pays for no call of `{name}`, which costs {least} {currency}: give at least that",
                budget.shown(currency)
            ));
        }
        Ok(Some(budget))
    }
}

/// How far a budget goes: of a dry run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Coverage {
    /// The budget in words.
    pub(crate) budget: String,
    /// Images of the batch, those among them that earlier runs put in.
    pub(crate) images: u64,
    /// Images that it pays for, when no call has to be repeated and paid for again.
    pub(crate) covers: u64,
}

impl Coverage {
    /// How far `budget` goes in a batch of `images` images.
    pub(crate) fn of(budget: Budget, plan: &Plan, currency: &str, images: u64) -> Self {
        let covers = budget.covers(&plan.prices()).min(images);
        Self { budget: budget.shown(currency), images, covers }
    }

    /// In words, one line.
    pub(crate) fn text(&self) -> String {
        let Self { budget, images, covers } = self;
        match images - covers {
            0 => format!("the budget of {budget} covers all {images} images"),
            1 => {
                format!("the budget of {budget} covers {covers} of {images} images: 1 would be a dead letter")
            }
            more => {
                format!(
                    "the budget of {budget} covers {covers} of {images} images: {more} would be dead letters"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pixfleet_producer::plan::Tariff;

    #[test]
    fn a_budget_covers_whole_images_with_all_of_their_calls() {
        let models = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let tariff = Tariff { per_call: 0.0, per_model: 0.01 };
        let plan = Plan::new("p", &models, 2, tariff).unwrap();
        let text =
            |budget: &str, images: u64| Coverage::of(budget.parse().unwrap(), &plan, "USD", images).text();
        assert_eq!(text("0.3", 12), "the budget of 0.3 USD covers 10 of 12 images: 2 would be dead letters");
        assert_eq!(text("9calls", 5), "the budget of 9 calls covers 4 of 5 images: 1 would be a dead letter");
        assert_eq!(text("500", 12), "the budget of 500 USD covers all 12 images");
    }
}
