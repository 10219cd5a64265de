//! Measures the kernel's locks and zones, and the stack, on the native machine, beside what a program would use instead.
//!
//! Both sides run in one process, on the same kernel threads, in rounds that take turns, so that whatever else the host does
//! meets all alike. What is printed is the median of the rounds.

#[cfg(native)]
mod locks;
#[cfg(native)]
mod net;
#[cfg(native)]
mod rounds;
#[cfg(native)]
mod smoltcp;
#[cfg(native)]
mod stack;
#[cfg(native)]
mod table;
#[cfg(native)]
mod uma;

#[cfg(not(native))]
fn main() {
    eprintln!("bench: only on the native machine; run `cargo xtask bench`");
    std::process::exit(2);
}

#[cfg(native)]
fn main() {
    const SUBJECTS: [(&str, fn()); 3] = [
        ("locks", locks::measure),
        ("uma", uma::measure),
        ("net", net::measure),
    ];
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted
        .iter()
        .find(|w| SUBJECTS.iter().all(|(name, _)| name != w))
    {
        eprintln!("bench: no subject {unknown}");
        std::process::exit(2);
    }
    if cfg!(debug_assertions) {
        eprintln!(
            "bench: this build checks the order of locks and the use of memory; its figures mean nothing"
        );
    }
    let machine = sys::machine::native::Machine::builder();
    machine.cpus(2).memory(512 << 20).quiet().run(move || {
        sys::kern::kern_synch::sched_bind(0);
        for (name, measure) in SUBJECTS {
            if wanted.is_empty() || wanted.iter().any(|w| w == name) {
                measure();
            }
        }
    });
}
