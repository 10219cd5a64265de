//! Locks that all CPUs want at once.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_synch::pause_sbt;
use sys::kern::kern_thread::{Pri, kthread_add};
use sys::kern::lock_order::Leaf;
use sys::machine;
use sys::machine::atomic::{AtomicBool, AtomicU64, Ordering};
use sys::time::Sbintime;

/// Lets a thread of each CPU add to one number under one mutex, and compares it with what they say they added.
pub(super) fn torture(time: Sbintime) -> Result<String, String> {
    let shared = Arc::new((Mutex::<u64, Leaf>::new(0), AtomicBool::new(false)));
    let said = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..machine::ncpus())
        .map(|cpu| {
            let (shared, said) = (Arc::clone(&shared), Arc::clone(&said));
            kthread_add("adder", Pri::PUSER, Some(cpu), move || {
                let (number, stop) = &*shared;
                let mut added = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    *number.lock() += 1;
                    added += 1;
                    if added.is_multiple_of(1_000) {
                        pause_sbt("adder", Sbintime::from_us(10));
                    }
                }
                said.fetch_add(added, Ordering::Relaxed);
            })
        })
        .collect();
    pause_sbt("torture", time);
    shared.1.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join());
    let (number, said) = (*shared.0.lock(), said.load(Ordering::Relaxed));
    if number == said {
        Ok(format!("{number} additions under one mutex"))
    } else {
        Err(format!("{said} additions made {number}"))
    }
}
