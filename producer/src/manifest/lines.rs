//! Lines of bounded length: a line of a gigabyte takes no more memory than the longest row.

use std::io::{self, BufRead};

use super::MAX_ROW_BYTES;

/// Reads one line after the other into the caller's buffer.
pub(super) struct Lines<R> {
    input: R,
    /// The line read last, from 1.
    number: u64,
}

/// How a line was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// All of it.
    Whole(u64),
    /// Its beginning: it is longer than a row may be.
    TooLong(u64),
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, number: 0 }
    }

    /// The input, from behind the lines that were read.
    pub(super) fn into_inner(self) -> R {
        self.input
    }

    /// The next line without its end; `None` at the end of the input.
    pub(super) fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Option<Line>> {
        line.clear();
        let (mut any, mut too_long) = (false, false);
        loop {
            let available = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                available => available?,
            };
            any |= !available.is_empty();
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            let kept = part.len().min(MAX_ROW_BYTES - line.len());
            line.extend_from_slice(&part[..kept]);
            too_long |= kept < part.len();
            let (used, done) =
                (part.len() + usize::from(end.is_some()), end.is_some() || available.is_empty());
            self.input.consume(used);
            if done {
                break;
            }
        }
        self.number += u64::from(any);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        let number = self.number;
        Ok(any.then_some(if too_long { Line::TooLong(number) } else { Line::Whole(number) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Read};

    #[test]
    fn lines_end_in_either_way_and_the_last_one_needs_no_end() {
        let mut lines = Lines::new(BufReader::with_capacity(2, &b"one\r\n\nthree"[..]));
        let mut line = Vec::new();
        let mut seen = Vec::new();
        while let Some(Line::Whole(number)) = lines.next(&mut line).unwrap() {
            seen.push((number, String::from_utf8(line.clone()).unwrap()));
        }
        assert_eq!(seen, [(1, "one".into()), (2, String::new()), (3, "three".into())]);
    }

    #[test]
    fn a_line_of_any_length_is_bounded_and_the_next_one_is_read() {
        let endless = io::repeat(b'x').take(1 << 28).chain(&b"\nnext"[..]);
        let mut lines = Lines::new(BufReader::with_capacity(1 << 16, endless));
        let mut line = Vec::new();
        assert_eq!(lines.next(&mut line).unwrap(), Some(Line::TooLong(1)));
        assert!(line.len() == MAX_ROW_BYTES && line.capacity() <= 2 * MAX_ROW_BYTES);
        assert_eq!(lines.next(&mut line).unwrap(), Some(Line::Whole(2)));
        assert_eq!((&line[..], lines.next(&mut Vec::new()).unwrap()), (&b"next"[..], None));
    }
}
