//! Who uses a state file, and whether they still live: what a dead process held goes back at once.
//!
//! A process that lends jobs is a member, with a lease that it renews. Where the system can tell (a process of this
//! machine, seen through Linux's `/proc`), a member that has died is known right away; elsewhere its lease ends.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OptionalExtension, params};

/// How long a lease holds without being renewed: longer than a machine that is short of memory stands still.
const LEASE: Duration = Duration::from_secs(15);
/// How often it is renewed, and how often the others' are looked at.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// A thread that has nothing to renew only has to notice that it is told to.
const REST: Duration = Duration::from_secs(3600);

/// Now, in microseconds since 1970.
pub(super) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// This process's membership, once it has joined.
#[derive(Debug)]
pub(super) struct Membership {
    /// Drawn, not counted: a number that a failed transaction took back could be given to two processes.
    token: i64,
    joined: AtomicBool,
}

impl Membership {
    pub(super) fn new() -> Self {
        Self { token: rand::random_range(1..i64::MAX), joined: AtomicBool::new(false) }
    }

    /// The number under which this process is known in the file, once it has joined.
    pub(super) fn token(&self) -> i64 {
        self.token
    }

    /// How long the writer may rest before it has to renew.
    pub(super) fn rest(&self) -> Duration {
        if self.joined.load(Ordering::Relaxed) { RENEW_EVERY } else { REST }
    }

    /// The token of this process, a member from now on. What dead members held goes back.
    pub(super) fn join(&self, db: &Connection) -> rusqlite::Result<i64> {
        if !self.joined.swap(true, Ordering::Relaxed) {
            self.enter(db)?;
            bury_the_dead(db, self.token)?;
        }
        Ok(self.token)
    }

    /// Renews the lease, and gives back what dead members held: how many jobs that were.
    pub(super) fn renew(&self, db: &Connection) -> rusqlite::Result<usize> {
        if !self.joined.load(Ordering::Relaxed) {
            return Ok(0);
        }
        db.execute_batch("BEGIN IMMEDIATE")?;
        match self.enter(db).and_then(|()| bury_the_dead(db, self.token)) {
            Ok(returned) => db.execute_batch("COMMIT").map(|()| returned),
            Err(error) => {
                let _ = db.execute_batch("ROLLBACK");
                Err(error)
            }
        }
    }

    fn enter(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute(
            "INSERT INTO processes (token, identity, until_us) VALUES (?1, ?2, ?3)
             ON CONFLICT (token) DO UPDATE SET until_us = excluded.until_us",
            params![self.token, identity(), lease_end()],
        )
        .map(drop)
    }

    /// Ends the membership; what it still holds goes back. It did not die of what it had in hand.
    pub(super) fn leave(&self, db: &Connection) -> rusqlite::Result<()> {
        if !self.joined.load(Ordering::Relaxed) {
            return Ok(());
        }
        db.execute("DELETE FROM taken WHERE holder = ?1", [self.token])?;
        bury(db, self.token).map(drop)
    }
}

/// Whether the member `token` lives, as far as that can be told.
pub fn is_member(db: &Connection, token: i64) -> rusqlite::Result<bool> {
    let query = "SELECT identity, until_us FROM processes WHERE token = ?1";
    let member: Option<(String, i64)> =
        db.query_row(query, [token], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    Ok(member.is_some_and(|(identity, until)| lives(&identity, until)))
}

/// Members that live.
pub(super) fn members(db: &Connection) -> rusqlite::Result<u64> {
    let mut query = db.prepare_cached("SELECT identity, until_us FROM processes")?;
    let mut rows = query.query([])?;
    let mut living = 0;
    while let Some(row) = rows.next()? {
        living += u64::from(lives(&row.get::<_, String>(0)?, row.get(1)?));
    }
    Ok(living)
}

fn lives(identity: &str, until_us: i64) -> bool {
    until_us > now_us() as i64 && !is_dead(identity)
}

fn lease_end() -> i64 {
    now_us() as i64 + LEASE.as_micros() as i64
}

fn bury_the_dead(db: &Connection, own: i64) -> rusqlite::Result<usize> {
    let mut query = db.prepare_cached("SELECT token, identity, until_us FROM processes")?;
    let members: Vec<(i64, String, i64)> =
        query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect::<Result<_, _>>()?;
    let mut returned = 0;
    for (token, identity, until_us) in members {
        if token != own && !lives(&identity, until_us) {
            returned += bury(db, token)?;
        }
    }
    Ok(returned)
}

fn bury(db: &Connection, token: i64) -> rusqlite::Result<usize> {
    let returned = db.execute(
        "UPDATE jobs SET state = 0, holder = NULL, again = 1 WHERE state = 1 AND holder = ?1",
        [token],
    )?;
    db.execute("DELETE FROM processes WHERE token = ?1", [token])?;
    db.execute("DELETE FROM claims WHERE holder = ?1", [token])?;
    db.execute("DELETE FROM shares WHERE holder = ?1", [token])?;
    Ok(returned)
}

/// `linux:<boot>:<pid namespace>:<pid>:<start>`, or empty where it can't be told.
///
/// The start keeps apart two processes of one number, the boot and the namespace those of two machines or containers
/// that share a folder.
fn identity() -> String {
    let own = std::process::id();
    let parts = || Some(format!("{}:{own}:{}", here()?, start_of(own)?));
    parts().unwrap_or_default()
}

/// Whether the process is dead for sure.
fn is_dead(identity: &str) -> bool {
    let parts: Vec<&str> = identity.rsplitn(3, ':').collect();
    let [start, pid, place] = parts[..] else {
        return false;
    };
    if here().as_deref() != Some(place) {
        return false;
    }
    let pid = pid.parse().unwrap_or_default();
    start_of(pid).is_none_or(|now| now != start)
}

fn here() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("linux:{}:{}", boot.trim(), namespace.display()))
}

/// When a process began, in the kernel's ticks. A zombie is dead: it only waits to be counted.
fn start_of(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; what follows it is words: state first, the start as the 20th.
    let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (*words.first()? != "Z").then(|| words.get(19).map(|start| (*start).to_owned())).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_one_that_has_ended_does_not() {
        let own = identity();
        assert!(own.starts_with("linux:") && !is_dead(&own), "{own}");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (place, start) = (here().unwrap(), start_of(child.id()).unwrap());
        let theirs = format!("{place}:{}:{start}", child.id());
        assert!(!is_dead(&theirs));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_dead(&theirs));
    }

    #[test]
    fn of_another_machines_processes_nothing_is_known() {
        assert!(!is_dead("linux:other-boot:pid:[4026531836]:1:1"));
        assert!(!is_dead(""));
    }
}
