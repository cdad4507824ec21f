//! What one process knows of the way to one API: how long it takes, and how far its arrivals are spread.
//!
//! All workers aim at the same moments *at the API*, so a call leaves before its slot by the time that the way takes.
//! What is left is the jitter J: how much later than others some calls arrive. It has two parts, each measured where it
//! arises: how late requests are handed to their connections, and how much the round trips differ.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use url::Url;

/// Departures and round trips that are looked back on: so many at most,
const MOST_DEPARTURES: usize = 1024;
const MOST_ROUND_TRIPS: usize = 16;
/// and none that is older.
const DEPARTURES_FOR: Duration = Duration::from_secs(60);
const ROUND_TRIPS_FOR: Duration = Duration::from_secs(240);
/// Departures below which the jitter is not known.
const ENOUGH: usize = 50;
/// How often the way is measured, while calls are made.
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// Round trips of the first measurement: of one alone it is not known how much of it was spent waiting for a processor.
const FIRST_ROUND_TRIPS: u32 = 3;
/// The bound of one measurement.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the jitter is worked out anew.
const WORKED_OUT_EVERY: Duration = Duration::from_secs(1);

/// What is known of the way to one API. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Arrival {
    record: Arc<Mutex<Record>>,
    /// Held while the way is measured for the first time.
    first: Arc<tokio::sync::Mutex<()>>,
}

impl Arrival {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request was handed to its connection so long after the moment that was aimed at.
    pub fn record_departure(&self, lateness: Duration) {
        self.record().departed(Instant::now(), lateness);
    }

    /// The time to the API: half of the least recent round trip, and zero while that is not known.
    pub fn one_way(&self) -> Duration {
        self.record().one_way()
    }

    /// The jitter J of the arrivals; `None` until enough was seen. A robust upper bound: about one
    /// call of a hundred arrives later than others by more.
    pub fn jitter(&self) -> Option<Duration> {
        self.record().current_jitter(Instant::now())
    }

    /// The network's part of the jitter: how much the way itself differs from call to call. `None` until it was measured a
    /// few times.
    pub fn way_jitter(&self) -> Option<Duration> {
        self.record().way_jitter()
    }

