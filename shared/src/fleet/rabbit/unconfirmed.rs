//! What is published and not yet known to be stored: who waits for it, and what has to be said again. No I/O.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::queue::QueueError;

/// The pause after a first refusal. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause of a message that is refused again and again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// So many refusals of one message are no short rush any more: about 3 s.
const STUCK_FROM: u32 = 5;

/// One message to publish, persistent and mandatory.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    /// Names the message: a returned one is found by it.
    pub(super) id: String,
    pub(super) content_type: &'static str,
    /// Rebuilt for each publish, never copied from a delivery: an `x-death` sent back is read by the broker, and
    /// can make it drop the message as a cycle.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// Where it goes instead when nobody takes it.
    pub(super) otherwise: Option<Route>,
}

/// A way to a queue.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) exchange: String,
    pub(super) key: String,
}

/// Messages that one caller waits for together.
pub(super) struct Parcel {
    pub(super) messages: Vec<Message>,
    pub(super) done: oneshot::Sender<Result<(), QueueError>>,
}

/// What a confirm meant for its message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Booked {
    /// It is stored, and its caller told once all of its messages are.
    Stored,
    /// The broker refused it: it rests, and is said again. Or it takes its other route.
    Again,
    /// It came back, for the so-many-eth time: nobody takes it. The caller decides.
    Unroutable(u32),
}

/// The messages on their way, by number in the order in which they were handed over.
#[derive(Default)]
pub(super) struct Unconfirmed {
    next: u64,
    messages: HashMap<u64, Pending>,
    callers: HashMap<u64, Caller>,
    /// To be said (again), the oldest first.
    backlog: VecDeque<u64>,
    /// Refused ones, until they are said again.
    resting: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Those that were refused and are not stored yet.
    refused: BTreeSet<u64>,
    /// Ids that came back as unroutable, until their own confirm arrives.
    returned: HashSet<String>,
}

struct Pending {
    message: Arc<Message>,
    caller: u64,
    returns: u32,
    refusals: u32,
}

struct Caller {
    waiting_for: usize,
    done: oneshot::Sender<Result<(), QueueError>>,
}

impl Unconfirmed {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Takes in what a caller wants published.
    pub(super) fn accept(&mut self, parcel: Parcel) {
        let caller = self.next;
        self.callers.insert(caller, Caller { waiting_for: parcel.messages.len(), done: parcel.done });
        for message in parcel.messages {
            self.next += 1;
            let pending = Pending { message: Arc::new(message), caller, returns: 0, refusals: 0 };
            self.messages.insert(self.next, pending);
            self.backlog.push_back(self.next);
        }
        self.next += 1;
    }

    /// The next message to publish, with its number. One that nobody waits for any more is forgotten: whoever gave up has it
    /// delivered again, and it would be said for ever.
    pub(super) fn say_next(&mut self) -> Option<(u64, Arc<Message>)> {
        while let Some(number) = self.backlog.pop_front() {
            let Some(pending) = self.messages.get(&number) else { continue };
            let caller = pending.caller;
            if self.callers.get(&caller).is_some_and(|caller| !caller.done.is_closed()) {
                return Some((number, pending.message.clone()));
            }
            self.forget(number);
            self.callers.remove(&caller);
        }
        None
    }

