//! Mutations of a corpus, from a seed: the same seed gives the same inputs.

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// What parsers trip over.
const TOKENS: [&[u8]; 24] = [
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b"18446744073709551615",
    b"\n",
    b"\r\n",
    b",",
    b";",
    b"=",
    b":",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"http://",
    b"x-death",
    b"4294967295",
];
/// The longest input.
const MOST_BYTES: usize = 64 * 1024;

/// Inputs without end, each made of one of a corpus.
pub struct Mutations {
    chance: Xoshiro256PlusPlus,
    corpus: Vec<Vec<u8>>,
}

impl Mutations {
    /// Of a corpus that is not empty.
    pub fn new(seed: u64, corpus: Vec<Vec<u8>>) -> Self {
        assert!(!corpus.is_empty(), "a corpus");
        Self { chance: Xoshiro256PlusPlus::seed_from_u64(seed), corpus }
    }

    fn once(&mut self, input: &mut Vec<u8>) {
        let at = self.chance.random_range(0..=input.len());
        match self.chance.random_range(0..6) {
            0 if at < input.len() => input[at] ^= 1 << self.chance.random_range(0..8),
            1 if at < input.len() => input[at] = self.chance.random(),
            2 => {
                let end = (at + self.chance.random_range(0..32)).min(input.len());
                input.drain(at..end);
            }
            3 => {
                let end = (at + self.chance.random_range(0..64)).min(input.len());
                let piece = input[at..end].to_vec();
                let times = self.chance.random_range(1..20);
                input.splice(at..at, piece.repeat(times));
            }
            4 => {
                let other = &self.corpus[self.chance.random_range(0..self.corpus.len())];
                let from = self.chance.random_range(0..=other.len());
                let piece = other[from..].to_vec();
                input.splice(at.., piece);
            }
            _ => {
                let token = TOKENS[self.chance.random_range(0..TOKENS.len())];
                input.splice(at..at, token.iter().copied());
            }
        }
    }
}

impl Iterator for Mutations {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut input = self.corpus[self.chance.random_range(0..self.corpus.len())].clone();
        for _ in 0..self.chance.random_range(1..8) {
            self.once(&mut input);
        }
        input.truncate(MOST_BYTES);
        Some(input)
    }
}
