//! The budget: what a batch may spend, in calls or in money. Pure.
//!
//! To the limiter it is a stack of the batch's own with one limit of credits that never come back. A limit counts whole
//! units, and a budget of 12.50 is none: so a unit of money is a thousandth of the currency here, and a call weighs its
//! price in millionths of that.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    batch::BatchName,
    limit::{Limit, MICRO, Quota, Stack, Unit, Weight},
};

/// Thousandths of a currency: what budgets of money are counted in, so that the whole of one fits a limit.
const THOUSANDTHS: u32 = 1_000;

/// What a batch may spend. It is reserved call by call, before a call leaves, so it is never overspent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    /// So many calls that are charged.
    Calls(u32),
    /// So many thousandths of the provider's currency.
    Thousandths(u32),
}

/// A text that is no budget.
#[derive(Debug, thiserror::Error)]
pub enum BadBudget {
    /// Neither an amount nor a number of calls.
    #[error(
        "`{0}` is no budget: give an amount in the provider's currency, like 500 or 12.50, or a number of calls, like 2000calls"
    )]
    Unreadable(String),
    /// Nothing could be called.
    #[error("a budget of `{0}` allows nothing: give more than 0")]
    Nothing(String),
    /// Finer than budgets are counted.
    #[error("a budget of `{0}` is finer than a thousandth of the currency: give at most three decimals")]
    TooFine(String),
    /// More than is counted.
    #[error("a budget of `{0}` is too large: give at most {max}calls or {money}", max = u32::MAX, money = u32::MAX / THOUSANDTHS)]
    TooLarge(String),
}

impl Budget {
    /// The budget in words: `500 USD`, `0.5 USD`, `2000 calls`.
    pub fn shown(self, currency: &str) -> String {
        match self {
            Self::Calls(1) => "1 call".to_owned(),
            Self::Calls(calls) => format!("{calls} calls"),
            Self::Thousandths(_) => format!("{} {currency}", self.number()),
        }
    }

    /// The limit stack that all calls of `batch` pass, beside their provider's.
    pub fn stack(self, batch: &BatchName) -> Stack {
        let (calls, unit) = match self {
            Self::Calls(calls) => (calls, Unit::Call),
            Self::Thousandths(thousandths) => (thousandths, Unit::Money),
        };
        let limit = Limit { quota: Some(Quota::Total), unit, ..Limit::per_second("budget", calls) };
        Stack { name: format!("batch.{batch}"), limits: vec![limit] }
    }

    /// What a call of this price, in units of the currency, takes from that stack. A price that is no whole number of its
    /// millionths is rounded up: the sum of many is never below what they cost.
    pub fn weight(self, price: f64) -> Weight {
        let micros = price * f64::from(THOUSANDTHS) * MICRO as f64;
        // Not up because of what the product of two floating-point numbers is off by.
        let price_micros = (micros - micros.abs() * f64::EPSILON * 4.0).ceil() as u64;
        Weight { models: 1, bytes: 0, price_micros }
    }

    /// How often calls of these prices can be made, all of them each time.
    pub fn covers(self, prices: &[f64]) -> u64 {
        let (has, unit) = match self {
            Self::Calls(calls) => (calls, Unit::Call),
            Self::Thousandths(thousandths) => (thousandths, Unit::Money),
        };
        let takes: u64 = prices.iter().map(|price| self.weight(*price).micros(unit)).sum();
        (u64::from(has) * MICRO).checked_div(takes).unwrap_or(u64::MAX)
    }

    /// The number of it: calls, or units of the currency.
    fn number(self) -> f64 {
        match self {
            Self::Calls(calls) => calls.into(),
            Self::Thousandths(thousandths) => f64::from(thousandths) / f64::from(THOUSANDTHS),
        }
    }
}

impl FromStr for Budget {
    type Err = BadBudget;

