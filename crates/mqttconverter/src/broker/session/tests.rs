use super::*;
use messagepipeline::{Attributes, IdGenerator, MessageId, Timestamp};
use proptest::prelude::*;

const LIMITS: Limits = Limits { messages: 4, bytes: 1 << 20 };

fn arrival(packet_id: u16, dup: bool, payload: &'static str) -> Arrival {
    let mut message = Message::new(IdGenerator::default().next_id(), payload, Timestamp::default());
    message.attributes = Attributes::from_iter([(names::TOPIC, "t")]);
    Arrival { packet_id, dup, message }
}

fn settle(session: &mut Session, token: Token, verdict: Verdict) {
    session.settle(&[Settlement { token, verdict }], Instant::now());
}

fn take(session: &mut Session) -> Vec<Delivery> {
    session.take(Instant::now(), 100)
}

fn acks(session: &mut Session) -> Vec<u16> {
    let mut packet_ids = Vec::new();
    session.take_acks(&mut packet_ids);
    packet_ids
}

#[tokio::test(start_paused = true)]
async fn pubacks_leave_in_order_of_receipt_whatever_the_order_of_the_verdicts() {
    let mut session = Session::new(LIMITS);
    for packet_id in [7, 3, 9] {
        session.receive(arrival(packet_id, false, "x"));
    }
    let out = take(&mut session);
    settle(&mut session, out[2].token, Verdict::Ack);
    settle(&mut session, out[1].token, Verdict::Ack);
    assert!(acks(&mut session).is_empty());
    settle(&mut session, out[0].token, Verdict::Ack);
    assert_eq!(acks(&mut session), [7, 3, 9]);
}

#[tokio::test(start_paused = true)]
async fn the_window_is_the_distance_between_the_newest_and_the_oldest_unsettled() {
    let mut session = Session::new(LIMITS);
    for packet_id in 1..=4 {
        session.receive(arrival(packet_id, false, "x"));
    }
    let out = take(&mut session);
    for delivery in &out[1..] {
        settle(&mut session, delivery.token, Verdict::Ack);
    }
    acks(&mut session);
    assert_eq!(session.room().0, 0);
    settle(&mut session, out[0].token, Verdict::Ack);
    acks(&mut session);
    assert_eq!(session.room().0, 4);
}

