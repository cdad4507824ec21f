//! Results as files, each result once: JSON lines, CSV, Parquet and SQLite.
//!
//! A [`Sink`] is one file; its [`Kind`] is the end of its name. It takes results with `write`, and `commit` says how far
//! they are on the disk: the [`Mark`] that a caller keeps beside its own position among the results. After a crash the
//! caller gives the mark back ([`Begin::After`]) and goes on from that position: text files are cut to the mark, a
//! database replaces what it has by id. A Parquet file is whole only with its footer, so it can't be gone on with: it
//! is made again, beside the old one, from the first result on ([`Sink::replays`]).
//!
//! `text` is what JSON lines and CSV have in common on the disk; [`row`] and [`cell`] say what a result looks like in
//! a table of text; `parquet` and `sqlite` hold the typed kinds.

pub mod cell;
mod error;
mod kind;
mod parquet;
pub mod row;
#[cfg(test)]
mod sample;
mod sink;
mod sqlite;
mod text;

pub use error::SinkError;
pub use kind::Kind;
pub use sink::{Begin, Mark, Options, Sink};
