//! A tree of settings in which each value knows where it came from.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    check, parse,
    path::{Path, Step},
    problem::{Origin, Problem, Problems},
};

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Null,
    Scalar(Value),
    Array(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

/// Settings as they were written: a TOML document, with others under it and single values set over it.
#[derive(Clone, Debug)]
pub struct Document {
    /// Where the root is in the whole: `providers.restb` for a provider's table.
    at: Path,
    root: Node,
}

/// One value that is not a table, with its place and its origin.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The dotted field.
    pub field: String,
    /// `file:line`, an environment variable, or a flag.
    pub origin: String,
    /// The value; an array in whole.
    pub value: Value,
    /// The last key on the way to the value.
    pub key: String,
}

impl Document {
    /// A document without any value; problems of what is missing name `name`.
    pub fn empty(name: &str) -> Self {
        let origin = Origin { name: name.into(), line: None };
        Self { at: Path::default(), root: Node { origin, kind: Kind::Table(BTreeMap::new()) } }
    }

    /// The document of one value; `name` is its origin.
    pub fn of(name: &str, value: Value) -> Self {
        let origin = Origin { name: name.into(), line: None };
        Self { at: Path::default(), root: Node::of(value, &origin) }
    }

    /// Reads TOML; `name` is the file's name in problems.
    ///
    /// # Errors
    /// Every syntax error, with its line.
    pub fn parse(name: &str, text: &str) -> Result<Self, Problems> {
        Ok(Self { at: Path::default(), root: parse::parse(name, text)? })
    }

    /// This document over `base`: tables merge, anything else of `base` is replaced. Each value keeps its origin.
    #[must_use]
    pub fn merged_over(self, base: Self) -> Self {
        Self { at: self.at, root: self.root.over(base.root) }
    }

    /// Sets one value from `origin`, an environment variable or a flag. Missing tables are made; an index must
    /// be that of an element.
    ///
    /// # Errors
    /// When the path can't be read, or leads through something that is not a table.
    pub fn set(&mut self, path: &str, value: Value, origin: &str) -> Result<(), Problem> {
        let origin = Origin { name: origin.into(), line: None };
        let refused = |why: &str| Problem::new(origin.clone(), path.to_owned(), why);
        let steps = Path::parse(path).filter(|path| !path.0.is_empty()).ok_or_else(|| {
            refused("not a field: write it like `worker.concurrency` or `providers.restb.limits[0].calls`")
        })?;
        let node = steps.0.iter().try_fold(&mut self.root, |node, step| node.enter(step, &origin));
        let node = node.ok_or_else(|| match path.split_once('[') {
            Some((list, _)) => {
                refused(&format!("`{list}` has no such element here: set the list as a whole, {list}=[...]"))
            }
            None => refused("there is no such place: a part of it is not a table"),
        })?;
        *node = Node::of(value, &origin);
        Ok(())
    }

    /// The table or value at `path`, as a document of its own whose problems keep their whole path.
    pub fn subtable(&self, path: &str) -> Option<Self> {
        let path = Path::parse(path)?;
        let root = path.0.iter().try_fold(&self.root, |node, step| node.child(step))?.clone();
        Some(Self { at: self.at.join(&path), root })
    }

