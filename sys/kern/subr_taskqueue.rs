//! Work that is put off to threads.
//!
//! FreeBSD: sys/kern/subr_taskqueue.c, sys/kern/subr_gtaskqueue.c, taskqueue(9)
//! Differs from FreeBSD: a task is handed over by reference count, so that it need not be drained before it goes; a
//! blocked queue begins nothing, where FreeBSD's threads finish what was queued before.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::kern::kern_mutex::{Mutex, MutexGuard};
use crate::kern::kern_synch::{WChan, wakeup, wakeup_any};
use crate::kern::kern_thread::{Pri, ThreadHandle, curthread, kthread_add};
use crate::kern::kern_timeout::{CalloutStop, LockedCallout, LockedTarget};
use crate::kern::lock_order;
use crate::machine::atomic::{AtomicU32, Ordering};
use crate::time::Sbintime;
use spin::Once;

/// A piece of work that can be queued again and again, on one queue at a time; queued twice before it runs, it runs once.
pub struct Task {
    work: Box<dyn Fn(u32) + Send + Sync>,
    priority: u8,
    /// Times it was queued since it last began. Under the lock of its queue.
    pending: AtomicU32,
}

impl Task {
    /// Makes a task of priority 0.
    #[doc(alias = "TASK_INIT")]
    pub fn new(work: impl Fn() + Send + Sync + 'static) -> Arc<Task> {
        Task::with_priority(0, move |_| work())
    }

    /// Makes a task that is told how often it was queued; those of higher `priority` run before others that wait.
    pub fn with_priority(priority: u8, work: impl Fn(u32) + Send + Sync + 'static) -> Arc<Task> {
        Arc::new(Task {
            work: Box::new(work),
            priority,
            pending: AtomicU32::new(0),
        })
    }

    /// How often it was queued since it last began.
    #[doc(alias = "ta_pending")]
    pub fn pending(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }
}

/// What became of a task that was cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cancelled {
    /// How often it had been queued, and now is not.
    pub pending: u32,
    /// It is running and does so to its end: `EBUSY`.
    pub running: bool,
}

/// A task and its number in the order in which tasks were queued.
type Entry = (Arc<Task>, u64);

struct Queue {
    /// Higher priorities first, of equals the older.
    waiting: VecDeque<Entry>,
    running: Vec<Entry>,
    next: u64,
    blocked: bool,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue, lock_order::TaskqueueClass>,
}

/// Threads that run tasks, more urgent ones first. Dropping it finishes what is queued, and waits for that, unless one of its own
/// tasks drops it.
pub struct Taskqueue {
    shared: Arc<Shared>,
    threads: Vec<ThreadHandle>,
}

impl Taskqueue {
    /// Starts a queue with one thread named `name`.
    #[doc(alias = "taskqueue_create")]
    pub fn new(name: &str, pri: Pri) -> Taskqueue {
        Taskqueue::with_threads(name, pri, 1, None)
    }

