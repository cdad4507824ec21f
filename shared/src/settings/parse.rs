//! TOML text becomes a tree in which each value knows its line.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeArray, DeInteger, DeTable, DeValue},
};

use super::{
    document::{Kind, Node},
    path::{Path, Step},
    problem::{Origin, Problem, Problems},
};

/// The largest document that is read, in bytes.
const MAX_BYTES: usize = 4 << 20;

/// The tree of `text`, or all its syntax errors.
pub(super) fn parse(name: &str, text: &str) -> Result<Node, Problems> {
    let mut reader = Reader { name: name.into(), lines: line_starts(text), problems: Problems::default() };
    if text.len() > MAX_BYTES {
        return Err(Problem::of(
            name,
            format!("{} bytes: a settings file has at most {MAX_BYTES}", text.len()),
        )
        .into());
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        // Only the message: the library's whole text quotes the line, and a secret may stand in it.
        let origin = reader.origin(error.span().map_or(0, |span| span.start));
        reader.problems.push(Problem::new(origin, String::new(), error.message()));
    }
    if !reader.problems.is_empty() {
        return Err(reader.problems);
    }
    let origin = Origin { name: reader.name.clone(), line: None };
    let kind = reader.table(table.into_inner(), &Path::default());
    reader.problems.or(Node { origin, kind })
}

struct Reader {
    name: Arc<str>,
    lines: Vec<usize>,
    problems: Problems,
}

fn line_starts(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect()
}

impl Reader {
    fn origin(&self, offset: usize) -> Origin {
        let line = self.lines.partition_point(|start| *start <= offset);
        Origin { name: self.name.clone(), line: Some(line) }
    }

    fn table(&mut self, table: DeTable<'_>, path: &Path) -> Kind {
        let mut entries = BTreeMap::new();
        for (key, value) in table {
            let origin = self.origin(key.span().start);
            let kind = self.value(value, &path.key(key.get_ref()), &origin);
            entries.insert(key.into_inner().into_owned(), Node { origin, kind });
        }
        Kind::Table(entries)
    }

    fn array(&mut self, elements: DeArray<'_>, path: &Path) -> Kind {
        let mut nodes = Vec::new();
        for (index, element) in elements.into_iter().enumerate() {
            let origin = self.origin(element.span().start);
            let kind = self.value(element, &path.then(Step::Index(index)), &origin);
            nodes.push(Node { origin, kind });
        }
        Kind::Array(nodes)
    }

    fn value(&mut self, value: Spanned<DeValue<'_>>, path: &Path, origin: &Origin) -> Kind {
        match value.into_inner() {
            DeValue::String(text) => Kind::Scalar(Value::String(text.into_owned())),
            DeValue::Boolean(on) => Kind::Scalar(Value::Bool(on)),
            DeValue::Datetime(moment) => Kind::Scalar(Value::String(moment.to_string())),
            DeValue::Integer(integer) => match whole(&integer) {
                Some(number) => Kind::Scalar(number.into()),
                None => self.refuse(path, origin, "the number is out of range: give -2^63 to 2^63 - 1"),
            },
            DeValue::Float(float) => {
                match float.as_str().parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
                    Some(number) => Kind::Scalar(Value::Number(number)),
                    None => self.refuse(path, origin, "not a finite number: give one with digits"),
                }
            }
            DeValue::Array(array) => self.array(array, path),
            DeValue::Table(table) => self.table(table, path),
        }
    }

    fn refuse(&mut self, path: &Path, origin: &Origin, message: &str) -> Kind {
        self.problems.push(Problem::new(origin.clone(), path.to_string(), message));
        Kind::Null
    }
}

fn whole(integer: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}
