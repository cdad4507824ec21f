//! The limiter's exchanges with the server, one method a script; and what the process knows from them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::ScriptInvocation;
use tokio::{sync::Notify, time::Instant};

use super::{
    hold_offs::{Held, HoldOffs},
    pool::{Away, Link},
    reply::Reply,
    servers::Connection,
};
use crate::{
    clock::{Clock, Observed},
    gcra::{CLOCK_STEP_US, HORIZON_US, PROBE_US},
    judge::Rule,
    knowledge::Knowledge,
    limiter::{Amendment, Change, Limit, Terms},
    quota::Count,
};

/// An idle stack's key goes after this time. A missing key is lost state, so any time is safe; this one is rare.
const KEEP_IDLE: Duration = Duration::from_secs(86_400);
/// Terms and counts are kept this long without use: a year.
const KEEP_TERMS: Duration = Duration::from_secs(366 * 86_400);
/// How long a process' share of a limit on calls in flight is its own without a word from it.
pub(super) const LEASE: Duration = Duration::from_secs(5);

/// The way to the server, and what is known from it.
pub(super) struct Wire {
    pub(super) link: Arc<Link>,
    pub(super) namespace: Arc<str>,
    pub(super) hold_offs: HoldOffs,
    pub(super) knowledge: Knowledge,
    pub(super) clock: Clock,
    /// This process among those that share calls in flight: random.
    pub(super) process: String,
    /// What keeps batches may have changed.
    pub(super) holds_hint: Notify,
    is_listening: AtomicBool,
}

/// One question of `reserve.lua`.
pub(super) struct Question<'a> {
    pub(super) stack: &'a str,
    pub(super) rules: &'a [Rule<'a>],
    /// What each call takes of each rule, in millionths of units.
    pub(super) calls: &'a [Vec<u64>],
    pub(super) rev: u64,
    pub(super) lead_us: u64,
    pub(super) jitter_us: u64,
    pub(super) doubt: bool,
}

/// What a change of terms came to.
pub(super) enum Amended {
    /// It is in force.
    Done,
    /// It was made from other terms than these, which are in force.
    Overtaken(Terms),
}

/// What `share.lua` answers.
pub(super) struct Shared {
    pub(super) calls: u32,
    pub(super) until: Instant,
    pub(super) contended: bool,
}

impl Wire {
    pub(super) fn new(link: Arc<Link>, namespace: Arc<str>) -> Self {
        Self {
            link,
            namespace,
            hold_offs: HoldOffs::default(),
            knowledge: Knowledge::default(),
            clock: Clock::new(),
            process: format!("{:016x}", rand::random::<u64>()),
            holds_hint: Notify::new(),
            is_listening: AtomicBool::new(false),
        }
    }

    /// Whether what the fleet says to itself is heard.
    pub(super) fn is_listening(&self) -> bool {
        self.is_listening.load(Ordering::Relaxed)
    }

    pub(super) fn listens(&self, is_listening: bool) {
        self.is_listening.store(is_listening, Ordering::Relaxed);
        // What was said before was perhaps not heard.
        self.holds_hint.notify_one();
    }

    /// The key of a stack's hash: `{<namespace>:limit:<stack>}`, all of it hash tag, so a cluster keeps it whole.
    pub(super) fn key(&self, stack: &str) -> String {
        format!("{{{}:limit:{stack}}}", self.namespace)
    }

    /// The key of its list of changes.
    pub(super) fn history_key(&self, stack: &str) -> String {
        format!("{}:history", self.key(stack))
    }

    fn share_key(&self, stack: &str, limit: &str) -> String {
        format!("{}:flight:{limit}", self.key(stack))
    }

    /// What is said here reaches every process of the fleet.
    pub(super) fn channel(&self) -> String {
        format!("{}:hold-off", self.namespace)
    }

    pub(super) async fn reserve(&self, question: &Question<'_>) -> Result<(Reply, Observed), Away> {
        let script = self.asking(question);
        let work = move |mut connection: Connection| async move {
            let sent = Instant::now();
            let reply: Reply = script.invoke_async(&mut connection).await?;
            Ok((sent, Instant::now(), reply))
        };
        let (sent, received, reply) = self.link.exchange(work).await?;
        let observed = match &reply {
            Reply::OtherTerms(_) => Observed::Sound,
            Reply::OtherWindow { now_us } => self.clock.observe(sent, received, *now_us),
            Reply::Decided(decided) => self.clock.observe(sent, received, decided.now_us),
        };
        Ok((reply, observed))
    }

