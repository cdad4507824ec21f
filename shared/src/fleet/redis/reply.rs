//! What `reserve.lua` answers, read.

use redis::{FromRedisValue, ParsingError, Value, from_redis_value};

use crate::{
    gcra::{Decision, Keeper},
    quota::Count,
    terms::Terms,
};

/// An answer of the script.
pub(super) enum Reply {
    /// Other terms are in force than the asker knows, or, where the state was lost, none any more.
    OtherTerms(Terms),
    /// The asker's clock is in another window of a quota.
    OtherWindow {
        /// The server's clock.
        now_us: u64,
    },
    /// A decision.
    Decided(Box<Decided>),
}

/// A decision, on the server's clock.
pub(super) struct Decided {
    pub(super) now_us: u64,
    pub(super) lost: bool,
    pub(super) held_until_us: u64,
    pub(super) decision: Decision,
    pub(super) measured_us: u64,
    /// The quotas' counts, in their order.
    pub(super) counts: Vec<Count>,
}

impl FromRedisValue for Reply {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let Value::Array(items) = value else {
            return Err(format!("the limiter's script answered {value:?}").into());
        };
        let mut items = items.into_iter();
        let mut next = || {
            items.next().ok_or_else(|| ParsingError::from("the limiter's script said too little".to_owned()))
        };
        let mut number = || from_redis_value::<i64>(next()?).map(|number| u64::try_from(number).unwrap_or(0));
        match number()? {
            0 => {}
            1 => {
                let rev = number()?;
                let text: String = from_redis_value(next()?)?;
                // Of a later release, perhaps: what can't be read of it does not hold here, and its revision does.
                let terms: Terms = serde_json::from_str(&text).unwrap_or_default();
                return Ok(Self::OtherTerms(Terms { rev, ..terms }));
            }
            _ => return Ok(Self::OtherWindow { now_us: number()? }),
        }
        let (now_us, lost, held_until_us, come_back) = (number()?, number()? == 1, number()?, number()?);
        let why: i64 = from_redis_value(next()?)?;
        let mut number = || from_redis_value::<i64>(next()?).map(|number| u64::try_from(number).unwrap_or(0));
        let (probe, measured_us, _granted) = (number()? == 1, number()?, number()?);
        let counts: Vec<u64> = from_redis_value(next()?)?;
        let slots: Vec<u64> = from_redis_value(next()?)?;
        let why = match why {
            -2 => Keeper::Probe,
            why => usize::try_from(why - 1).map_or(Keeper::HoldOff, Keeper::Rule),
        };
        let decision = if come_back > 0 {
            Decision::ComeBack { at: come_back, why }
        } else {
            Decision::Slots { at: slots, probe }
        };
        let count = |of: &[u64]| Count { start_us: of[0], end_us: of[1], used: of[2], next: of[3] };
        let counts = counts.as_chunks::<4>().0.iter().map(|of| count(of)).collect();
        Ok(Self::Decided(Box::new(Decided { now_us, lost, held_until_us, decision, measured_us, counts })))
    }
}
