use super::*;

/// Runs of `cargo test`; `cargo xtask soak` makes 2,000.
const RUNS: u64 = 200;

#[test]
fn every_byte_arrives_once_and_in_order_or_the_connection_is_dead() {
    let failed: Vec<String> = (1..=RUNS)
        .filter_map(|seed| run(seed, None).err())
        .map(|e| format!("{e:#}"))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_same_seed_does_the_same_again_frame_by_frame() {
    for seed in 1..=10 {
        assert_eq!(run(seed, None).unwrap(), run(seed, None).unwrap());
    }
    let digest = |seed| run(seed, None).unwrap().digest;
    assert_ne!(digest(1), digest(2));
}
