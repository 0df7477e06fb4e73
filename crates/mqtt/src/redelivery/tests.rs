use super::*;
use crate::limits::{IN_FLIGHT_JUDGED_MAX, OTHER_IDS_IN_FLIGHT};
use crate::packet::PacketId;
use crate::session::Ticket;

const CLIENT: ClientKey = ClientKey(1);
const BOUND: u16 = 4;
/// Publishes that are not certain at the head of a session.
const UNCERTAIN: u16 = BOUND + OTHER_IDS_IN_FLIGHT;

fn id(n: u16) -> PacketId {
    PacketId::new(n).unwrap()
}

fn stored(window: &mut Window, client: ClientKey, ids: impl IntoIterator<Item = u16>, ticket: u64) {
    let mut run = Run::continued(client, true, BOUND);
    for n in ids {
        run.push(id(n), u64::from(n));
    }
    window.record(&run, Ticket(ticket));
}

fn judge(window: &Window, n: u16) -> Verdict {
    window.judge(CLIENT, id(n), u64::from(n), BOUND, Ticket(9))
}

fn copy(window: &Window, through: u64) -> Window {
    let mut bytes = Vec::new();
    window.encode(Ticket(through), &mut bytes);
    Window::decode(&bytes, Limits::default()).unwrap()
}

#[test]
fn certain_only_behind_the_first_publishes_of_a_count() {
    let mut window = Window::new(Limits::default());
    stored(&mut window, CLIENT, 1..=100, 3);
    for n in 1..=UNCERTAIN {
        assert_eq!(judge(&window, n), Verdict::Store, "{n}");
    }
    for n in UNCERTAIN + 1..=100 {
        assert_eq!(judge(&window, n), Verdict::Repeat(Ticket(3)), "{n}");
    }
    assert_eq!(judge(&window, 101), Verdict::Store);
}

#[test]
fn what_is_not_durable_was_not_acknowledged_and_is_a_repeat_always() {
    let mut window = Window::new(Limits::default());
    stored(&mut window, CLIENT, [1], 5);
    assert_eq!(window.judge(CLIENT, id(1), 1, BOUND, Ticket(4)), Verdict::Repeat(Ticket(5)));
    assert_eq!(window.judge(CLIENT, id(1), 2, BOUND, Ticket(4)), Verdict::Store);
    assert_eq!(window.judge(CLIENT, id(1), 1, BOUND, Ticket(5)), Verdict::Store);
}

#[test]
fn another_payload_another_client_or_a_larger_bound_is_no_repeat() {
    let mut window = Window::new(Limits::default());
    stored(&mut window, CLIENT, 1..=100, 1);
    assert_eq!(window.judge(CLIENT, id(90), 91, BOUND, Ticket(9)), Verdict::Store);
    assert_eq!(window.judge(ClientKey(2), id(90), 90, BOUND, Ticket(9)), Verdict::Store);
    assert_eq!(window.judge(CLIENT, id(90), 90, 90, Ticket(9)), Verdict::Store);
    assert_eq!(window.judge(CLIENT, id(90), 90, IN_FLIGHT_JUDGED_MAX + 1, Ticket(9)), Verdict::Store);
    window.record(&Run { records: vec![(id(101), 0)], ..Run::continued(CLIENT, true, 90) }, Ticket(2));
    assert_eq!(judge(&window, 90), Verdict::Store, "a bound once seen stays");
}

#[test]
fn ids_go_round_at_65535() {
    let mut window = Window::new(Limits::default());
    stored(&mut window, CLIENT, (65_000..=65_535).chain(1..=50), 1);
    for n in [65_535, 65_100, 1, 50] {
        assert_eq!(judge(&window, n), Verdict::Repeat(Ticket(1)), "{n}");
    }
    assert_eq!(judge(&window, 51), Verdict::Store);
    assert_eq!(judge(&window, 64_999), Verdict::Store);
}

#[test]
fn an_interruption_starts_the_count_anew() {
    for next in [1, 100, 99, 117, 60_000] {
        let mut window = Window::new(Limits::default());
        stored(&mut window, CLIENT, 1..=100, 1);
        stored(&mut window, CLIENT, [next], 2);
        assert_eq!(judge(&window, 50), Verdict::Store, "after {next}");
        assert_eq!(window.records(), 1);
    }
    let mut window = Window::new(Limits::default());
    stored(&mut window, CLIENT, 1..=100, 1);
    stored(&mut window, CLIENT, [116], 2);
    assert_eq!(judge(&window, 50), Verdict::Repeat(Ticket(1)), "a small gap is no interruption");
}

#[test]
fn clean_start_forgets() {
    let mut window = Window::new(Limits::default());
    stored(&mut window, CLIENT, 1..=100, 1);
    assert!(window.knows(CLIENT));
    window.record(&Run::opened(CLIENT, false, BOUND), Ticket(2));
    assert_eq!(judge(&window, 90), Verdict::Store);
    assert!(!window.knows(CLIENT));
    assert_eq!((window.records(), window.clients()), (0, 1));
}

