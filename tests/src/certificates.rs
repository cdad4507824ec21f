//! A certificate authority of a test's own, and what it signed for 127.0.0.1.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// An authority, a server's certificate and a client's; PEM files that go with the test.
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes them with `openssl`.
    pub fn new() -> Self {
        let folder = TempDir::new().expect("a folder for certificates");
        make(
            folder.path(),
            "ca",
            &["-subj", "/CN=pixfleet tests", "-addext", "keyUsage=critical,keyCertSign"],
        );
        for name in ["server", "client"] {
            let subject = format!("/CN={name}");
            let by_ca = ["-subj", &subject, "-CA", "ca.pem", "-CAkey", "ca.key"];
            let leaf =
                ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=IP:127.0.0.1"];
            make(folder.path(), name, &[&by_ca[..], &leaf[..]].concat());
        }
        Self { folder }
    }

    /// The authority's certificate.
    pub fn ca(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// A certificate and its key: of `server` or `client`.
    pub fn of(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.file(&format!("{name}.pem")), self.file(&format!("{name}.key")))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

fn make(folder: &Path, name: &str, more: &[&str]) {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")])
        .args(more)
        .current_dir(folder)
        .output()
        .expect("openssl runs (tests/services install)");
    assert!(made.status.success(), "no certificate {name}: {}", String::from_utf8_lossy(&made.stderr));
}
