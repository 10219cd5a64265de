//! What has to be undone however the tool ends: namespaces, sockets, guests.
//!
//! Each thing registers how to undo it and removes the entry when it does so itself. On Ctrl-C or a termination
//! signal all entries run, last registered first.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

type Undo = Box<dyn FnOnce() + Send>;

static ENTRIES: Mutex<Vec<(u64, Undo)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Exit code after a signal, as shells count it.
const INTERRUPTED: i32 = 130;

/// Something to undo; undone when dropped.
#[must_use]
pub struct Cleanup(u64);

impl Cleanup {
    /// Registers how to undo something.
    pub fn new(undo: impl FnOnce() + Send + 'static) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        entries().push((id, Box::new(undo)));
        Self(id)
    }

    /// Drops the entry without running it: there is nothing left to undo.
    pub fn forget(self) {
        entries().retain(|(id, _)| *id != self.0);
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        let undo = {
            let mut all = entries();
            let at = all.iter().position(|(id, _)| *id == self.0);
            at.map(|at| all.remove(at).1)
        };
        if let Some(undo) = undo {
            undo();
        }
    }
}

fn entries() -> std::sync::MutexGuard<'static, Vec<(u64, Undo)>> {
    ENTRIES.lock().unwrap_or_else(|e| e.into_inner())
}

/// Undoes everything registered.
pub fn run_all() {
    while let Some(undo) = take_last() {
        undo();
    }
}

fn take_last() -> Option<Undo> {
    entries().pop().map(|(_, undo)| undo)
}

/// Makes Ctrl-C and termination signals clean up first.
pub fn install() {
    let set = ctrlc::set_handler(|| {
        run_all();
        eprintln!("xtask: interrupted");
        std::process::exit(INTERRUPTED);
    });
    if let Err(e) = set {
        crate::ui::note(format_args!("no handler for Ctrl-C: {e}"));
    }
}