    fn from_str(text: &str) -> Result<Self, BadBudget> {
        let said = || text.chars().take(80).collect::<String>();
        let (number, calls) = match text.strip_suffix("calls").or_else(|| text.strip_suffix("call")) {
            Some(number) => (number.trim_end(), true),
            None => (text, false),
        };
        let (negative, digits) = match number.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, number),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let dotted = digits.contains('.');
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || dotted && (calls || !is_number(fraction)) {
            return Err(BadBudget::Unreadable(said()));
        }
        let fraction = fraction.trim_end_matches('0');
        if negative || whole.bytes().chain(fraction.bytes()).all(|digit| digit == b'0') {
            return Err(BadBudget::Nothing(said()));
        }
        if fraction.len() > 3 {
            return Err(BadBudget::TooFine(said()));
        }
        let too_large = || BadBudget::TooLarge(said());
        if calls {
            return whole.parse().map(Self::Calls).map_err(|_| too_large());
        }
        let thousandths: u64 = format!("{whole}{fraction:0<3}").parse().map_err(|_| too_large())?;
        u32::try_from(thousandths).map(Self::Thousandths).map_err(|_| too_large())
    }
}

/// As [`from_str`](Budget::from_str) reads it.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if matches!(self, Self::Calls(_)) { "calls" } else { "" };
        write!(f, "{}{suffix}", self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn money_and_calls_are_read_and_shown() {
        let read = |text: &str| text.parse::<Budget>().unwrap();
        assert_eq!((read("500"), read("12.50")), (Budget::Thousandths(500_000), Budget::Thousandths(12_500)));
        assert_eq!((read("2000calls"), read("1 call")), (Budget::Calls(2_000), Budget::Calls(1)));
        assert_eq!(read("12.50").shown("USD"), "12.5 USD");
        assert_eq!(
            (read("2000calls").shown("USD"), read("1call").shown("EUR")),
            ("2000 calls".into(), "1 call".into())
        );
    }

    #[test]
    fn a_budget_covers_what_its_amount_divided_by_the_price_says() {
        let covers = |text: &str, prices: &[f64]| text.parse::<Budget>().unwrap().covers(prices);
        assert_eq!((covers("5", &[0.01]), covers("0.1", &[0.01]), covers("0.3", &[0.1])), (500, 10, 3));
        assert_eq!((covers("1", &[0.1, 0.2]), covers("7calls", &[0.1, 0.2])), (3, 3));
        assert_eq!((covers("0.009", &[0.01]), covers("1", &[1.0 / 3.0])), (0, 2), "a third is rounded up");
    }

    #[test]
    fn a_bad_budget_is_refused_with_what_to_give_instead() {
        let refused = |text: &str| text.parse::<Budget>().unwrap_err().to_string();
        for (text, word) in [
            ("0", "more than 0"),
            ("0.000", "more than 0"),
            ("-5", "more than 0"),
            ("0calls", "more than 0"),
            ("", "2000calls"),
            ("calls", "2000calls"),
            ("much", "2000calls"),
            ("500USD", "2000calls"),
            ("5.calls", "2000calls"),
            ("2.5calls", "2000calls"),
            ("1e3", "2000calls"),
            ("NaN", "2000calls"),
            (".5", "2000calls"),
            ("0.0001", "three decimals"),
            ("99999999", "at most"),
            ("99999999999calls", "at most"),
        ] {
            let message = refused(text);
            assert!(message.contains(word) && message.contains(&format!("`{text}`")), "{text}: {message}");
        }
    }

    proptest! {
        /// What is covered never costs more than there is, by more than a float can tell.
        #[test]
        fn what_is_covered_is_never_overspent(thousandths in 1u32..10_000_000, price in 0.000_01f64..50.0) {
            let calls = Budget::Thousandths(thousandths).covers(&[price]);
            let has = f64::from(thousandths) / 1_000.0;
            prop_assert!(calls as f64 * price <= has * (1.0 + 1e-12), "{calls} of {price} out of {has}");
            prop_assert!((calls + 1) as f64 * (price + 1e-9) > has, "{calls} of {price} out of {has}");
        }

        #[test]
        fn a_budget_is_read_back_as_it_is_written(amount in 1u32.., calls: bool) {
            let budget = if calls { Budget::Calls(amount) } else { Budget::Thousandths(amount) };
            prop_assert_eq!(budget.to_string().parse::<Budget>().unwrap(), budget);
        }
    }
}
