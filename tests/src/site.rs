//! A folder in which commands work on a state file, beside a sandbox.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use pixfleet_sandbox::{Running, Sandbox, Settings};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::fleet::{KEY, pixfleet};

/// The key of a second account.
pub const SECOND_KEY: &str = "another-2718";

/// What a command printed, once it ended well.
pub fn told(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// A folder with settings, a sandbox, and commands in it.
pub struct Site {
    folder: TempDir,
    /// The API.
    pub sandbox: Running,
}

impl Site {
    /// Starts a sandbox and writes settings: `provider` is TOML below `[providers.sandbox]`, beside the preset `generic` and
    /// the endpoint.
    pub async fn new(settings: Settings, provider: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = Sandbox::start(listener, settings).unwrap();
        let folder = TempDir::new().unwrap();
        let toml = format!(
            "[admin]\nlisten = \"\"\n[providers.sandbox]\npreset = \"generic\"\nendpoint = \"{}\"\n{provider}\n",
            sandbox.url()
        );
        std::fs::write(folder.path().join("pixfleet.toml"), toml).unwrap();
        Self { folder, sandbox }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A `pixfleet` command in the folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        command_in(self.path(), arguments)
    }

    /// Puts `images` images on the state file `b.pixfleet`, as batch `b`, one model each.
    pub fn enqueue(&self, images: usize) {
        let rows: String = (0..images).map(|n| format!("i{n},http://images.example/{n}.jpg\n")).collect();
        std::fs::write(self.path().join("m.csv"), format!("id,url\n{rows}")).unwrap();
        told(self.command(&[
            "enqueue",
            "m.csv",
            "--batch",
            "b",
            "--models",
            "m",
            "--state",
            "b.pixfleet",
            "--quiet",
        ]));
    }

    /// Starts a worker on that file.
    pub fn start_worker(&self) -> Ended {
        let mut command = self.command(&["worker", "--state", "b.pixfleet"]);
        Ended(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

/// A `pixfleet` command in `folder`, with the keys and without settings of the environment.
pub fn command_in(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(pixfleet());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PIXFLEET_")) {
        command.env_remove(name);
    }
    command
        .args(arguments)
        .current_dir(folder)
        .env("GENERIC_API_KEY", KEY)
        .env("SECOND_KEY", SECOND_KEY)
        .env("TZ", "UTC");
    command.stdin(Stdio::null());
    command
}

/// A process that does not outlive its test.
pub struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
