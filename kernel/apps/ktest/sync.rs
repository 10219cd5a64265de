//! Sleeping and waking across CPUs.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use sys::kern::kern_mutex::{Mutex, MutexGuard};
use sys::kern::kern_synch::{PSOCK, WChan, pause_sbt, wakeup};
use sys::kern::kern_thread::{Pri, kthread_add};
use sys::kern::lock_order::Leaf;
use sys::machine;
use sys::time::Sbintime;

/// A sleep of a thread whose turn it is must end long before this.
const STUCK: Sbintime = Sbintime::from_s(5);

pub(super) fn torture(time: Sbintime) -> Result<String, String> {
    let turns = ring(time)?;
    Ok(format!("{turns} turns around {} CPUs", machine::ncpus()))
}

/// A token goes around the CPUs; each waits asleep until it comes.
fn ring(time: Sbintime) -> Result<u64, String> {
    let cpus = machine::ncpus() as u64;
    let end = machine::sbinuptime() + time;
    let token = Arc::new(Mutex::<u64, Leaf>::new(0));
    let results = Arc::new(Mutex::<Vec<String>, Leaf>::new(Vec::new()));
    let threads: Vec<_> = (0..cpus)
        .map(|me| {
            let (token, results) = (Arc::clone(&token), Arc::clone(&results));
            kthread_add("ring", Pri::PUSER, Some(me as usize), move || {
                let chan = WChan::of(&*token);
                while machine::sbinuptime() < end {
                    let mut at = token.lock();
                    while *at % cpus != me && machine::sbinuptime() < end {
                        let (again, slept) =
                            MutexGuard::msleep(at, chan, PSOCK, "ring", Some(STUCK), false);
                        at = again;
                        if slept.is_err() && *at % cpus == me {
                            results
                                .lock()
                                .push(format!("CPU {me} was not woken for its turn"));
                        }
                    }
                    if *at % cpus == me {
                        *at += 1;
                    }
                    drop(at);
                    wakeup(chan);
                    if machine::random_u64().is_multiple_of(64) {
                        pause_sbt("ring", Sbintime::from_us(20));
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join());
    if let Some(trouble) = results.lock().pop() {
        return Err(trouble);
    }
    Ok(*token.lock())
}