    /// When the first of the refused messages is to be said again.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.resting.peek().map(|Reverse((at, _))| *at)
    }

    /// Those that have rested go to the backlog.
    pub(super) fn wake(&mut self, now: Instant) {
        while self.wakes_at().is_some_and(|at| at <= now) {
            self.backlog.extend(self.resting.pop().map(|Reverse((_, number))| number));
        }
    }

    /// Whether the one that waits longest was refused again and again.
    pub(super) fn is_stuck(&self) -> bool {
        let longest = self.refused.first().and_then(|number| self.messages.get(number));
        longest.is_some_and(|pending| pending.refusals >= STUCK_FROM)
    }

    /// How many messages were refused and are not stored yet, and the one that waits longest.
    pub(super) fn refused(&self) -> Option<(usize, &Message)> {
        let pending = self.messages.get(self.refused.first()?)?;
        Some((self.refused.len(), &pending.message))
    }

    /// Notes that the message of this id came back. lapin hands it to whichever confirm completes next, so it is
    /// known by its own id; its own confirm, which the broker sends after the return, finds the note.
    pub(super) fn came_back(&mut self, id: &str) {
        self.returned.insert(id.to_owned());
    }

    /// Books the confirm of one message at `now`.
    pub(super) fn confirmed(&mut self, number: u64, nacked: bool, now: Instant) -> Booked {
        let Some(pending) = self.messages.get_mut(&number) else { return Booked::Stored };
        if self.returned.remove(&pending.message.id) {
            if let Some(Route { exchange, key: routing_key }) = pending.message.otherwise.clone() {
                let message =
                    Message { exchange, routing_key, otherwise: None, ..(*pending.message).clone() };
                pending.message = Arc::new(message);
                self.again(number);
                return Booked::Again;
            }
            pending.returns += 1;
            return Booked::Unroutable(pending.returns);
        }
        if nacked {
            let pause = FIRST_PAUSE.saturating_mul(1 << pending.refusals.min(10)).min(LONGEST_PAUSE);
            pending.refusals += 1;
            self.resting.push(Reverse((now + pause, number)));
            self.refused.insert(number);
            return Booked::Again;
        }
        self.stored(number);
        Booked::Stored
    }

    /// Puts a message into the backlog again.
    pub(super) fn again(&mut self, number: u64) {
        self.backlog.push_back(number);
    }

    /// A message can't be stored: its caller is told, whose other messages may be.
    pub(super) fn refuse(&mut self, number: u64, error: QueueError) {
        if let Some(pending) = self.forget(number) {
            self.tell(pending.caller, Err(error));
        }
    }

    /// The channel is gone: everything that was on its way is to be said again, in its order.
    pub(super) fn all_again(&mut self) {
        let mut numbers: Vec<u64> = self.messages.keys().copied().collect();
        numbers.sort_unstable();
        self.backlog = numbers.into();
        self.returned.clear();
        self.resting.clear();
    }

    fn forget(&mut self, number: u64) -> Option<Pending> {
        self.refused.remove(&number);
        self.messages.remove(&number)
    }

    fn stored(&mut self, number: u64) {
        let Some(pending) = self.forget(number) else { return };
        let Some(caller) = self.callers.get_mut(&pending.caller) else { return };
        caller.waiting_for -= 1;
        if caller.waiting_for == 0 {
            self.tell(pending.caller, Ok(()));
        }
    }

    fn tell(&mut self, caller: u64, outcome: Result<(), QueueError>) {
        if let Some(caller) = self.callers.remove(&caller) {
            // A caller that no longer listens lost its patience, and knows.
            let _ = caller.done.send(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Told = oneshot::Receiver<Result<(), QueueError>>;

    fn parcel(ids: &[&str]) -> (Parcel, Told) {
        let message = |id: &&str| Message {
            exchange: "e".into(),
            routing_key: "k".into(),
            id: (*id).to_owned(),
            content_type: "application/json",
            headers: Vec::new(),
            body: Vec::new(),
            otherwise: None,
        };
        let (done, told) = oneshot::channel();
        (Parcel { messages: ids.iter().map(message).collect(), done }, told)
    }

    fn said(unconfirmed: &mut Unconfirmed) -> Vec<(u64, String)> {
        std::iter::from_fn(|| unconfirmed.say_next())
            .map(|(number, message)| (number, message.id.clone()))
            .collect()
    }

    #[test]
    fn a_caller_is_told_when_the_last_of_its_messages_is_stored() {
        let mut unconfirmed = Unconfirmed::default();
        let (parcel, mut told) = parcel(&["a", "b"]);
        unconfirmed.accept(parcel);
        let said = said(&mut unconfirmed);
        assert_eq!(unconfirmed.confirmed(said[1].0, false, Instant::now()), Booked::Stored);
        assert!(told.try_recv().is_err(), "told too early");
        assert_eq!(unconfirmed.confirmed(said[0].0, false, Instant::now()), Booked::Stored);
        assert!(told.try_recv().unwrap().is_ok() && unconfirmed.is_empty());
    }

    #[test]
    fn a_returned_message_is_known_by_its_id_whichever_confirm_carried_it() {
        let mut unconfirmed = Unconfirmed::default();
        let (parcel, mut told) = parcel(&["routed", "unroutable"]);
        unconfirmed.accept(parcel);
        let said = said(&mut unconfirmed);
        // The confirm of the routed message brings the other one back.
        unconfirmed.came_back("unroutable");
        assert_eq!(unconfirmed.confirmed(said[0].0, false, Instant::now()), Booked::Stored);
        assert_eq!(unconfirmed.confirmed(said[1].0, false, Instant::now()), Booked::Unroutable(1));
        assert!(told.try_recv().is_err(), "a returned message is not stored");
        unconfirmed.refuse(said[1].0, QueueError::Topology("no queue".into()));
        assert!(matches!(told.try_recv().unwrap(), Err(QueueError::Topology(_))));
    }

    #[test]
    fn a_refused_message_rests_longer_each_time_and_is_said_again() {
        let mut unconfirmed = Unconfirmed::default();
        let (parcel, _told) = parcel(&["a", "b"]);
        unconfirmed.accept(parcel);
        let first = said(&mut unconfirmed);
        let now = Instant::now();
        assert_eq!(unconfirmed.confirmed(first[1].0, false, now), Booked::Stored);
        for pause in [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(Duration::from_millis) {
            assert_eq!(unconfirmed.confirmed(first[0].0, true, now), Booked::Again);
            assert_eq!(unconfirmed.wakes_at(), Some(now + pause));
            assert_eq!(unconfirmed.is_stuck(), pause >= Duration::from_millis(1600));
            unconfirmed.wake(now + pause - Duration::from_millis(1));
            assert!(said(&mut unconfirmed).is_empty(), "said before it has rested");
            unconfirmed.wake(now + pause);
            assert_eq!(said(&mut unconfirmed), first[..1]);
        }
        let (waiting, message) = unconfirmed.refused().unwrap();
        assert_eq!((waiting, message.id.as_str()), (1, "a"));
        unconfirmed.confirmed(first[0].0, false, now);
        assert!(unconfirmed.refused().is_none() && unconfirmed.is_empty());
    }

    #[test]
    fn a_message_that_nobody_waits_for_any_more_is_not_said_for_ever() {
        let mut unconfirmed = Unconfirmed::default();
        let (parcel, told) = parcel(&["a"]);
        unconfirmed.accept(parcel);
        let first = said(&mut unconfirmed);
        let now = Instant::now();
        unconfirmed.confirmed(first[0].0, true, now);
        drop(told);
        unconfirmed.wake(now + LONGEST_PAUSE);
        assert!(said(&mut unconfirmed).is_empty());
        assert!(unconfirmed.is_empty() && unconfirmed.refused().is_none());
        assert!(unconfirmed.callers.is_empty() && unconfirmed.resting.is_empty());
    }

    #[test]
    fn a_returned_message_takes_its_other_route_once() {
        let mut unconfirmed = Unconfirmed::default();
        let (mut parcel, mut told) = parcel(&["a"]);
        parcel.messages[0].otherwise = Some(Route { exchange: "other".into(), key: "way".into() });
        unconfirmed.accept(parcel);
        let (number, _) = unconfirmed.say_next().unwrap();
        unconfirmed.came_back("a");
        assert_eq!(unconfirmed.confirmed(number, false, Instant::now()), Booked::Again);
        let (number, message) = unconfirmed.say_next().unwrap();
        assert_eq!((message.exchange.as_str(), message.routing_key.as_str()), ("other", "way"));
        unconfirmed.came_back("a");
        assert_eq!(unconfirmed.confirmed(number, false, Instant::now()), Booked::Unroutable(1));
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn after_a_lost_channel_everything_unconfirmed_is_said_again_in_its_order() {
        let mut unconfirmed = Unconfirmed::default();
        let (first, _a) = parcel(&["a", "b"]);
        let (second, _b) = parcel(&["c", "d"]);
        unconfirmed.accept(first);
        unconfirmed.accept(second);
        let before = said(&mut unconfirmed);
        unconfirmed.confirmed(before[1].0, false, Instant::now());
        unconfirmed.all_again();
        let ids: Vec<String> = said(&mut unconfirmed).into_iter().map(|(_, id)| id).collect();
        assert_eq!(ids, ["a", "c", "d"]);
    }
}
