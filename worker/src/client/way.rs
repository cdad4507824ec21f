//! The way of one coming call: a connection that is there, or is opened, before the call is due.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::time::{sleep, timeout};
use tracing::debug;
use url::Url;

use super::{
    Aged, CallOutcome, Client, Content, Opened, Reply, causes,
    departure::Departure,
    no_reply, read_body,
    stash::{ERRAND, Errand},
    ways::First,
};
use crate::provider::PreparedRequest;

/// The longest that a first connection is waited for before a slot is asked for.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// A way is taken at least, and at most, so long before the call is due.
const LEAST_LEAD: Duration = Duration::from_millis(20);
const MOST_LEAD: Duration = Duration::from_secs(1);

/// Where one call is going to leave. Dropped, it leaves nowhere.
#[derive(Debug)]
pub struct Way {
    aged: Arc<Aged>,
    max_response_bytes: usize,
    /// Counted as coming; not any more once it leaves.
    coming: bool,
}

/// A request that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// What came of it.
    pub outcome: CallOutcome,
    /// How long after the moment that was aimed at it was handed to its connection, if it was.
    pub lateness: Option<Duration>,
    /// When its connection was opened.
    pub opened: Opened,
}

impl Client {
    /// Waits until a slot can be used: for a first connection to the API of `url` where there is none at all, and for
    /// the first measurement of the way. Bounded by a second; where the API is away, the call will say why.
    pub async fn ready(&self, url: &Url) {
        tokio::join!(self.first_connection(url), self.measured(url));
    }

    async fn measured(&self, url: &Url) {
        // Behind a proxy the way to the API is not seen.
        if self.0.transport.proxy.is_none() {
            self.0.arrival.probe_if_due(url).await;
        }
    }

    pub(super) async fn first_connection(&self, url: &Url) {
        let aged = self.0.current.load_full();
        let mut opened = pin!(aged.stash.opened.notified());
        // Listening before looking, so that it is not missed.
        opened.as_mut().enable();
        let now = Instant::now();
        let held = aged.stash.held(now);
        // In a statement of its own, so that the lock is not held over the match.
        let first = aged.stash.ways().first(now, held);
        match first {
            First::There | First::Refused => return,
            First::Opening => {}
            First::Open => drop(tokio::spawn(open_one(self.clone(), Arc::clone(&aged), url.clone()))),
        }
        let _ = timeout(FIRST_WAIT, opened).await;
    }

    /// How long before a call is due its way is best taken: long enough to open a connection.
    pub fn lead(&self) -> Duration {
        let opening = Duration::from_micros(self.0.opening_us.load(Ordering::Relaxed));
        (opening * 2).clamp(LEAST_LEAD, MOST_LEAD)
    }

    /// The way of a call that leaves soon. Where the call would need a new connection, one begins to be opened.
    pub fn warm(&self, url: &Url) -> Way {
        let way = self.way();
        self.open(&way.aged, url);
        way
    }

    /// The way of a call that leaves now.
    pub(super) fn way(&self) -> Way {
        self.renew_by_age();
        let aged = self.0.current.load_full();
        aged.stash.ways().coming();
        Way { aged, max_response_bytes: self.0.transport.max_response_bytes, coming: true }
    }

    /// Opens as many connections as are missing, each in a task of its own.
    fn open(&self, aged: &Arc<Aged>, url: &Url) {
        let now = Instant::now();
        let held = aged.stash.held(now);
        let missing = aged.stash.ways().open(now, held);
        for _ in 0..missing {
            tokio::spawn(open_one(self.clone(), Arc::clone(aged), url.clone()));
        }
    }
}

/// Opens one connection, and closes it when nobody took it in time.
async fn open_one(client: Client, aged: Arc<Aged>, mut url: Url) {
    // Nothing of it is ever sent; all the same, nothing of the call is in it.
    url.set_path("/");
    url.set_query(None);
    url.set_fragment(None);
    let errand = Errand::new(url.origin(), None);
    let begun = Instant::now();
    let sent = ERRAND.scope(Arc::clone(&errand), aged.opener.head(url).send()).await;
    let done = errand.opened() == Opened::Ahead;
    aged.stash.opened(done);
    if !done {
        let why = sent.err().map(|error| causes(&error.without_url()));
        return debug!(why, "no connection could be opened ahead");
    }
    // Half the old, half the new: a network that changed is followed within a few openings.
    let took = begun.elapsed().as_micros() as u64;
    let _ =
        client.0.opening_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| Some((old + took) / 2));
    sleep(aged.stash.fresh).await;
    aged.stash.close_stale();
}

impl Way {
    /// Sends the request, once, and reads its answer. Bounded by the settings' times and sizes. `aimed_at` is the moment
    /// at which it was to leave.
    pub async fn send(mut self, request: &PreparedRequest, aimed_at: Option<Instant>) -> Sent {
        self.give_up();
        let aged = Arc::clone(&self.aged);
        let call = InFlight::begin(&aged);
        let errand = Errand::new(request.url.origin(), call.idle_since);
        let departure = Departure::new();
        let prepared = aged
            .caller
            .request(request.method.clone(), request.url.clone())
            .headers(request.headers.clone())
            .body(departure.body(request.body.clone()));
        let (sent_at, begun) = (Timestamp::now(), Instant::now());
        let answer = match ERRAND.scope(Arc::clone(&errand), prepared.send()).await {
            Ok(response) => {
                let shared = response.version() == reqwest::Version::HTTP_2;
                aged.stash.ways().shared(shared);
                let (reply, reusable) = self.read(response).await;
                call.end(reusable);
                Ok(reply)
            }
            Err(error) => Err(no_reply(error)),
        };
        let outcome = CallOutcome { sent_at, duration: begun.elapsed(), answer };
        let lateness = departure.at().zip(aimed_at).map(|(left, at)| left.saturating_duration_since(at));
        Sent { outcome, lateness, opened: errand.opened() }
    }

    /// The answer, and whether its connection may carry another call.
    async fn read(&self, mut response: reqwest::Response) -> (Reply, bool) {
        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let content = read_body(response, self.max_response_bytes).await;
        let closes =
            headers.get("connection").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
        let reusable = !closes && matches!(content, Content::Whole(_));
        (Reply { status, headers, content }, reusable)
    }

    fn give_up(&mut self) {
        if std::mem::take(&mut self.coming) {
            self.aged.stash.ways().came();
        }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// A call in flight: given up or failed, its connection is gone with it.
struct InFlight<'a> {
    aged: &'a Aged,
    idle_since: Option<Instant>,
    reusable: bool,
}

impl<'a> InFlight<'a> {
    fn begin(aged: &'a Aged) -> Self {
        let idle_since = aged.stash.ways().left(Instant::now());
        Self { aged, idle_since, reusable: false }
    }

    fn end(mut self, reusable: bool) {
        self.reusable = reusable;
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.aged.stash.ways().ended(Instant::now(), self.reusable);
    }
}
