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
            root.canonicalize()
                .map_err(|error| BadConfig { field: "roots", why: format!("`{}`: {error}", root.display()) })
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
        let bytes: Vec<u8> = read.await.map_err(|error: std::io::Error| trouble(path, &error))?;
        if bytes.len() > max_bytes { Err(too_large(max_bytes)) } else { Ok(bytes.into()) }
    }

    async fn find(&self, path: &str) -> Result<PathBuf, ImageError> {
        let rejected = |why: &str| Err(ImageError::Rejected(format!("`{path}`: {why}")));
        if self.0.is_empty() {
            return rejected("the worker reads no files: name the pictures' folder in worker.fetch.roots");
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
                    let kind = tokio::fs::metadata(&real).await.map_err(|error| trouble(path, &error))?;
                    return if kind.is_file() { Ok(real) } else { rejected("this is no file") };
                }
                Ok(_) => return rejected("it lies, or leads, outside of worker.fetch.roots"),
                Err(error) => missing = Some(error),
            }
        }
        Err(missing.map_or_else(|| ImageError::Rejected(path.to_owned()), |error| trouble(path, &error)))
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Folders {
        _guard: tempfile::TempDir,
        root: PathBuf,
        outside: PathBuf,
    }

    fn folders() -> Folders {
        let guard = tempfile::tempdir().unwrap();
        let (root, outside) = (guard.path().join("root"), guard.path().join("outside"));
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(root.join("sub/a.jpg"), b"inside").unwrap();
        std::fs::write(outside.join("b.jpg"), b"outside").unwrap();
        Folders { _guard: guard, root, outside }
    }

    async fn read(folders: &Folders, path: &str) -> Result<Bytes, ImageError> {
        Roots::new(std::slice::from_ref(&folders.root)).unwrap().read(path, 6).await
    }

    #[tokio::test]
    async fn a_file_below_a_root_is_read_by_its_whole_or_its_relative_path() {
        let folders = folders();
        let whole = folders.root.join("sub/a.jpg");
        for path in ["sub/a.jpg", "sub/../sub/a.jpg", whole.to_str().unwrap()] {
            assert_eq!(read(&folders, path).await.unwrap(), "inside", "{path}");
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn no_path_and_no_link_leads_out_of_the_roots() {
        let folders = folders();
        std::os::unix::fs::symlink(&folders.outside, folders.root.join("link")).unwrap();
        std::os::unix::fs::symlink(folders.outside.join("b.jpg"), folders.root.join("b.jpg")).unwrap();
        let whole = folders.outside.join("b.jpg");
        for path in ["link/b.jpg", "b.jpg", "../outside/b.jpg", "/etc/passwd", whole.to_str().unwrap()] {
            let why = read(&folders, path).await.unwrap_err();
            assert!(
                !why.is_transient() && why.to_string().contains("outside of worker.fetch.roots"),
                "{path}: {why}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_file_is_rejected_with_the_reason() {
        let folders = folders();
        for (path, why) in [
            ("sub", "no file"),
            ("nothing.jpg", "No such file"),
            ("s3://bucket/a.jpg", "signed URL"),
            ("a\0b", "`a"),
        ] {
            let error = read(&folders, path).await.unwrap_err();
            assert!(!error.is_transient() && error.to_string().contains(why), "{path}: {error}");
        }
        let none = Roots::new(&[]).unwrap().read("sub/a.jpg", 6).await.unwrap_err();
        assert!(none.to_string().contains("worker.fetch.roots"));
        assert!(Roots::new(&[folders.root.join("gone")]).is_err());
    }

    #[tokio::test]
    async fn a_file_above_the_bound_is_rejected() {
        let folders = folders();
        std::fs::write(folders.root.join("big"), b"7 bytes").unwrap();
        assert!(read(&folders, "big").await.unwrap_err().to_string().contains("6 bytes"));
    }
}
