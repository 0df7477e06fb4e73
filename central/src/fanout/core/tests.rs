use super::*;
use record::clock::{Random as _, SeededRandom};

const PACE: Pace = Pace { linger_ns: 50, backoff_min_ns: 10, backoff_max_ns: 100 };

/// A log of records with some rows each, what was published of it, and where that left it.
struct Model {
    /// Offset and rows; offsets have gaps.
    records: Vec<(Offset, u32)>,
    published: Vec<(Offset, u32)>,
    committed: Option<Committed>,
}

impl Model {
    /// Rows from a position on, as many as fit.
    fn portion(&self, from: Position, held: Offset, rows_max: usize) -> (Vec<(Offset, u32)>, Portion) {
        let (mut rows, mut next) = (Vec::new(), from);
        for (offset, count) in self.records.iter().filter(|(o, _)| (from.offset..held).contains(o)) {
            let first = if *offset == from.offset { from.row } else { 0 };
            for row in first..*count {
                if rows.len() == rows_max {
                    return (rows, Portion { next: Position { offset: *offset, row }, left: true });
                }
                rows.push((*offset, row));
            }
            next = Position::at(offset.next());
        }
        (rows, Portion { next, left: false })
    }
}

/// Lanes come and go, commits fail before or after they were stored; each row is published once.
#[test]
fn each_row_is_published_once_whatever_fails() {
    for seed in 0..300 {
        let random = SeededRandom::new(seed);
        let below = |n: u64| random.next_u64() % n;
        let mut at = 0;
        let records: Vec<(Offset, u32)> = (0..30)
            .map(|_| {
                at += 1 + below(3);
                (Offset(at), 1 + below(9) as u32)
            })
            .collect();
        let high = Offset(at + 2);
        let all: Vec<(Offset, u32)> =
            records.iter().flat_map(|(o, rows)| (0..*rows).map(|row| (*o, row))).collect();
        let mut model = Model { records, published: Vec::new(), committed: None };
        let (mut lane, mut now, mut held) = (Lane::new(PACE), 0, Offset(0));
        for step in 0.. {
            assert!(step < 20_000, "seed {seed}: it does not end");
            if below(40) == 0 {
                lane = Lane::new(PACE);
            }
            now += below(20);
            match lane.step(now, high) {
                Step::Claim if below(5) == 0 => lane.on_claim(now, Err("claim".into())),
                Step::Claim => {
                    let position = model.committed.as_ref().map_or(Ok(Position::default()), Position::decode);
                    lane.on_claim(now, position);
                }
                Step::Read(_) if below(10) == 0 => lane.on_read(now, Err("read".into())),
                Step::Read(from) => {
                    let some = model.records.iter().filter(|(o, _)| *o >= from).take(3);
                    let last = some.last().map(|(o, _)| *o);
                    held = last.map_or(from, Offset::next);
                    let full = below(2) == 0;
                    lane.on_read(now, Ok(if last.is_some() { Read::Some { full } } else { Read::Nothing }));
                }
                Step::Publish(from) => {
                    let (rows, portion) = model.portion(from, held, 1 + below(12) as usize);
                    let (stored, told) = (below(8) != 0, below(8) != 0);
                    if stored {
                        model.published.extend(rows);
                        let metadata = portion.next.metadata();
                        model.committed = Some(Committed { offset: portion.next.offset, metadata });
                    }
                    lane.on_publish(now, if stored && told { Ok(portion) } else { Err("unknown".into()) });
                }
                Step::Wait(_) => break,
                Step::Sleep(until) => now = until,
            }
        }
        assert_eq!(model.published, all, "seed {seed}");
    }
}

#[test]
fn small_portions_wait_for_company_and_full_ones_do_not() {
    let mut lane = Lane::new(PACE);
    lane.on_claim(0, Ok(Position::at(Offset(5))));
    assert_eq!(lane.step(0, Offset(9)), Step::Read(Offset(5)));
    lane.on_read(0, Ok(Read::Some { full: false }));
    assert_eq!(
        lane.step(0, Offset(9)),
        Step::Publish(Position::at(Offset(5))),
        "the first one does not wait"
    );
    lane.on_publish(100, Ok(Portion { next: Position::at(Offset(7)), left: false }));
    lane.on_read(100, Ok(Read::Some { full: false }));
    assert_eq!(lane.step(110, Offset(9)), Step::Sleep(150));
    lane.on_read(100, Ok(Read::Some { full: true }));
    assert_eq!(lane.step(110, Offset(9)), Step::Publish(Position::at(Offset(7))));
}

#[test]
fn what_was_removed_is_told_and_passed() {
    let mut lane = Lane::new(PACE);
    lane.on_claim(0, Ok(Position { offset: Offset(5), row: 3 }));
    lane.on_read(0, Ok(Read::Trimmed(Offset(50))));
    assert_eq!(lane.take_events(), [Event::Missed(Offset(5), Offset(50))]);
    assert_eq!(lane.step(0, Offset(60)), Step::Read(Offset(50)));
    lane.on_read(0, Ok(Read::Nothing));
    assert_eq!(lane.step(0, Offset(60)), Step::Wait(None), "a log may end in a gap");
    assert_eq!(lane.step(0, Offset(61)), Step::Read(Offset(50)));
}

#[test]
fn positions_round_trip_and_others_are_refused() {
    for position in [Position::at(Offset(7)), Position { offset: Offset(7), row: 16_383 }] {
        let committed = Committed { offset: position.offset, metadata: position.metadata() };
        assert_eq!(Position::decode(&committed), Ok(position));
    }
    for other in ["2 5", "1 0", "1 x", "5", "1 99999999999"] {
        let committed = Committed { offset: Offset(7), metadata: other.to_owned() };
        assert!(Position::decode(&committed).is_err(), "{other}");
    }
}
