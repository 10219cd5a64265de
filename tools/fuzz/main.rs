//! Sends malformed frames at the stack in this process, as many as asked for.

use clap::Parser;

/// Sends malformed frames at a stack in this process, in virtual time. Panics if the stack does.
#[derive(Parser)]
struct Args {
    /// All frames follow from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many frames
    #[arg(long, default_value_t = 100_000)]
    frames: u64,
}

fn main() {
    let args = Args::parse();
    let began = std::time::Instant::now();
    // Each machine lives for a part of the frames, so that what lingers in one does not hide what the next would do.
    const PART: u64 = 20_000;
    let mut total = fuzz::hosted::Outcome::default();
    let mut seed = args.seed.wrapping_mul(1_000_003);
    while total.frames < args.frames {
        let frames = PART.min(args.frames - total.frames);
        let outcome = fuzz::hosted::run(seed, frames);
        total.frames += outcome.frames;
        total.answers += outcome.answers;
        total.counted += outcome.counted;
        total.accepted += outcome.accepted;
        seed = seed.wrapping_add(1);
    }
    println!(
        "{} frames, {} answers, {} connections accepted, {} drops counted, {:.1} s",
        total.frames,
        total.answers,
        total.accepted,
        total.counted,
        began.elapsed().as_secs_f64()
    );
}
