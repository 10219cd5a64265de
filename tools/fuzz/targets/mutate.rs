//! Changes to inputs that know how they are built.
//!
//! libFuzzer's own changes shift what follows; these keep records whole: they change one record, its fields of two and four
//! bytes, its control byte, or the order of records.

use super::input::{Control, MAX_RECORD, MAX_RECORDS, push_record, records};
use oorandom::Rand32;

/// Values at which something happens, in fields of any size.
const EDGES: [u32; 20] = [
    0,
    1,
    2,
    7,
    8,
    20,
    28,
    40,
    59,
    60,
    0x7f,
    0x80,
    0xff,
    0x100,
    1480,
    1500,
    0x1fff,
    0x2000,
    0x7fff_ffff,
    0xffff_ffff,
];

/// Changes an input of records. `inside` changes the bytes of one record, up to a size.
pub fn mutate(
    input: &[u8],
    max: usize,
    seed: u32,
    mut inside: impl FnMut(&mut Vec<u8>, usize),
) -> Vec<u8> {
    let mut rng = Rand32::new(u64::from(seed));
    let mut all: Vec<(Control, Vec<u8>)> = records(input)
        .map(|record| (record.control, record.bytes.to_vec()))
        .collect();
    if all.is_empty() {
        all.push((Control::USUAL, Vec::new()));
    }
    let mut below = |n: usize| rng.rand_range(0..n.max(1) as u32) as usize;
    let at = below(all.len());
    let other = below(all.len());
    match below(12) {
        0 => all.swap(at, other),
        1 if all.len() > 1 => _ = all.remove(at),
        2 if all.len() < MAX_RECORDS => {
            let copy = all[at].clone();
            all.insert(other, copy);
        }
        3 => all[at].0 = Control(below(256) as u8),
        4 | 5 => {
            let size = [1, 2, 2, 4][below(4)];
            let bytes = &mut all[at].1;
            // Most fields stand at a multiple of their size, and near the front.
            let end = if below(2) == 0 { 64 } else { bytes.len() };
            let place = below(end.min(bytes.len())) / size * size;
            let value = EDGES[below(EDGES.len())].to_be_bytes();
            if let Some(field) = bytes.get_mut(place..place + size) {
                field.copy_from_slice(&value[4 - size..]);
            }
        }
        6 => {
            // A piece of one record into another.
            let piece = all[other].1.clone();
            let from = below(piece.len());
            let len = below(piece.len() - from + 1).min(64);
            let bytes = &mut all[at].1;
            let to = below(bytes.len() + 1);
            bytes.splice(to..to, piece[from..from + len].iter().copied());
        }
        7 => {
            let len = below(all[at].1.len() + 1);
            all[at].1.truncate(len);
        }
        8 => {
            let len = (all[at].1.len() + 1 + below(600)).min(MAX_RECORD);
            all[at].1.resize(len, 0x5a);
        }
        _ => inside(&mut all[at].1, MAX_RECORD),
    }
    let mut out = Vec::with_capacity(input.len() + 64);
    for (control, bytes) in &all {
        if out.len() + 3 + bytes.len() > max {
            break;
        }
        push_record(&mut out, *control, bytes);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_stay_whole_and_within_the_size() {
        let mut input = Vec::new();
        for len in [0, 5, 40, 300] {
            push_record(&mut input, Control::USUAL, &vec![7; len]);
        }
        let mut lens = Vec::new();
        for seed in 0..2000 {
            let changed = mutate(&input, 1000, seed, |bytes, _| bytes.push(1));
            assert!(changed.len() <= 1000);
            let read: usize = records(&changed).map(|r| r.bytes.len() + 3).sum();
            assert_eq!(read, changed.len());
            lens.push(records(&changed).count());
        }
        assert!(lens.contains(&3) && lens.contains(&4) && lens.contains(&5));
    }
}