    fn asking(&self, question: &Question<'_>) -> ScriptInvocation<'_> {
        let Question { stack, rules, calls, rev, lead_us, jitter_us, doubt } = *question;
        let mut script = self.link.scripts.reserve.key(self.key(stack));
        script
            .arg(HORIZON_US)
            .arg(CLOCK_STEP_US)
            .arg(lead_us)
            .arg(u8::from(doubt))
            .arg(KEEP_IDLE.as_millis() as u64)
            .arg(rev)
            .arg(jitter_us)
            .arg(PROBE_US)
            .arg(rules.len())
            .arg(calls.len());
        for rule in rules {
            match rule {
                Rule::Paced(limit) => {
                    script.arg("p").arg(limit.name).arg(limit.interval_us).arg(limit.tolerance_us);
                    script.arg(limit.charge_us(limit.heaviest));
                }
                Rule::Counted(quota) => {
                    let Count { start_us, end_us, used, next } = quota.hint.unwrap_or_default();
                    let windows = quota.windows;
                    script.arg("c").arg(quota.name).arg(quota.most).arg(quota.guard_us);
                    script.arg(windows.start_us).arg(windows.end_us).arg(windows.next_end_us);
                    script.arg(start_us).arg(end_us).arg(used).arg(next);
                }
            }
        }
        for costs in calls {
            for (rule, cost) in rules.iter().zip(costs) {
                match rule {
                    Rule::Paced(limit) => script.arg(limit.charge_us(*cost)),
                    Rule::Counted(_) => script.arg(*cost),
                };
            }
        }
        script.arg(self.channel()).arg(stack);
        script
    }

    /// Pauses the stack for `pause`, but not beyond `bound_us` on the server's clock (0: no bound).
    pub(super) async fn hold_off(
        &self,
        stack: &str,
        pause: Duration,
        bound_us: u64,
        probe: bool,
    ) -> Result<(), Away> {
        let mut script = self.link.scripts.hold_off.key(self.key(stack));
        script
            .arg(pause.as_micros() as u64)
            .arg(bound_us)
            .arg(u8::from(probe))
            .arg(KEEP_IDLE.as_millis() as u64)
            .arg(self.channel())
            .arg(stack);
        let work = move |mut connection: Connection| async move {
            let sent = Instant::now();
            let reply: (u64, u64) = script.invoke_async(&mut connection).await?;
            Ok((sent, Instant::now(), reply))
        };
        let (sent, received, (now_us, held_until_us)) = self.link.exchange(work).await?;
        // A step is left for the next reservation to notice: only it can act on one.
        if !self.clock.is_set() {
            self.clock.observe(sent, received, now_us);
        }
        self.note_hold_off(stack, held_until_us);
        Ok(())
    }

    pub(super) fn note_hold_off(&self, stack: &str, held_until_us: u64) {
        let held = Held { until: self.clock.at(held_until_us), server_us: held_until_us };
        self.hold_offs.note(stack, held);
    }

    /// Ends the probe, and with `hold_off_too` the hold-off before it.
    pub(super) async fn open(&self, stack: &str, hold_off_too: bool) -> Result<(), Away> {
        let mut script = self.link.scripts.open.key(self.key(stack));
        script.arg(u8::from(hold_off_too)).arg(self.channel()).arg(stack);
        self.number(script).await.map(drop)
    }

    pub(super) async fn late(&self, stack: &str, by: Duration) -> Result<(), Away> {
        let mut script = self.link.scripts.late.key(self.key(stack));
        script.arg(by.as_micros() as u64);
        self.number(script).await.map(drop)
    }

    /// Gives back so many millionths of units of each quota.
    pub(super) async fn refund(&self, stack: &str, costs: &[(&str, u64)]) -> Result<(), Away> {
        let mut script = self.link.scripts.refund.key(self.key(stack));
        for (name, cost) in costs {
            script.arg(*name).arg(*cost);
        }
        self.number(script).await.map(drop)
    }

    /// Says again what a server may have lost.
    pub(super) async fn remember(&self, stack: &str) -> Result<(), Away> {
        let terms = self.knowledge.terms(stack);
        let counts = self.knowledge.counts(stack);
        if terms.rev == 0 && counts.is_empty() {
            return Ok(());
        }
        let mut script = self.link.scripts.remember.key(self.key(stack));
        script.arg(KEEP_TERMS.as_millis() as u64).arg(terms.rev).arg(json(&terms));
        script.arg(self.channel()).arg(stack);
        for (name, count) in &counts {
            script.arg(name).arg(count.start_us).arg(count.end_us).arg(count.used).arg(count.next);
        }
        self.number(script).await.map(drop)
    }

    /// Puts `terms` in the place of those that they were made from. `spent` sets what is used of a quota. What the fleet
    /// does by itself is not kept as history.
    pub(super) async fn amend(
        &self,
        stack: &str,
        terms: &Terms,
        amendment: &Amendment,
        spent: Option<(&Limit, Count)>,
    ) -> Result<Amended, Away> {
        let mut script = self.link.scripts.amend.key(self.key(stack));
        script.key(self.history_key(stack));
        let kept =
            if matches!(amendment.change, Change::Jitter { .. }) { String::new() } else { json(amendment) };
        script.arg(terms.rev - 1).arg(terms.rev).arg(json(terms)).arg(kept);
        script.arg(KEEP_TERMS.as_millis() as u64).arg(self.channel()).arg(stack);
        if let Some((limit, Count { start_us, end_us, used, next })) = spent {
            script.arg(&limit.name).arg(start_us).arg(end_us).arg(used).arg(next);
        }
        let work = move |mut connection: Connection| async move {
            script.invoke_async::<(u8, Option<u64>, Option<String>)>(&mut connection).await
        };
        Ok(match self.link.exchange(work).await? {
            (1, ..) => Amended::Done,
            (_, rev, text) => {
                let terms: Terms = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
                Amended::Overtaken(Terms { rev: rev.unwrap_or(0), ..terms })
            }
        })
    }

    /// The terms that the server has.
    pub(super) async fn terms(&self, stack: &str) -> Result<Terms, Away> {
        let mut ask = redis::cmd("HMGET");
        ask.arg(self.key(stack)).arg("rev").arg("terms");
        let work = move |mut connection: Connection| async move {
            ask.query_async::<(Option<u64>, Option<String>)>(&mut connection).await
        };
        let (rev, text) = self.link.exchange(work).await?;
        let terms: Terms = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        Ok(Terms { rev: rev.unwrap_or(0), ..terms })
    }

    pub(super) async fn share(
        &self,
        stack: &str,
        limit: &Limit,
        held: u32,
        wanted: u32,
        claim: u32,
    ) -> Result<Shared, Away> {
        let mut script = self.link.scripts.share.key(self.share_key(stack, &limit.name));
        script.arg(&self.process).arg(limit.calls).arg(held).arg(wanted).arg(claim);
        script.arg(LEASE.as_micros() as u64).arg(CLOCK_STEP_US).arg(self.channel()).arg(stack);
        let asked = Instant::now();
        let work = move |mut connection: Connection| async move {
            script.invoke_async::<(u64, u32, u64, u8, u32, u32)>(&mut connection).await
        };
        let (_, calls, _, contended, ..) = self.link.exchange(work).await?;
        // Counted from before the question left, the lease ends here before it ends there.
        Ok(Shared { calls, until: asked + LEASE, contended: contended == 1 })
    }

    /// The server's clock, and all that it has of the stack.
    pub(super) async fn hash(&self, stack: &str) -> Result<(u64, HashMap<String, String>), Away> {
        let script = self.link.scripts.look.key(self.key(stack));
        let work = move |mut connection: Connection| async move {
            let sent = Instant::now();
            let (now_us, fields): (u64, HashMap<String, String>) =
                script.invoke_async(&mut connection).await?;
            Ok((sent, Instant::now(), now_us, fields))
        };
        let (sent, received, now_us, fields) = self.link.exchange(work).await?;
        if !self.clock.is_set() {
            self.clock.observe(sent, received, now_us);
        }
        Ok((now_us, fields))
    }

    /// What the server has of the shares of a limit: calls and processes.
    pub(super) async fn shares(&self, stack: &str, limit: &str) -> Result<(u32, u32), Away> {
        let mut ask = redis::cmd("HGETALL");
        ask.arg(self.share_key(stack, limit));
        let work = move |mut connection: Connection| async move {
            ask.query_async::<HashMap<String, String>>(&mut connection).await
        };
        let fields = self.link.exchange(work).await?;
        let now_us = self.clock.server_us(Instant::now()).unwrap_or(0);
        let share = |(field, value): (&String, &String)| {
            let mut numbers = value.split(' ').map(|number| number.parse::<u64>().ok());
            let (calls, _, until) = (numbers.next()??, numbers.next()?, numbers.next()??);
            (field.starts_with("p:") && until > now_us).then_some(calls as u32)
        };
        let shares: Vec<u32> = fields.iter().filter_map(share).collect();
        Ok((shares.iter().sum(), shares.len() as u32))
    }

    async fn number(&self, script: ScriptInvocation<'_>) -> Result<u64, Away> {
        let work = move |mut connection: Connection| async move {
            script.invoke_async::<u64>(&mut connection).await
        };
        self.link.exchange(work).await
    }
}

fn json(value: &impl serde::Serialize) -> String {
    // Terms and amendments are maps with text keys, which are always JSON.
    serde_json::to_string(value).unwrap_or_default()
}
