use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn written(window: &mut Window) -> Vec<(u16, u8)> {
    let mut out = Vec::new();
    window.write_ready(|answer| out.push((answer.packet_id, answer.code)));
    out
}

#[test]
fn pubacks_come_in_order_of_receipt_whatever_the_order_of_the_verdicts() {
    let mut window = Window::new(10);
    let [first, second, third] = [1, 2, 3].map(|id| window.take(id, 0, 1));
    window.refuse(4, false, 0x90);
    assert!(!window.settle(third, Verdict::Ack).reply_ready);
    assert!(!window.settle(second, Verdict::Ack).reply_ready);
    assert_eq!(written(&mut window), []);
    assert!(window.settle(first, Verdict::Ack).reply_ready);
    assert_eq!(written(&mut window), [(1, 0), (2, 0), (3, 0), (4, 0x90)]);
}

#[test]
fn a_repeated_publish_is_answered_on_the_new_connection_when_the_first_is_stored() {
    let mut window = Window::new(10);
    let first = window.take(7, 99, 1);
    window.attach(false);
    assert!(window.repeat(7, 99));
    assert!(window.repeat(7, 99), "twice on one connection is one PUBACK");
    window.settle(first, Verdict::Ack);
    assert_eq!(written(&mut window), [(7, 0)]);
    assert!(!window.repeat(7, 99), "after the PUBACK it is a new message");
}

#[test]
fn a_publish_stored_after_its_connection_died_is_answered_at_once_when_it_comes_again() {
    let mut window = Window::new(10);
    let first = window.take(7, 99, 1);
    window.detach();
    assert!(!window.settle(first, Verdict::Ack).reply_ready);
    window.attach(false);
    assert!(window.repeat(7, 99));
    assert_eq!(written(&mut window), [(7, 0)]);
}

#[test]
fn an_identifier_with_other_bytes_or_after_a_clean_start_is_another_message() {
    let mut window = Window::new(10);
    window.take(7, 99, 1);
    window.attach(false);
    assert!(!window.repeat(7, 98));
    window.take(7, 98, 1);
    window.attach(false);
    assert!(!window.repeat(7, 99), "the device has used the identifier anew");
    window.attach(true);
    assert!(!window.repeat(7, 98));
}

#[test]
fn a_failed_message_ends_its_connection_only_and_is_taken_again_when_it_comes_again() {
    let mut window = Window::new(10);
    let first = window.take(7, 99, 5);
    let settled = window.settle(first, Verdict::Nack);
    assert!(settled.failed && !settled.lost);
    assert_eq!(settled.weight, Some(5));
    assert_eq!(window.settle(first, Verdict::Ack), Settled::default(), "a second verdict has no effect");
    window.attach(false);
    assert!(!window.repeat(7, 99));
    let qos_0 = window.take(0, 0, 1);
    assert!(window.settle(qos_0, Verdict::Return).lost);
}

#[test]
fn what_is_stored_and_never_asked_for_again_cannot_block_the_session() {
    let mut window = Window::new(2);
    let stale = window.take(1, 1, 1);
    window.attach(false);
    window.settle(stale, Verdict::Ack);
    for id in 2..100 {
        assert!(window.room() > 0);
        let sequence = window.take(id, u64::from(id), 1);
        window.settle(sequence, Verdict::Ack);
        assert_eq!(written(&mut window), [(id, 0)]);
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Take(u16),
    TakeQos0,
    Repeat(usize),
    Settle(usize, Verdict),
    Write,
    Reconnect(bool),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (1..6_u16).prop_map(Operation::Take),
        1 => Just(Operation::TakeQos0),
        2 => (0..20_usize).prop_map(Operation::Repeat),
        4 => (0..20_usize, prop_oneof![Just(Verdict::Ack), Just(Verdict::Nack), Just(Verdict::Return)])
            .prop_map(|(index, verdict)| Operation::Settle(index, verdict)),
        2 => Just(Operation::Write),
        1 => any::<bool>().prop_map(Operation::Reconnect),
    ]
}

proptest! {
    /// Messages are numbered by their fingerprint. The model knows only what was acknowledged downstream.
    #[test]
    fn no_puback_is_written_for_a_message_that_is_not_stored(operations in proptest::collection::vec(operation(), 0..120)) {
        let mut window = Window::new(8);
        let mut sent: Vec<(u16, u64, Sequence)> = Vec::new();
        let mut stored: HashMap<u64, Verdict> = HashMap::new();
        let mut owed: VecDeque<(u16, u64)> = VecDeque::new();
        let mut released = 0;
        for operation in operations {
            match operation {
                Operation::Take(id) if window.reply_room() > 0 && window.room() > 0 => {
                    let number = sent.len() as u64;
                    sent.push((id, number, window.take(id, number, 1)));
                    owed.push_back((id, number));
                }
                Operation::TakeQos0 if window.room() > 0 => {
                    let number = sent.len() as u64;
                    sent.push((0, number, window.take(0, 0, 1)));
                }
                Operation::Repeat(index) => {
                    let Some(&(id, number, _)) = sent.get(index).filter(|(id, ..)| *id != 0) else { continue };
                    let already = owed.iter().any(|(_, owed)| *owed == number);
                    if window.reply_room() > 0 && window.repeat(id, number) && !already {
                        owed.push_back((id, number));
                    }
                }
                Operation::Settle(index, verdict) => {
                    let Some(&(_, number, sequence)) = sent.get(index) else { continue };
                    let settled = window.settle(sequence, verdict);
                    prop_assert_eq!(settled.weight.is_some(), !stored.contains_key(&number));
                    released += usize::from(settled.weight.is_some());
                    stored.entry(number).or_insert(verdict);
                }
                Operation::Write => {
                    for (id, code) in written(&mut window) {
                        let (owed_id, number) = owed.pop_front().unwrap();
                        prop_assert_eq!((id, code), (owed_id, 0));
                        prop_assert_eq!(stored.get(&number), Some(&Verdict::Ack));
                    }
                }
                Operation::Reconnect(clean) => {
                    window.attach(clean);
                    owed.clear();
                }
                _ => {}
            }
            prop_assert_eq!(window.in_pipeline(), sent.len() - released);
            prop_assert!(window.taken.len() <= window.limit);
            let unclaimed = window.taken.iter().filter(|taken| taken.is_unclaimed()).count();
            prop_assert_eq!(window.unclaimed, unclaimed);
        }
    }
}
