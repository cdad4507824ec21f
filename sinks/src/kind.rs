//! Which kind of file a name asks for.

use std::path::Path;

use crate::error::SinkError;

/// A kind of file that results can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One result a line, as it is on the wire: `.jsonl`, `.ndjson`.
    Jsonl,
    /// One row a result, flattened: `.csv`.
    Csv,
    /// Typed columns: `.parquet`.
    Parquet,
    /// Tables of images, results and calls: `.sqlite`, `.sqlite3`, `.db`.
    Sqlite,
}

impl Kind {
    /// The kind that the end of `path` names, in either case.
    ///
    /// # Errors
    /// [`SinkError::Unknown`], which lists the ends that there are.
    pub fn of(path: &Path) -> Result<Self, SinkError> {
        let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default().to_ascii_lowercase();
        match end.as_str() {
            "jsonl" | "ndjson" => Ok(Self::Jsonl),
            "csv" => Ok(Self::Csv),
            "parquet" => Ok(Self::Parquet),
            "sqlite" | "sqlite3" | "db" => Ok(Self::Sqlite),
            _ => Err(SinkError::Unknown { path: path.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_name_is_its_kind_and_another_end_is_told_which_there_are() {
        let of = |name: &str| Kind::of(Path::new(name));
        assert_eq!(of("a/b.jsonl").unwrap(), Kind::Jsonl);
        assert_eq!(of("b.NDJSON").unwrap(), Kind::Jsonl);
        assert_eq!(of("b.csv").unwrap(), Kind::Csv);
        assert_eq!(of("b.c.parquet").unwrap(), Kind::Parquet);
        for name in ["b.sqlite", "b.sqlite3", "b.db"] {
            assert_eq!(of(name).unwrap(), Kind::Sqlite);
        }
        for name in ["b.xlsx", "b", "csv", ".csv"] {
            let said = of(name).unwrap_err().to_string();
            assert!(said.contains(name) && said.contains(".jsonl") && said.contains(".parquet"), "{said}");
        }
    }
}
