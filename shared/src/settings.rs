//! Reads a TOML document into a type, and reports everything that is wrong with it at once.
//!
//! A [`Document`] knows of each value where it came from: a file and its line, an environment variable, a flag.
//! It is laid over another one (a user's table over a preset), gets single values from elsewhere, and is then
//! read into a type: checked against the type's JSON Schema, which finds every problem, and only then by serde.
//!
//! ```
//! use pixfleet_shared::settings::Document;
//! use schemars::JsonSchema;
//! use serde::Deserialize;
//!
//! #[derive(Debug, Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Worker {
//!     concurrency: u16,
//!     drain_ms: u64,
//! }
//!
//! let text = "concurency = 3\ndrain_ms = 'soon'";
//! let problems = Document::parse("worker.toml", text).unwrap().read::<Worker>().unwrap_err();
//! assert_eq!(
//!     problems.to_string(),
//!     "worker.toml: concurrency: missing: give a whole number from 0 to 65535\n\
//!      worker.toml:1: concurency: unknown key: did you mean `concurrency`?\n\
//!      worker.toml:2: drain_ms: found the text `soon`: give a whole number, 0 or more"
//! );
//! ```

mod check;
mod describe;
mod document;
mod parse;
mod path;
mod problem;

pub use check::schema;
pub use describe::{nearest, wanted};
pub use document::{Document, Leaf};
pub use problem::{Problem, Problems};

/// Whether a key of this name holds a secret: its value is never shown, and a settings file can't hold it.
///
/// `*_env` and `*_file` only say where a secret is.
pub fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["key", "secret", "password", "token"]
        .iter()
        .any(|word| key == *word || key.ends_with(&format!("_{word}")) || key.ends_with(&format!("-{word}")))
}

#[cfg(test)]
mod tests;