    /// Starts a queue with `count` threads, which stay on `cpu` if one is given: a queue for each CPU is a group.
    #[doc(alias = "taskqueue_start_threads_cpuset")]
    #[doc(alias = "taskqgroup_attach_cpu")]
    pub fn with_threads(name: &str, pri: Pri, count: usize, cpu: Option<usize>) -> Taskqueue {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                running: Vec::new(),
                next: 0,
                blocked: false,
                closed: false,
            }),
        });
        let threads = (0..count.max(1)).map(|number| {
            let worker = shared.clone();
            let work = move || worker.run(pri);
            match count {
                0 | 1 => kthread_add(name, pri, cpu, work),
                _ => kthread_add(&format!("{name}_{number}"), pri, cpu, work),
            }
        });
        Taskqueue {
            threads: threads.collect(),
            shared,
        }
    }

    /// Queues `task`, or counts once more if it already waits. Not for interrupt filters.
    #[doc(alias = "taskqueue_enqueue")]
    pub fn enqueue(&self, task: &Arc<Task>) {
        Shared::enqueue(self.shared.queue.lock(), task);
    }

    /// Queues the task of `later` after `span`, or sets back the time if it is waiting; tells whether it was. Does nothing while
    /// somebody drains it.
    #[doc(alias = "taskqueue_enqueue_timeout")]
    pub fn enqueue_timeout(&self, later: &TimeoutTask, span: Sbintime) -> bool {
        let due = later.due.call_once(|| {
            Arc::new(Due {
                task: later.task.clone(),
                shared: self.shared.clone(),
            })
        });
        let queue = due.lock();
        if later.drainers.load(Ordering::Relaxed) != 0 {
            return false;
        }
        later.callout.reset(&queue, span, due)
    }

    /// Takes `task` off the queue.
    #[doc(alias = "taskqueue_cancel")]
    pub fn cancel(&self, task: &Arc<Task>) -> Cancelled {
        self.shared.queue.lock().cancel(task)
    }

    /// Takes the task of `later` off the queue, and off the clock, where it counts as queued once.
    #[doc(alias = "taskqueue_cancel_timeout")]
    pub fn cancel_timeout(&self, later: &TimeoutTask) -> Cancelled {
        let mut queue = self.shared.queue.lock();
        let armed = later.callout.stop(&queue) == CalloutStop::Cancelled;
        let queued = queue.cancel(&later.task);
        Cancelled {
            pending: queued.pending + u32::from(armed),
            ..queued
        }
    }

    /// Waits until `task` neither waits nor runs. Not for tasks of this queue.
    #[doc(alias = "taskqueue_drain")]
    pub fn drain_task(&self, task: &Arc<Task>) {
        self.shared
            .wait_while(|queue| task.pending() != 0 || queue.runs(task));
    }

    /// Takes the task of `later` off the clock, and waits until it neither waits nor runs. If it queues itself for later meanwhile,
    /// it does so in vain.
    #[doc(alias = "taskqueue_drain_timeout")]
    #[doc(alias = "DT_DRAIN_IN_PROGRESS")]
    pub fn drain_timeout(&self, later: &TimeoutTask) {
        let count = |change: fn(u32) -> u32| {
            let _queue = self.shared.queue.lock();
            let drainers = later.drainers.load(Ordering::Relaxed);
            later.drainers.store(change(drainers), Ordering::Relaxed);
        };
        count(|drainers| drainers + 1);
        later.callout.drain();
        self.drain_task(&later.task);
        count(|drainers| drainers - 1);
    }

    /// Waits until everything that is queued now has run.
    #[doc(alias = "taskqueue_drain_all")]
    #[doc(alias = "taskqueue_quiesce")]
    pub fn drain(&self) {
        let end = self.shared.queue.lock().next;
        self.shared.wait_while(|queue| {
            let mut all = queue.waiting.iter().chain(&queue.running);
            all.any(|(_, number)| *number < end)
        });
    }

    /// Lets no task begin until `unblock`; those that run go on.
    #[doc(alias = "taskqueue_block")]
    pub fn block(&self) {
        self.shared.queue.lock().blocked = true;
    }

    /// Lets tasks begin again.
    #[doc(alias = "taskqueue_unblock")]
    pub fn unblock(&self) {
        let mut queue = self.shared.queue.lock();
        queue.blocked = false;
        let chan = queue.work_chan();
        drop(queue);
        wakeup(chan);
    }
}

impl Drop for Taskqueue {
    #[doc(alias = "taskqueue_free")]
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        queue.blocked = false;
        let chan = queue.work_chan();
        drop(queue);
        wakeup(chan);
        let me = curthread().as_word();
        for thread in self.threads.drain(..) {
            // A task that had the last reference to the queue ends, and then its thread does.
            if thread.thread().as_word() != me {
                thread.join();
            }
        }
    }
}

impl Queue {
    /// What threads sleep on that have nothing to do.
    fn work_chan(&self) -> WChan {
        WChan::of(&self.waiting)
    }

    /// What those sleep on that wait for the end of a task: they must not take a wakeup that one thread was to get.
    fn end_chan(&self) -> WChan {
        WChan::of(&self.running)
    }

    fn cancel(&mut self, task: &Arc<Task>) -> Cancelled {
        self.waiting.retain(|(other, _)| !Arc::ptr_eq(other, task));
        Cancelled {
            pending: task.pending.swap(0, Ordering::Relaxed),
            running: self.runs(task),
        }
    }

    fn runs(&self, task: &Arc<Task>) -> bool {
        self.running
            .iter()
            .any(|(other, _)| Arc::ptr_eq(other, task))
    }

    fn add(&mut self, task: &Arc<Task>) {
        let number = self.next;
        self.next += 1;
        // Mostly at the end, as priorities are mostly equal.
        let after = self
            .waiting
            .iter()
            .rposition(|(other, _)| other.priority >= task.priority);
        self.waiting
            .insert(after.map_or(0, |at| at + 1), (task.clone(), number));
    }
}

