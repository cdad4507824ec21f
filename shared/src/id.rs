//! Deterministic ids: the same work has the same id, whoever computes it and however often.
//!
//! An id is the first 16 bytes of a SHA-256 over length-prefixed parts, in lower-case hex (32 characters). The
//! length prefix keeps `("ab", "c")` and `("a", "bc")` apart. Any language can compute one:
//! `sha256(be64(len(p0)) p0 be64(len(p1)) p1 ...)[..16]`.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A 128-bit content hash that names a job, a result or an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[0-9a-f]{32}$"))]
pub struct Id(u128);

/// A text that is not an id.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an id: give 32 lower-case hexadecimal digits")]
pub struct NotAnId(String);

impl Id {
    /// The id of `parts`, which start with the kind of thing that is named (`"pixfleet.job.v1"`).
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let digest = hasher.finalize();
        let mut head = [0; 16];
        head.copy_from_slice(&digest[..16]);
        Self(u128::from_be_bytes(head))
    }

    /// The id as 16 bytes, big-endian: its compact form in stores.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The id whose compact form is `bytes`.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Id({self})")
    }
}

impl FromStr for Id {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match u128::from_str_radix(text, 16) {
            Ok(value) if hex => Ok(Self(value)),
            _ => Err(NotAnId(text.chars().take(64).collect())),
        }
    }
}

impl TryFrom<String> for Id {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, NotAnId> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn moving_a_byte_from_one_part_to_the_next_changes_the_id() {
        assert_ne!(Id::of(&[b"ab", b"c"]), Id::of(&[b"a", b"bc"]));
    }

    #[test]
    fn an_id_stays_the_same_from_release_to_release() {
        assert_eq!(Id::of(&[b"pixfleet.job.v1", b"x"]).to_string(), "5ed2c672d24f315e5a51dc3fc797a550");
    }

    proptest! {
        #[test]
        fn an_id_is_read_back_from_its_text_and_its_bytes(value: u128) {
            let id = Id(value);
            prop_assert_eq!(id.to_string().parse::<Id>().unwrap(), id);
            prop_assert_eq!(Id::from_bytes(id.to_bytes()), id);
        }

        #[test]
        fn no_other_text_is_taken_for_an_id(text in "[0-9a-fA-F+ ]{0,40}") {
            if let Ok(id) = text.parse::<Id>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
