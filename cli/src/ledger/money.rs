//! Money in millionths, as text and as sums. Pure.

use std::collections::BTreeMap;

/// An amount with at least two places, and no digit lost: `0.03`, `1.20`, `0.0125`.
pub(super) fn text(micros: u64) -> String {
    let digits = format!("{:06}", micros % 1_000_000);
    let places = digits.trim_end_matches('0').len().max(2);
    format!("{}.{}", micros / 1_000_000, &digits[..places])
}

/// The same as a number, for JSON.
pub(super) fn number(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// The part of an amount that belongs to number `at` of `parts`: the parts make up the whole.
pub(super) fn part(micros: u64, at: usize, parts: usize) -> u64 {
    let parts = parts.max(1) as u64;
    micros / parts + u64::from((at as u64) < micros % parts)
}

/// Amounts by their currency.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums(BTreeMap<String, u64>);

impl Sums {
    /// Adds an amount.
    pub(super) fn add(&mut self, micros: u64, currency: &str) {
        let sum = self.0.entry(currency.to_owned()).or_default();
        *sum = sum.saturating_add(micros);
    }
}

impl std::fmt::Display for Sums {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let amounts: Vec<String> = self
            .0
            .iter()
            .map(|(currency, micros)| format!("{} {currency}", text(*micros)).trim_end().to_owned())
            .collect();
        f.write_str(if amounts.is_empty() { "0.00".to_owned() } else { amounts.join(" + ") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_loses_no_digit_and_has_two_places() {
        let shown = [0, 30_000, 1_200_000, 12_500, 1, 12_345_678_901].map(text);
        assert_eq!(shown, ["0.00", "0.03", "1.20", "0.0125", "0.000001", "12345.678901"]);
    }

    #[test]
    fn the_parts_of_an_amount_make_it_up() {
        let parts: Vec<u64> = (0..3).map(|at| part(100, at, 3)).collect();
        assert_eq!(parts, [34, 33, 33]);
    }

    #[test]
    fn different_currencies_are_never_added() {
        let mut sums = Sums::default();
        assert_eq!(sums.to_string(), "0.00");
        sums.add(30_000, "USD");
        sums.add(20_000, "EUR");
        sums.add(10_000, "USD");
        assert_eq!(sums.to_string(), "0.02 EUR + 0.04 USD");
    }
}