    /// Measures the way to the host of `url`, if the last time is long enough ago: a connection is opened and closed,
    /// and nothing is said on it. The first time it is waited for, within a bound, so that the moments that calls aim at
    /// do not change once they have begun; later it goes on in the background.
    pub async fn probe_if_due(&self, url: &Url) {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return };
        // The brackets of an IPv6 address are the URL's.
        let host = host.trim_matches(['[', ']']).to_owned();
        let known = !self.record().round_trips.is_empty();
        if known {
            if self.record().probe_is_due(Instant::now()) {
                tokio::spawn(self.clone().probe(host, port));
            }
            return;
        }
        let _first = self.first.lock().await;
        let due = self.record().probe_is_due(Instant::now());
        if due {
            self.clone().probe(host, port).await;
        }
    }

    async fn probe(self, host: String, port: u16) {
        let missing = self.record().missing_round_trips();
        let measured = async {
            for _ in 0..missing {
                let took = round_trip(&host, port).await?;
                self.record().went_and_came(Instant::now(), took);
            }
            Ok::<_, std::io::Error>(())
        };
        match timeout(PROBE_TIMEOUT, measured).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, host, "the way to the API could not be measured"),
            Err(_) => tracing::debug!(host, "the way to the API could not be measured in time"),
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // Nothing panics while it is held.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A TCP handshake is one round trip, answered by the other side's kernel. The name is looked up before; of its addresses
/// the first that answers is taken.
async fn round_trip(host: &str, port: u16) -> std::io::Result<Duration> {
    let mut refused = std::io::Error::other("the name has no address");
    for address in lookup_host((host, port)).await? {
        let begun = Instant::now();
        match TcpStream::connect(address).await {
            Ok(_) => return Ok(begun.elapsed()),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// What was seen lately. Pure: whoever calls says what time it is.
#[derive(Debug, Default)]
struct Record {
    departures: VecDeque<(Instant, Duration)>,
    round_trips: VecDeque<(Instant, Duration)>,
    probed_at: Option<Instant>,
    jitter: Option<(Instant, Option<Duration>)>,
}

impl Record {
    fn departed(&mut self, now: Instant, lateness: Duration) {
        push(&mut self.departures, (now, lateness), MOST_DEPARTURES);
    }

    fn went_and_came(&mut self, now: Instant, took: Duration) {
        push(&mut self.round_trips, (now, took), MOST_ROUND_TRIPS);
    }

    /// How many to measure now.
    fn missing_round_trips(&self) -> u32 {
        if self.round_trips.is_empty() { FIRST_ROUND_TRIPS } else { 1 }
    }

    fn probe_is_due(&mut self, now: Instant) -> bool {
        let due = self.probed_at.is_none_or(|at| now.saturating_duration_since(at) >= PROBE_EVERY);
        if due {
            self.probed_at = Some(now);
        }
        due
    }

    /// Half of the least recent round trip: what is above it was spent waiting somewhere.
    fn one_way(&self) -> Duration {
        self.round_trips().min().unwrap_or_default() / 2
    }

    /// Those of the time before the newest: over a silence what was known is still the best that is.
    fn round_trips(&self) -> impl Iterator<Item = Duration> {
        let newest = self.round_trips.back().map(|(at, _)| *at);
        newest.into_iter().flat_map(|newest| recent(&self.round_trips, newest, ROUND_TRIPS_FOR))
    }

    fn current_jitter(&mut self, now: Instant) -> Option<Duration> {
        if let Some((at, jitter)) = self.jitter
            && now.saturating_duration_since(at) < WORKED_OUT_EVERY
        {
            return jitter;
        }
        let jitter = self.jitter(now);
        self.jitter = Some((now, jitter));
        jitter
    }

    /// The 99th percentile of the departures' lateness less the least of them, which all calls share; and half of what
    /// the third quartile of the round trips is above the least: a handshake whose first packet was lost takes a second
    /// longer, and says nothing of the others.
    fn jitter(&self, now: Instant) -> Option<Duration> {
        let departures = sorted(recent(&self.departures, now, DEPARTURES_FOR));
        if departures.len() < ENOUGH {
            return None;
        }
        Some(above_least(&departures, 99) + self.way_jitter().unwrap_or_default())
    }

    fn way_jitter(&self) -> Option<Duration> {
        let round_trips = sorted(self.round_trips());
        (round_trips.len() >= FIRST_ROUND_TRIPS as usize).then(|| above_least(&round_trips, 75) / 2)
    }
}

fn push(ring: &mut VecDeque<(Instant, Duration)>, seen: (Instant, Duration), most: usize) {
    if ring.len() >= most {
        ring.pop_front();
    }
    ring.push_back(seen);
}

fn recent(
    ring: &VecDeque<(Instant, Duration)>,
    now: Instant,
    within: Duration,
) -> impl Iterator<Item = Duration> {
    let young = move |at: Instant| now.saturating_duration_since(at) < within;
    ring.iter().filter(move |(at, _)| young(*at)).map(|(_, seen)| *seen)
}

fn sorted(seen: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut sorted: Vec<Duration> = seen.collect();
    sorted.sort_unstable();
    sorted
}

/// What the percentile of the sorted is above the least of them; zero of none.
fn above_least(sorted: &[Duration], percent: usize) -> Duration {
    let Some(last) = sorted.len().checked_sub(1) else { return Duration::ZERO };
    // Rounded up: of few, the percentile is the greatest.
    sorted[(last * percent).div_ceil(100)] - sorted[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn the_jitter_is_not_known_before_fifty_departures_and_forgotten_after_a_minute() {
        let (mut record, now) = (Record::default(), Instant::now());
        for _ in 0..ENOUGH - 1 {
            record.departed(now, us(100));
        }
        assert_eq!(record.jitter(now), None);
        record.departed(now, us(100));
        assert_eq!(record.jitter(now), Some(Duration::ZERO), "all alike");
        assert_eq!(record.jitter(now + DEPARTURES_FOR), None);
    }

    #[test]
    fn a_lateness_that_all_calls_share_is_no_jitter_and_neither_is_one_call_of_many() {
        let (mut record, now) = (Record::default(), Instant::now());
        for late in 0..1000 {
            record.departed(now, us(5_000 + late % 10));
        }
        record.departed(now, us(500_000));
        assert_eq!(record.jitter(now), Some(us(9)));
    }

    #[test]
    fn two_calls_of_a_hundred_are_jitter() {
        let (mut record, now) = (Record::default(), Instant::now());
        for call in 0..500 {
            record.departed(now, us(if call % 50 == 0 { 8_100 } else { 100 }));
        }
        assert_eq!(record.jitter(now), Some(us(8_000)));
    }

    #[test]
    fn the_way_is_half_of_the_least_round_trip_and_a_lost_packet_changes_nothing() {
        let (mut record, now) = (Record::default(), Instant::now());
        assert_eq!(record.one_way(), Duration::ZERO);
        for took in [30_000, 32_000, 1_031_000, 30_400, 31_000] {
            record.went_and_came(now, us(took));
        }
        assert_eq!(record.one_way(), us(15_000));
        for _ in 0..ENOUGH {
            record.departed(now, us(0));
        }
        assert_eq!(record.jitter(now), Some(us(1_000)));
        record.went_and_came(now + ROUND_TRIPS_FOR, us(50_000));
        assert_eq!(record.one_way(), us(25_000), "the way has become longer");
    }

    #[test]
    fn the_way_is_measured_every_fifteen_seconds_at_most() {
        let (mut record, now) = (Record::default(), Instant::now());
        let due = [0, 1, 14, 15, 16, 29, 30].map(|s| record.probe_is_due(now + Duration::from_secs(s)));
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }

    #[tokio::test]
    async fn a_measurement_opens_connections_and_says_nothing_on_them() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url =
            format!("http://{}/path?key=hunter22", listener.local_addr().unwrap()).parse().unwrap();
        let arrival = Arrival::new();
        tokio::join!(arrival.probe_if_due(&url), arrival.probe_if_due(&url), arrival.probe_if_due(&url));
        assert!(arrival.one_way() > Duration::ZERO, "it was waited for");
        for _ in 0..FIRST_ROUND_TRIPS {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut said = Vec::new();
            connection.read_to_end(&mut said).await.unwrap();
            assert_eq!(said, b"");
        }
        let none_else = timeout(Duration::from_millis(1), listener.accept()).await;
        assert!(none_else.is_err(), "once for all that wait for it");
    }

    proptest! {
        /// Shifting all departures changes nothing, and the jitter is never more than their whole spread.
        #[test]
        fn the_jitter_is_a_spread(late in proptest::collection::vec(0u64..100_000, 50..300), shift in 0u64..100_000) {
            let now = Instant::now();
            let (mut here, mut shifted) = (Record::default(), Record::default());
            for late in &late {
                here.departed(now, us(*late));
                shifted.departed(now, us(*late + shift));
            }
            let jitter = here.jitter(now).unwrap();
            prop_assert_eq!(shifted.jitter(now).unwrap(), jitter);
            let spread = us(late.iter().max().unwrap() - late.iter().min().unwrap());
            prop_assert!(jitter <= spread);
            let above = late.iter().filter(|l| us(**l - late.iter().min().unwrap()) > jitter).count();
            prop_assert!(above * 100 <= late.len(), "{} of {} arrive later", above, late.len());
        }

        /// However much is recorded, little is kept.
        #[test]
        fn memory_is_bounded(count in 0usize..5_000) {
            let (mut record, now) = (Record::default(), Instant::now());
            for _ in 0..count {
                record.departed(now, us(1));
                record.went_and_came(now, us(1));
            }
            prop_assert!(record.departures.len() <= MOST_DEPARTURES && record.round_trips.len() <= MOST_ROUND_TRIPS);
        }
    }
}
