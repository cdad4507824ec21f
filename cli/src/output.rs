//! The one way to stdout. Stdout is for data; everything else goes to stderr.
//!
//! Unlike `println!` it returns the error of a closed pipe, which `main` takes for the end (`pixfleet … | head`).

use std::{
    fmt::Display,
    io::{self, Write},
};

use serde::Serialize;

/// Writes one text and a line end.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Writes a text as it is.
pub(crate) fn text(text: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    write!(stdout, "{text}")?;
    stdout.flush()
}

/// Writes one value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    io::stdout().lock().write_all(&line)
}
