//! Reads pictures that are files, below the configured roots and nowhere else.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::io::AsyncReadExt;

use super::{BadConfig, ImageError, too_large};

/// The folders below which pictures may lie, without links and dots.
#[derive(Debug)]
pub(super) struct Roots(Vec<PathBuf>);

impl Roots {
    pub(super) fn new(roots: &[PathBuf]) -> Result<Self, BadConfig> {
        let real = |root: &PathBuf| {
            root.canonicalize().map_err(|error| BadConfig {
                field: "roots",
                why: format!("`{}`: {error}", root.display()),
            })
        };
        Ok(Self(roots.iter().map(real).collect::<Result<_, _>>()?))
    }

    /// The bytes of the file at `path`; a relative one is looked for below each root.
    pub(super) async fn read(&self, path: &str, max_bytes: usize) -> Result<Bytes, ImageError> {
        let file = self.find(path).await?;
        let read = async {
            let mut bytes = Vec::new();
            let file = tokio::fs::File::open(&file).await?;
            file.take(max_bytes as u64 + 1).read_to_end(&mut bytes).await?;
            Ok(bytes)
        };
        let bytes: Vec<u8> = read
            .await
            .map_err(|error: std::io::Error| trouble(path, &error))?;
        if bytes.len() > max_bytes {
            Err(too_large(max_bytes))
        } else {
            Ok(bytes.into())
        }
    }

    async fn find(&self, path: &str) -> Result<PathBuf, ImageError> {
        let rejected = |why: &str| Err(ImageError::Rejected(format!("`{path}`: {why}")));
        if self.0.is_empty() {
            return rejected("the worker reads no files: name the pictures' folder in image.roots");
        }
        if path.contains("://") {
            return rejected(
                "this worker reads files and URLs of http and https; give a path or a signed URL",
            );
        }
        let mut missing = None;
        for root in &self.0 {
            match tokio::fs::canonicalize(root.join(Path::new(path))).await {
                Ok(real) if self.0.iter().any(|root| real.starts_with(root)) => {
                    // Only a plain file: a pipe or a device would block or never end.
                    let kind = tokio::fs::metadata(&real)
                        .await
                        .map_err(|error| trouble(path, &error))?;
                    return if kind.is_file() {
                        Ok(real)
                    } else {
                        rejected("this is no file")
                    };
                }
                Ok(_) => return rejected("it lies, or leads, outside of image.roots"),
                Err(error) => missing = Some(error),
            }
        }
        Err(missing.map_or_else(
            || ImageError::Rejected(path.to_owned()),
            |error| trouble(path, &error),
        ))
    }
}

/// A file that is not there is the job's fault, a disk that fails is not.
fn trouble(path: &str, error: &std::io::Error) -> ImageError {
    use std::io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied};
    let why = format!("`{path}`: {error}");
    match error.kind() {
        NotFound | NotADirectory | PermissionDenied | InvalidInput | InvalidFilename => {
            ImageError::Rejected(why)
        }
        _ => ImageError::Transient(why),
    }
}