impl Shared {
    fn enqueue(mut queue: MutexGuard<'_, Queue, lock_order::TaskqueueClass>, task: &Arc<Task>) {
        let pending = task.pending.load(Ordering::Relaxed);
        task.pending
            .store(pending.saturating_add(1), Ordering::Relaxed);
        if pending != 0 {
            return;
        }
        queue.add(task);
        let (blocked, chan) = (queue.blocked, queue.work_chan());
        drop(queue);
        if !blocked {
            wakeup_any(chan);
        }
    }

    /// Waits while `busy` holds of the queue; asked again whenever a task has ended.
    fn wait_while(&self, busy: impl Fn(&Queue) -> bool) {
        let mut queue = self.queue.lock();
        while busy(&queue) {
            let chan = queue.end_chan();
            queue = MutexGuard::msleep(queue, chan, Pri::PUSER, "tq_drain", None, false).0;
        }
    }

    #[doc(alias = "taskqueue_thread_loop")]
    fn run(&self, pri: Pri) {
        let mut queue = self.queue.lock();
        loop {
            let next = match queue.blocked {
                true => None,
                false => queue.waiting.pop_front(),
            };
            if let Some((task, number)) = next {
                // Before the work, so that a task queued while it runs runs again.
                let pending = task.pending.swap(0, Ordering::Relaxed);
                queue.running.push((task.clone(), number));
                drop(queue);
                (task.work)(pending);
                queue = self.queue.lock();
                queue.running.retain(|(_, other)| *other != number);
                wakeup(queue.end_chan());
            } else if queue.closed {
                return;
            } else {
                let chan = queue.work_chan();
                queue = MutexGuard::msleep(queue, chan, pri, "-", None, false).0;
            }
        }
    }
}

/// A task that is queued after some time.
pub struct TimeoutTask {
    task: Arc<Task>,
    /// Runs with its queue locked, so that whoever cancels it either finds it armed or finds the task queued.
    callout: LockedCallout<Due>,
    due: Once<Arc<Due>>,
    /// Threads in `drain_timeout`. Under the lock of its queue.
    drainers: AtomicU32,
}

impl TimeoutTask {
    /// Makes a timer for `task`, for one queue.
    #[doc(alias = "TIMEOUT_TASK_INIT")]
    pub fn new(task: &Arc<Task>) -> TimeoutTask {
        TimeoutTask {
            task: task.clone(),
            callout: LockedCallout::new(),
            due: Once::new(),
            drainers: AtomicU32::new(0),
        }
    }
}

/// Puts a task on its queue when the time has come.
struct Due {
    task: Arc<Task>,
    shared: Arc<Shared>,
}

impl LockedTarget for Due {
    type Guard<'a> = MutexGuard<'a, Queue, lock_order::TaskqueueClass>;

