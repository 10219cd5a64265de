//! Work that is put off to a thread.
//!
//! FreeBSD: sys/kern/subr_taskqueue.c, taskqueue(9)

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;

use crate::kern::kern_mutex::{Mutex, MutexGuard};
use crate::kern::kern_synch::{WChan, wakeup};
use crate::kern::kern_thread::{Pri, ThreadHandle, kthread_add};
use crate::kern::lock_order;
use crate::machine::atomic::{AtomicBool, Ordering};

/// A piece of work that can be queued again and again; queued twice before it runs, it runs once.
pub struct Task {
    work: Box<dyn Fn() + Send + Sync>,
    pending: AtomicBool,
}

impl Task {
    /// Makes a task.
    #[doc(alias = "TASK_INIT")]
    pub fn new(work: impl Fn() + Send + Sync + 'static) -> Arc<Task> {
        Arc::new(Task {
            work: Box::new(work),
            pending: AtomicBool::new(false),
        })
    }
}

struct Queue {
    tasks: VecDeque<Arc<Task>>,
    running: bool,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue, lock_order::TaskqueueClass>,
}

/// A thread that runs tasks in the order they were queued. Dropping it finishes what is queued.
pub struct Taskqueue {
    shared: Arc<Shared>,
    thread: Option<ThreadHandle>,
}

impl Taskqueue {
    /// Starts a queue whose thread has name `name`.
    #[doc(alias = "taskqueue_create")]
    pub fn new(name: &str, pri: Pri) -> Taskqueue {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                tasks: VecDeque::new(),
                running: false,
                closed: false,
            }),
        });
        let worker = shared.clone();
        let thread = kthread_add(name, pri, None, move || worker.run(pri));
        Taskqueue {
            shared,
            thread: Some(thread),
        }
    }

    /// Queues `task` unless it already waits.
    #[doc(alias = "taskqueue_enqueue")]
    pub fn enqueue(&self, task: &Arc<Task>) {
        if task.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        self.shared.queue.lock().tasks.push_back(task.clone());
        wakeup(WChan::of(&*self.shared));
    }

    /// Waits until everything that is queued now has run.
    #[doc(alias = "taskqueue_drain_all")]
    pub fn drain(&self) {
        let mut queue = self.shared.queue.lock();
        while queue.running || !queue.tasks.is_empty() {
            queue = MutexGuard::msleep(
                queue,
                WChan::of(&self.shared.queue),
                Pri::PUSER,
                "tqdrain",
                None,
                false,
            )
            .0;
        }
    }
}

impl Drop for Taskqueue {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        wakeup(WChan::of(&*self.shared));
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}

impl Shared {
    fn run(&self, pri: Pri) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(task) = queue.tasks.pop_front() {
                queue.running = true;
                drop(queue);
                // Before the work, so that a task queued while it runs runs again.
                task.pending.store(false, Ordering::Release);
                (task.work)();
                queue = self.queue.lock();
                queue.running = false;
            } else if queue.closed {
                return;
            } else {
                wakeup(WChan::of(&self.queue));
                queue = MutexGuard::msleep(queue, WChan::of(self), pri, "-", None, false).0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::atomic::AtomicUsize;
    use crate::machine::hosted::Machine;

    #[test]
    fn a_task_queued_twice_runs_once_and_can_be_queued_again() {
        Machine::builder().run(|| {
            let runs = Arc::new(AtomicUsize::new(0));
            let count = runs.clone();
            let task = Task::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            });
            let queue = Taskqueue::new("test taskq", Pri::PUSER);
            queue.enqueue(&task);
            queue.enqueue(&task);
            queue.drain();
            assert_eq!(runs.load(Ordering::Relaxed), 1);
            queue.enqueue(&task);
            drop(queue);
            assert_eq!(runs.load(Ordering::Relaxed), 2);
        });
    }
}
