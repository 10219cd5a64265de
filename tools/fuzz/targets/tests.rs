//! The targets on their first inputs, and what was found with them.

use super::*;
use std::path::Path;

/// The repository's own scripts.
fn scripts() -> Vec<String> {
    let dir = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../netinet/tests/packetdrill"
    );
    let found = packetdrill::suite::find(&[Path::new(dir).to_path_buf()]).unwrap();
    let read = |entry: packetdrill::suite::Entry| std::fs::read_to_string(entry.path).unwrap();
    found.into_iter().map(read).collect()
}

fn seeds_of(target: &Target) -> Vec<Vec<u8>> {
    let mut all = seeds::built_in(target);
    for script in scripts() {
        all.extend(seeds::from_script(target, &script));
    }
    all
}

/// Feeds a target its first inputs, whole and spoilt.
fn feed(target: &Target, spoilt: u32) {
    let inputs = seeds_of(target);
    assert!(!inputs.is_empty(), "{} has no seeds", target.name);
    target.with_runner(|mut runner| {
        for input in &inputs {
            runner.run(input);
        }
        for seed in 0..spoilt {
            let input = &inputs[seed as usize % inputs.len()];
            runner.run(&mutate::mutate(input, 4096, seed, |bytes, _| {
                let at = seed as usize % bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (seed % 8);
                }
            }));
        }
        runner.finish();
    });
}

#[test]
fn parsers_of_frames_hold_their_properties_on_the_seeds() {
    for target in TARGETS {
        if let Kind::Frames(_) = target.kind {
            feed(target, 200);
        }
    }
}

#[test]
fn parsers_without_a_stack_hold_their_properties_on_the_seeds() {
    for target in TARGETS {
        if let Kind::Pure(_) = target.kind {
            feed(target, 0);
        }
    }
}

#[test]
fn connections_hold_their_properties_on_the_seeds() {
    for target in TARGETS {
        if let Kind::Program(_) = target.kind {
            feed(target, 0);
        }
    }
}

#[test]
fn a_segment_from_or_to_a_broadcast_address_is_refused_without_a_word() {
    find("ipv4").unwrap().with_runner(|mut runner| {
        for (from, to) in [
            ([10, 0, 0, 255], [10, 0, 0, 2]),
            ([10, 0, 1, 0], [10, 0, 0, 255]),
        ] {
            let mut input = vec![2, 0, 75];
            input.extend([0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0]);
            input.extend(from);
            input.extend(to);
            input.resize(3 + 75, 0x5a);
            runner.run(&input);
        }
        runner.finish();
    });
}

#[test]
fn a_syn_to_no_address_begins_no_connection() {
    // With the address filled in by the way out, the checksum of the answer was that of another packet.
    let input = [
        0xbc, 0, 0x2c, 0x45, 0, 0, 0, 0, 1, 0, 0, 0x40, 6, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0, 0x2f,
        0xa0, 0x14, 0x51, 0, 0, 0, 7, 0, 0, 0xff, 0xff, 0x60, 2, 0xff, 7, 0, 0, 0, 0, 2, 4, 0xff,
        0x13,
    ];
    find("ipv4").unwrap().with_runner(|mut runner| {
        runner.run(&input);
        runner.finish();
    });
}

#[test]
fn a_target_is_found_by_its_name() {
    for target in TARGETS {
        assert_eq!(find(target.name).map(|t| t.name), Some(target.name));
    }
    assert!(find("nothing").is_none());
}
