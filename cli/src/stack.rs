//! Stacks that bear what strangers send.
//!
//! The AMQP parser recurses into nested headers, a level for every five bytes, on a thread that lapin starts with the
//! default stack. On 2 MiB of it a message of some kilobytes ends each worker that is sent it, one after the other. That
//! default is read from the environment before the first thread starts, so the process begins anew with it: same id, same
//! arguments.

use std::{env, os::unix::process::CommandExt, process::Command};

/// What the standard library reads the size of its threads' stacks from, in bytes.
const VARIABLE: &str = "RUST_MIN_STACK";
/// A release reads the deepest headers that a frame of 128 KiB holds, the broker's largest by default; a build without
/// optimization those of 32 KiB. Reserved, not used: a page is taken when it is touched.
const BYTES: usize = 64 << 20;

/// Begins anew with deep stacks. Returns where they are deep already, or of a size that somebody chose.
pub(crate) fn deepen() {
    if env::var_os(VARIABLE).is_some() {
        return;
    }
    let Ok(own) = env::current_exe() else { return };
    let mut again = Command::new(own);
    let mut arguments = env::args_os();
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let why = again.args(arguments).env(VARIABLE, BYTES.to_string()).exec();
    // Where a program may not start itself, it works all the same.
    eprintln!(
        "pixfleet: can't start anew with deep stacks ({why}): set {VARIABLE}={BYTES} where strangers can publish"
    );
}
