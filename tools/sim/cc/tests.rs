//! Small versions of what `sim cc` measures at full size; the bounds are the same.

use super::*;

#[test]
fn newreno_under_periodic_loss_has_the_rate_of_mathis_formula() {
    for (every, losses) in [(100, 40), (200, 40), (1000, 8)] {
        check_mathis(every, losses).unwrap();
    }
}

#[test]
fn cubics_window_follows_its_curve() {
    check_curve(3).unwrap();
}

#[test]
fn two_newreno_flows_share_a_bottleneck_alike() {
    check_share("newreno", 1, 60).unwrap();
}

#[test]
fn two_cubic_flows_share_a_bottleneck_alike() {
    check_share("cubic", 1, 60).unwrap();
}

#[test]
fn a_burst_of_three_losses_is_repaired_without_a_timeout() {
    for algorithm in ["newreno", "cubic"] {
        for sack in [true, false] {
            check_burst(algorithm, sack).unwrap();
        }
    }
}