#[tokio::test(start_paused = true)]
async fn the_window_is_bounded_in_bytes_and_always_lets_one_message_in() {
    let mut session = Session::new(Limits { messages: 100, bytes: 300 });
    session.receive(arrival(1, false, "x"));
    assert!(session.room().1 < 300);
    session.receive(arrival(2, false, "x"));
    assert_eq!(session.room().1, 0);
    for delivery in take(&mut session) {
        settle(&mut session, delivery.token, Verdict::Ack);
    }
    acks(&mut session);
    assert_eq!(session.room(), (100, 300));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_back_keeps_its_id_and_waits_longer_each_time() {
    let mut session = Session::new(LIMITS);
    session.receive(arrival(1, false, "x"));
    let first = take(&mut session);
    settle(&mut session, first[0].token, Verdict::Nack);
    assert!(take(&mut session).is_empty());
    assert_eq!(session.next_due(), Some(Instant::now() + Duration::from_secs(1)));
    tokio::time::advance(Duration::from_secs(1)).await;
    let second = take(&mut session);
    assert_eq!((second[0].message.id, second[0].message.attempt), (first[0].message.id, 2));
    settle(&mut session, second[0].token, Verdict::Nack);
    assert_eq!(session.next_due(), Some(Instant::now() + Duration::from_secs(2)));
    tokio::time::advance(Duration::from_secs(2)).await;
    let third = take(&mut session);
    settle(&mut session, third[0].token, Verdict::Return);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(take(&mut session)[0].message.attempt, 3);
}

#[tokio::test(start_paused = true)]
async fn a_copy_on_a_resumed_session_takes_the_place_of_what_is_still_here() {
    let mut session = Session::new(LIMITS);
    session.receive(arrival(1, false, "a"));
    session.receive(arrival(2, false, "b"));
    let out = take(&mut session);
    settle(&mut session, out[1].token, Verdict::Ack);
    session.disconnected();
    assert!(!session.connected(true));
    assert_eq!(session.receive(arrival(1, true, "a")), Received::Repeated);
    assert_eq!(session.receive(arrival(2, true, "b")), Received::Repeated);
    assert!(take(&mut session).is_empty());
    settle(&mut session, out[0].token, Verdict::Ack);
    assert_eq!(acks(&mut session), [1, 2]);
    assert_eq!(session.receive(arrival(1, true, "a")), Received::Redelivered);
}

#[tokio::test(start_paused = true)]
async fn other_bytes_or_no_dup_flag_are_a_message_of_their_own() {
    let mut session = Session::new(LIMITS);
    session.receive(arrival(1, false, "a"));
    let out = take(&mut session);
    session.disconnected();
    session.connected(true);
    assert_eq!(session.receive(arrival(1, true, "other")), Received::Redelivered);
    assert_eq!(session.receive(arrival(2, false, "a")), Received::New);
    settle(&mut session, out[0].token, Verdict::Ack);
    assert!(acks(&mut session).is_empty());
    assert_eq!(take(&mut session).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_verdict_reaches_a_session_that_the_broker_has_forgotten() {
    let mut session = Session::new(LIMITS);
    session.receive(arrival(1, false, "a"));
    session.receive(arrival(2, false, "b"));
    let out = take(&mut session);
    session.disconnected();
    assert!(session.connected(false));
    assert_eq!(session.receive(arrival(1, false, "c")), Received::New);
    settle(&mut session, out[0].token, Verdict::Ack);
    settle(&mut session, out[1].token, Verdict::Nack);
    assert!(acks(&mut session).is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    let again = take(&mut session);
    let payloads: Vec<_> = again.iter().map(|delivery| &delivery.message.payload[..]).collect();
    assert_eq!(payloads, [&b"c"[..], b"b"], "what only lives here is handed out again");
}

/// What may happen to a session.
#[derive(Clone, Debug)]
enum Step {
    Publish,
    Take,
    Settle(usize, Verdict),
    Write,
    Reconnect { present: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![3 => Just(Verdict::Ack), 1 => Just(Verdict::Nack), 1 => Just(Verdict::Return)];
    prop_oneof![
        4 => Just(Step::Publish),
        3 => Just(Step::Take),
        4 => (any::<usize>(), verdict).prop_map(|(at, verdict)| Step::Settle(at, verdict)),
        3 => Just(Step::Write),
        1 => any::<bool>().prop_map(|present| Step::Reconnect { present }),
    ]
}

/// A broker that keeps what has no PUBACK and sends it again when the session is resumed.
#[derive(Default)]
struct Broker {
    unacked: Vec<(u16, &'static str)>,
    sent: usize,
}

impl Broker {
    fn publish(&mut self, session: &mut Session) {
        const PAYLOADS: [&str; 3] = ["a", "b", "c"];
        let free = (1..).find(|id| self.unacked.iter().all(|(used, _)| used != id));
        let packet_id = free.expect("never more than the window");
        let payload = PAYLOADS[self.sent % PAYLOADS.len()];
        self.sent += 1;
        self.unacked.push((packet_id, payload));
        session.receive(arrival(packet_id, false, payload));
    }
}

proptest! {
    /// Over any course of events: never a PUBACK the broker does not wait for or out of order, never one without the
    /// pipeline's word, and everything comes to its PUBACK in the end.
    #[test]
    fn every_course_of_events_ends_with_each_message_acknowledged_once_per_connection(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut session = Session::new(LIMITS);
        let mut broker = Broker::default();
        let mut out: Vec<Delivery> = Vec::new();
        let mut acked: Vec<MessageId> = Vec::new();
        let mut now = Instant::now();
        let ending = (0..8).flat_map(|_| [Step::Take, Step::Settle(usize::MAX, Verdict::Ack), Step::Write]);
        for step in steps.into_iter().chain(ending) {
            match step {
                Step::Publish if session.room().0 > 0 && broker.unacked.len() < LIMITS.messages => {
                    broker.publish(&mut session);
                }
                Step::Publish => {}
                Step::Take => {
                    now += RETRY_MAX;
                    out.extend(session.take(now, 3));
                }
                Step::Settle(usize::MAX, verdict) => {
                    for delivery in out.drain(..) {
                        session.settle(&[Settlement { token: delivery.token, verdict }], now);
                    }
                }
                Step::Settle(at, verdict) => {
                    if !out.is_empty() {
                        let delivery = out.remove(at % out.len());
                        let settlement = Settlement { token: delivery.token, verdict };
                        session.settle(&[settlement, settlement], now);
                        if verdict == Verdict::Ack {
                            prop_assert!(!acked.contains(&delivery.message.id), "taken twice after its ack");
                            acked.push(delivery.message.id);
                        }
                    }
                }
                Step::Write => {
                    for packet_id in acks(&mut session) {
                        prop_assert_eq!(broker.unacked.first().map(|(id, _)| *id), Some(packet_id));
                        broker.unacked.remove(0);
                    }
                }
                Step::Reconnect { present } => {
                    session.disconnected();
                    session.connected(present);
                    if !present {
                        broker.unacked.clear();
                    }
                    for (packet_id, payload) in &broker.unacked {
                        session.receive(arrival(*packet_id, true, payload));
                    }
                }
            }
        }
        prop_assert!(broker.unacked.is_empty(), "without PUBACK: {:?}", broker.unacked);
        prop_assert_eq!(session.unwritten_acks(), 0);
        prop_assert_eq!(session.slots.len(), 0);
        prop_assert_eq!(session.weight, 0);
    }
}
