//! What is wrong with settings, and where.

use std::{error::Error, fmt, sync::Arc};

use serde::{Serialize, Serializer};

/// Where a value came from: a document's line, an environment variable, a flag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    pub(super) name: Arc<str>,
    pub(super) line: Option<usize>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// One thing that is wrong: where, which field, what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// `file:line`, an environment variable, or a flag.
    #[serde(serialize_with = "as_text")]
    origin: Origin,
    /// The dotted field; empty when the whole document is meant.
    field: String,
    /// What is wrong and what to do about it.
    message: String,
}

fn as_text<S: Serializer>(origin: &Origin, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(origin)
}

impl Problem {
    pub(super) fn new(origin: Origin, field: String, message: impl Into<String>) -> Self {
        Self { origin, field, message: message.into() }
    }

    /// A problem of something that is in no document: an environment variable, a flag.
    pub fn of(origin: &str, message: impl Into<String>) -> Self {
        Self::new(Origin { name: origin.into(), line: None }, String::new(), message)
    }

    /// The dotted field; empty when the whole document is meant.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// The line of the document, from 1.
    pub fn line(&self) -> Option<usize> {
        self.origin.line
    }

    /// What is wrong and what to do about it.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong, sorted by place. Shown as one line a problem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds a problem; the same one twice counts once.
    pub fn push(&mut self, problem: Problem) {
        if let Err(place) = self.0.binary_search(&problem) {
            self.0.insert(place, problem);
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The problems in the order in which they are shown.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.0.iter()
    }

    /// `value`, unless something is wrong.
    ///
    /// # Errors
    /// The problems themselves.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl Extend<Problem> for Problems {
    fn extend<I: IntoIterator<Item = Problem>>(&mut self, problems: I) {
        problems.into_iter().for_each(|problem| self.push(problem));
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, problem) in self.0.iter().enumerate() {
            let line_end = if place == 0 { "" } else { "\n" };
            write!(f, "{line_end}{problem}")?;
        }
        Ok(())
    }
}

impl Error for Problems {}