#[test]
fn checkpoint_leaves_out_what_is_not_durable() {
    let mut window = Window::new(Limits::default());
    stored(&mut window, CLIENT, 1..=100, 1);
    stored(&mut window, CLIENT, 101..=110, 2);
    let restored = copy(&window, 1);
    assert_eq!(judge(&restored, 100), Verdict::Repeat(Ticket(0)));
    assert_eq!(judge(&restored, 101), Verdict::Store);
    assert_eq!(judge(&restored, UNCERTAIN), Verdict::Store);
    let mut restored = restored;
    stored(&mut restored, CLIENT, 101..=110, 5);
    assert_eq!(judge(&restored, 101), Verdict::Repeat(Ticket(5)));
    assert_eq!(judge(&copy(&window, 2), 110), Verdict::Repeat(Ticket(0)));
}

#[test]
fn checkpoint_keeps_the_count_when_old_records_are_gone() {
    let limits = Limits { records_per_client: 10, ..Limits::default() };
    let mut window = Window::new(limits);
    stored(&mut window, CLIENT, 1..=30, 1);
    stored(&mut window, CLIENT, 31..=35, 2);
    let restored = copy(&window, 1);
    assert_eq!(judge(&restored, 30), Verdict::Repeat(Ticket(0)));
    stored(&mut window, CLIENT, 36..=60, 3);
    let mut restored = copy(&window, 1);
    assert_eq!((restored.records(), restored.clients()), (0, 1));
    stored(&mut restored, CLIENT, 36..=40, 1);
    assert_eq!(judge(&restored, 40), Verdict::Store);
}

#[test]
fn an_unrecorded_session_is_not_in_the_checkpoint() {
    let mut window = Window::new(Limits::default());
    window.record(&Run::opened(CLIENT, true, BOUND), Ticket(7));
    assert!(window.knows(CLIENT));
    assert!(!copy(&window, 6).knows(CLIENT));
    assert!(copy(&window, 7).knows(CLIENT));
}

#[test]
fn bounds_hold_and_the_longest_silent_goes_first() {
    let mut window = Window::new(Limits { records_per_client: 10, records_total: 35, clients: 100 });
    for client in 0..4 {
        stored(&mut window, ClientKey(client), 1..=20, 1);
    }
    assert_eq!((window.clients(), window.records()), (3, 30));
    assert!(!window.knows(ClientKey(0)));
    stored(&mut window, ClientKey(1), [21], 1);
    stored(&mut window, ClientKey(9), 1..=9, 1);
    assert!(window.knows(ClientKey(1)) && !window.knows(ClientKey(2)));
    let mut window = Window::new(Limits { clients: 2, ..Limits::default() });
    for client in 0..5 {
        window.record(&Run::opened(ClientKey(client), true, BOUND), Ticket(1));
    }
    assert_eq!(window.clients(), 2);
    assert!(window.knows(ClientKey(4)) && window.knows(ClientKey(3)));
}

#[test]
fn runs_and_windows_survive_their_bytes() {
    let mut run = Run::opened(ClientKey::of("floor", "dev"), true, 9);
    run.push(id(65_535), 1);
    run.push(id(1), u64::MAX);
    let mut bytes = Vec::new();
    run.encode(&mut bytes);
    run.encode(&mut bytes);
    let mut rest = bytes.as_slice();
    assert_eq!(Run::decode(&mut rest).as_ref(), Ok(&run));
    assert_eq!(Run::decode(&mut rest).as_ref(), Ok(&run));
    assert!(rest.is_empty());
    for cut in 0..bytes.len() / 2 {
        assert_eq!(Run::decode(&mut &bytes[..cut]), Err(WindowError::CutShort), "{cut}");
    }
}

#[test]
fn bad_checkpoints_are_refused() {
    let mut window = Window::new(Limits::default());
    stored(&mut window, CLIENT, 1..=3, 1);
    let mut bytes = Vec::new();
    window.encode(Ticket(1), &mut bytes);
    for cut in 0..bytes.len() {
        assert!(Window::decode(&bytes[..cut], Limits::default()).is_err(), "{cut}");
    }
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        Window::decode(&bytes, Limits::default()).unwrap_err()
    };
    assert_eq!(with(0, 2), WindowError::Version(2));
    assert_eq!(with(21, 0xff), WindowError::Invalid("unknown flags"));
    assert_eq!(with(24, 2), WindowError::Invalid("more records than publishes"));
    assert_eq!(with(36, 0), WindowError::Invalid("packet id 0"));
    assert_eq!(with(46, 1), WindowError::Invalid("packet ids do not count up"));
    assert_eq!(with(32, 2), WindowError::LeftOver(10));
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(Window::decode(&longer, Limits::default()).unwrap_err(), WindowError::LeftOver(1));
}

#[test]
fn client_ids_of_two_sources_are_two_clients() {
    assert_ne!(ClientKey::of("a", "dev"), ClientKey::of("b", "dev"));
    assert_eq!(ClientKey::of("a", "dev"), ClientKey::of("a", "dev"));
    assert_ne!(content_hash("a", b"bc"), content_hash("ab", b"c"));
}