    /// The keys of the root, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let table = match &self.root.kind {
            Kind::Table(table) => Some(table),
            _ => None,
        };
        table.into_iter().flat_map(BTreeMap::keys).map(String::as_str)
    }

    /// Whether there is a value at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.subtable(path).is_some()
    }

    /// The value at `path`.
    pub fn get(&self, path: &str) -> Option<Value> {
        Some(self.subtable(path)?.to_value())
    }

    /// Everything, as JSON.
    pub fn to_value(&self) -> Value {
        self.root.to_value()
    }

    /// Where the value at `path` came from, or else the nearest table around it.
    pub fn origin(&self, path: &str) -> String {
        self.nearest(&Path::parse(path).unwrap_or_default()).to_string()
    }

    /// Every value that is not a table, in the order of its fields.
    pub fn leaves(&self) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        self.root.leaves(&self.at, &mut leaves);
        leaves
    }

    /// A problem with the value at `path`, at the line that it came from.
    pub fn problem(&self, path: &str, message: impl Into<String>) -> Problem {
        self.problem_at(&Path::parse(path).unwrap_or_default(), message)
    }

    /// Reads the document into `T`.
    ///
    /// # Errors
    /// Every way in which it does not fit `T`'s schema; where it fits, what `T`'s own `Deserialize` refuses.
    pub fn read<T: DeserializeOwned + JsonSchema>(&self) -> Result<T, Problems> {
        check::read(self)
    }

    pub(super) fn problem_at(&self, path: &Path, message: impl Into<String>) -> Problem {
        Problem::new(self.nearest(path), self.at.join(path).to_string(), message)
    }

    fn nearest(&self, path: &Path) -> Origin {
        let mut node = &self.root;
        for step in &path.0 {
            match node.child(step) {
                Some(child) => node = child,
                None => break,
            }
        }
        node.origin.clone()
    }
}

impl Node {
    fn of(value: Value, origin: &Origin) -> Self {
        let node = |value| Self::of(value, origin);
        let kind = match value {
            Value::Null => Kind::Null,
            Value::Array(values) => Kind::Array(values.into_iter().map(node).collect()),
            Value::Object(map) => {
                Kind::Table(map.into_iter().map(|(key, value)| (key, node(value))).collect())
            }
            scalar => Kind::Scalar(scalar),
        };
        Self { origin: origin.clone(), kind }
    }

    fn over(self, base: Self) -> Self {
        let kind = match (self.kind, base.kind) {
            (Kind::Table(over), Kind::Table(mut merged)) => {
                for (key, node) in over {
                    let node = match merged.remove(&key) {
                        Some(below) => node.over(below),
                        None => node,
                    };
                    merged.insert(key, node);
                }
                Kind::Table(merged)
            }
            (kind, _) => kind,
        };
        Self { origin: self.origin, kind }
    }

    fn child(&self, step: &Step) -> Option<&Self> {
        match (&self.kind, step) {
            (Kind::Table(table), Step::Key(key)) => table.get(key),
            (Kind::Array(array), Step::Index(index)) => array.get(*index),
            _ => None,
        }
    }

    fn enter(&mut self, step: &Step, origin: &Origin) -> Option<&mut Self> {
        match (&mut self.kind, step) {
            (Kind::Table(table), Step::Key(key)) => Some(
                table
                    .entry(key.clone())
                    .or_insert_with(|| Self { origin: origin.clone(), kind: Kind::Table(BTreeMap::new()) }),
            ),
            (Kind::Array(array), Step::Index(index)) => array.get_mut(*index),
            _ => None,
        }
    }

    fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Null => Value::Null,
            Kind::Scalar(value) => value.clone(),
            Kind::Array(array) => array.iter().map(Self::to_value).collect(),
            Kind::Table(table) => table.iter().map(|(key, node)| (key.clone(), node.to_value())).collect(),
        }
    }

    fn leaves(&self, path: &Path, found: &mut Vec<Leaf>) {
        match &self.kind {
            Kind::Table(table) => table.iter().for_each(|(key, node)| node.leaves(&path.key(key), found)),
            // An array of tables is no leaf: a secret may stand in one.
            Kind::Array(array) if array.iter().any(|node| matches!(node.kind, Kind::Table(_))) => {
                for (index, node) in array.iter().enumerate() {
                    node.leaves(&path.then(Step::Index(index)), found);
                }
            }
            _ => found.push(Leaf {
                field: path.to_string(),
                origin: self.origin.to_string(),
                value: self.to_value(),
                key: path.last_key().unwrap_or_default().to_owned(),
            }),
        }
    }
}
