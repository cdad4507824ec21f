//! W3C trace context: one `traceparent` follows an image from the manifest to its results.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A `traceparent` header of version `00`, as <https://www.w3.org/TR/trace-context/> defines it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"))]
pub struct TraceParent {
    trace: u128,
    span: u64,
    flags: u8,
}

/// A text that is not a `traceparent`.
#[derive(Debug, thiserror::Error)]
#[error("not a W3C traceparent: expected 00-<32 hex>-<16 hex>-<2 hex>, neither id all zero")]
pub struct NotATraceParent;

impl TraceParent {
    /// A new, sampled trace.
    pub fn random() -> Self {
        Self { trace: rand::random::<u128>().max(1), span: rand::random::<u64>().max(1), flags: 1 }
    }

    /// The same trace with a new span: what a role passes on.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span: rand::random::<u64>().max(1), ..self }
    }

    /// The trace's id, 32 hex digits.
    pub fn trace_id(self) -> String {
        format!("{:032x}", self.trace)
    }
}

impl FromStr for TraceParent {
    type Err = NotATraceParent;

    fn from_str(text: &str) -> Result<Self, NotATraceParent> {
        let lower_hex = |part: &str, len| {
            part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let parts: Vec<&str> = text.split('-').collect();
        let [version, trace, span, flags] = parts[..] else {
            return Err(NotATraceParent);
        };
        if version != "00" || !lower_hex(trace, 32) || !lower_hex(span, 16) || !lower_hex(flags, 2) {
            return Err(NotATraceParent);
        }
        let parsed = Self {
            trace: u128::from_str_radix(trace, 16).map_err(|_| NotATraceParent)?,
            span: u64::from_str_radix(span, 16).map_err(|_| NotATraceParent)?,
            flags: u8::from_str_radix(flags, 16).map_err(|_| NotATraceParent)?,
        };
        if parsed.trace == 0 || parsed.span == 0 { Err(NotATraceParent) } else { Ok(parsed) }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for TraceParent {
    type Error = NotATraceParent;

    fn try_from(text: String) -> Result<Self, NotATraceParent> {
        text.parse()
    }
}

impl From<TraceParent> for String {
    fn from(trace: TraceParent) -> Self {
        trace.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_back_and_a_child_keeps_its_trace() {
        let trace = TraceParent::random();
        assert_eq!(trace.to_string().parse::<TraceParent>().unwrap(), trace);
        assert_eq!(trace.child().trace_id(), trace.trace_id());
        assert_ne!(trace.child(), trace);
    }

    #[test]
    fn hostile_traceparents_are_refused() {
        let zero = format!("00-{}-{}-01", "0".repeat(32), "1".repeat(16));
        for text in ["", "00", "01-a-b-c", &zero, "00-é-b-c", &"0".repeat(9000)] {
            assert!(text.parse::<TraceParent>().is_err(), "{text}");
        }
    }
}