    fn lock(&self) -> Self::Guard<'_> {
        self.shared.queue.lock()
    }

    #[doc(alias = "taskqueue_timeout_func")]
    fn callout(self: &Arc<Self>, queue: Self::Guard<'_>, _: Sbintime) {
        Shared::enqueue(queue, &self.task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kern::kern_synch::{pause, sched_bind};
    use crate::kern::kern_thread::{Thread, ThreadState};
    use crate::machine;
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

    type Diary = Arc<Mutex<Vec<(char, u32)>, lock_order::Leaf>>;

    fn noted(diary: &Diary, name: char, priority: u8) -> Arc<Task> {
        let diary = diary.clone();
        Task::with_priority(priority, move |pending| diary.lock().push((name, pending)))
    }

    #[test]
    fn a_blocked_queue_keeps_tasks_in_order_of_priority_with_their_counts() {
        Machine::builder().run(|| {
            let diary = Diary::new(Mutex::new(Vec::new()));
            let queue = Taskqueue::new("test taskq", Pri::PUSER);
            queue.block();
            let tasks = [('a', 0), ('b', 0), ('c', 9), ('d', 5), ('e', 9)]
                .map(|(name, priority)| noted(&diary, name, priority));
            for task in &tasks {
                queue.enqueue(task);
            }
            queue.enqueue(&tasks[1]);
            queue.enqueue(&tasks[1]);
            let gone = queue.cancel(&tasks[3]);
            assert_eq!((gone.pending, gone.running), (1, false));
            pause("settle", 5);
            assert!(diary.lock().is_empty());
            queue.unblock();
            queue.drain();
            assert_eq!(*diary.lock(), [('c', 1), ('e', 1), ('a', 1), ('b', 3)]);
        });
    }

    #[test]
    fn cancelling_and_draining_tell_what_runs() {
        Machine::builder().run(|| {
            let done = Arc::new(AtomicUsize::new(0));
            let theirs = done.clone();
            let slow = Task::new(move || {
                pause("slow", 10);
                theirs.fetch_add(1, Ordering::Relaxed);
            });
            let queue = Taskqueue::new("test taskq", Pri::PUSER);
            queue.enqueue(&slow);
            pause("until it runs", 5);
            queue.enqueue(&slow);
            let gone = queue.cancel(&slow);
            assert_eq!((gone.pending, gone.running), (1, true));
            queue.drain_task(&slow);
            assert_eq!(done.load(Ordering::Relaxed), 1);
            let gone = queue.cancel(&slow);
            assert_eq!((gone.pending, gone.running), (0, false));
        });
    }

    #[test]
    fn draining_all_does_not_wait_for_what_is_queued_later() {
        Machine::builder().run(|| {
            let queue = Arc::new(Taskqueue::new("test taskq", Pri::PUSER));
            // Queues itself for ever, unless it is cancelled.
            let again: Arc<Mutex<Option<Arc<Task>>, lock_order::Leaf>> = Arc::new(Mutex::new(None));
            let (its_queue, itself) = (Arc::downgrade(&queue), again.clone());
            let endless = Task::new(move || {
                pause("work", 1);
                let itself = itself.lock().clone();
                if let (Some(queue), Some(itself)) = (its_queue.upgrade(), itself) {
                    queue.enqueue(&itself);
                }
            });
            *again.lock() = Some(endless.clone());
            queue.enqueue(&endless);
            queue.drain();
            *again.lock() = None;
            queue.drain_task(&endless);
        });
    }

    #[test]
    fn a_task_for_later_runs_at_its_time_unless_it_is_cancelled() {
        Machine::builder().run(|| {
            let diary = Diary::new(Mutex::new(Vec::new()));
            let queue = Taskqueue::new("test taskq", Pri::PUSER);
            let later = TimeoutTask::new(&noted(&diary, 'a', 0));
            assert!(!queue.enqueue_timeout(&later, Sbintime::from_ms(10)));
            assert!(queue.enqueue_timeout(&later, Sbintime::from_ms(20)));
            pause("before", 15);
            assert!(diary.lock().is_empty());
            pause("after", 10);
            assert_eq!(*diary.lock(), [('a', 1)]);
            queue.enqueue_timeout(&later, Sbintime::from_ms(10));
            assert_eq!(queue.cancel_timeout(&later).pending, 1);
            queue.enqueue_timeout(&later, Sbintime::from_ms(10));
            queue.drain_timeout(&later);
            pause("after", 50);
            assert_eq!(diary.lock().len(), 1);
        });
    }

    #[test]
    fn a_task_cancelled_at_its_time_does_not_run_later() {
        for seed in 0..200 {
            Machine::builder().seed(seed).cpus(2).run(|| {
                let runs = Arc::new(AtomicUsize::new(0));
                let count = runs.clone();
                let task = Task::new(move || {
                    count.fetch_add(1, Ordering::Relaxed);
                });
                let queue = Taskqueue::with_threads("test taskq", Pri::PUSER, 1, Some(1));
                let later = TimeoutTask::new(&task);
                // Its time comes on the other CPU.
                sched_bind(1);
                queue.enqueue_timeout(&later, Sbintime::from_us(20));
                let due = machine::sbinuptime() + Sbintime::from_us(20);
                sched_bind(0);
                while machine::sbinuptime() < due {
                    machine::cpu_spinwait();
                }
                let gone = queue.cancel_timeout(&later);
                let before = runs.load(Ordering::Relaxed);
                pause("after", 5);
                let after = runs.load(Ordering::Relaxed);
                assert!(gone.running || after == before, "seed {seed}: {gone:?}");
                assert_eq!(gone.pending == 0, after == 1, "seed {seed}: {gone:?}");
            });
        }
    }

    #[test]
    fn a_task_that_queues_itself_for_later_ends_when_it_is_drained() {
        Machine::builder().run(|| {
            let queue = Arc::new(Taskqueue::new("test taskq", Pri::PUSER));
            let runs = Arc::new(AtomicUsize::new(0));
            let own: Arc<Mutex<Option<Arc<TimeoutTask>>, lock_order::Leaf>> =
                Arc::new(Mutex::new(None));
            let (count, its_queue, itself) = (runs.clone(), Arc::downgrade(&queue), own.clone());
            let periodic = Task::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
                pause("work", 2);
                let itself = itself.lock().clone();
                if let (Some(queue), Some(itself)) = (its_queue.upgrade(), itself) {
                    queue.enqueue_timeout(&itself, Sbintime::from_ms(3));
                }
            });
            let later = Arc::new(TimeoutTask::new(&periodic));
            *own.lock() = Some(later.clone());
            queue.enqueue_timeout(&later, Sbintime::from_ms(3));
            // It runs from 13 ms to 15 ms.
            pause("until it runs", 14);
            assert_eq!(runs.load(Ordering::Relaxed), 3);
            queue.drain_timeout(&later);
            pause("after", 50);
            assert_eq!(runs.load(Ordering::Relaxed), 3);
            // Afterwards it can be used again.
            assert!(!queue.enqueue_timeout(&later, Sbintime::from_ms(3)));
            pause("until it runs", 4);
            assert_eq!(runs.load(Ordering::Relaxed), 4);
            *own.lock() = None;
            queue.drain_timeout(&later);
        });
    }

    #[test]
    fn who_waits_for_a_task_does_not_take_the_wakeup_of_a_thread() {
        Machine::builder().cpus(2).run(|| {
            let queue = Arc::new(Taskqueue::with_threads("pool", Pri::PUSER, 2, None));
            let slow = Task::new(|| pause("slow", 50));
            queue.enqueue(&slow);
            pause("until it runs", 1);
            let (theirs, its_task) = (queue.clone(), slow.clone());
            let waiter = kthread_add("waiter", Pri::PUSER, None, move || {
                theirs.drain_task(&its_task);
            });
            pause("until it waits", 1);
            let runs = Arc::new(AtomicUsize::new(0));
            let count = runs.clone();
            let quick = Task::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            });
            queue.enqueue(&quick);
            pause("quick", 1);
            assert_eq!(runs.load(Ordering::Relaxed), 1);
            assert!(!waiter.is_done());
            waiter.join();
        });
    }

    #[test]
    fn a_task_may_be_the_last_that_has_its_queue() {
        Machine::builder().run(|| {
            let owned: Arc<Mutex<Option<Taskqueue>, lock_order::Leaf>> = Arc::new(Mutex::new(None));
            let runs = Arc::new(AtomicUsize::new(0));
            let (theirs, count) = (owned.clone(), runs.clone());
            let counts = Task::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            });
            let frees = Task::new(move || {
                pause("until it is there", 1);
                let queue = theirs.lock().take();
                drop(queue);
            });
            let queue = Taskqueue::with_threads("test taskq", Pri::PUSER, 2, None);
            queue.enqueue(&frees);
            queue.enqueue(&counts);
            let threads: Vec<_> = queue.threads.iter().map(ThreadHandle::thread).collect();
            *owned.lock() = Some(queue);
            pause("settle", 5);
            assert_eq!(runs.load(Ordering::Relaxed), 1);
            let ended = |thread: &&Thread| thread.state() == ThreadState::Inactive;
            assert!(threads.iter().all(ended));
        });
    }

    #[test]
    fn several_threads_share_the_tasks_of_a_queue() {
        for seed in 0..20 {
            Machine::builder().seed(seed).cpus(3).run(|| {
                let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
                let done = Arc::new(AtomicUsize::new(0));
                let queue = Taskqueue::with_threads("pool", Pri::PUSER, 3, None);
                let tasks: Vec<_> = (0..12)
                    .map(|_| {
                        let (inside, most, done) = (inside.clone(), most.clone(), done.clone());
                        Task::new(move || {
                            let now = 1 + inside.fetch_add(1, Ordering::Relaxed);
                            most.fetch_max(now, Ordering::Relaxed);
                            pause("work", 2);
                            inside.fetch_sub(1, Ordering::Relaxed);
                            done.fetch_add(1, Ordering::Relaxed);
                        })
                    })
                    .collect();
                tasks.iter().for_each(|task| queue.enqueue(task));
                queue.drain();
                assert_eq!(done.load(Ordering::Relaxed), 12);
                assert_eq!(most.load(Ordering::Relaxed), 3);
            });
        }
    }

    #[test]
    fn a_queue_of_a_cpu_stays_there() {
        Machine::builder().cpus(3).run(|| {
            for cpu in 0..3 {
                let queue = Taskqueue::with_threads("group", Pri::PI_SOFT, 1, Some(cpu));
                let task = Task::new(move || assert_eq!(machine::curcpu(), cpu));
                queue.enqueue(&task);
                queue.drain();
            }
        });
    }
}
