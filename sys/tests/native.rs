//! The native machine: its CPUs are truly parallel, its interrupts truly interrupt.
//!
//! One machine per process, so each test runs in a process of its own: this one again, with the test's name.
//! `cargo xtask test native` builds and runs it (`--cfg native`); otherwise there is nothing to test.

#[cfg(not(native))]
fn main() {}

#[cfg(native)]
fn main() {
    native::main();
}

#[cfg(native)]
mod native {
    use std::process::{Command, exit};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use sys::kern::kern_mutex::{Mutex, MutexGuard};
    use sys::kern::kern_rwlock::RwLock;
    use sys::kern::kern_synch::{WChan, pause_sbt, sched_bind, wakeup, wakeup_one};
    use sys::kern::kern_thread::{Pri, ThreadHandle, kthread_add};
    use sys::kern::kern_timeout::{Callout, CalloutTarget};
    use sys::kern::lock_order::Leaf;
    use sys::machine::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
    use sys::machine::native::Machine;
    use sys::machine::{self, CpuSet, Critical, IrqLine, IrqSource, smp_rendezvous};
    use sys::time::Sbintime;

    const TESTS: &[(&str, fn())] = &[
        (
            "the_body_runs_on_a_kernel_thread_and_its_value_comes_back",
            body,
        ),
        ("two_cpus_run_at_the_same_time", parallel),
        ("sleepers_are_woken_across_cpus", wakeups),
        ("a_sleep_lasts_as_long_as_it_should", sleep),
        ("additions_under_a_mutex_are_not_lost", mutex),
        ("writers_of_an_rwlock_are_alone", rwlock),
        ("the_timer_preempts_a_thread_that_never_waits", preemption),
        ("programs_take_turns_on_one_cpu", turns),
        (
            "threads_whose_cpu_is_taken_as_they_end_are_recycled_once",
            ends,
        ),
        ("a_critical_section_is_not_preempted", critical),
        ("a_rendezvous_interrupts_threads_that_compute", rendezvous),
        (
            "a_device_model_interrupts_from_a_thread_of_the_host",
            device,
        ),
        (
            "an_interrupt_that_moves_to_and_fro_is_not_lost",
            moving_device,
        ),
        ("a_handler_that_is_gone_runs_nowhere", freed_handler),
        (
            "counters_lose_nothing_to_preemption_and_migration",
            counters,
        ),
        ("threads_bind_themselves_to_one_cpu_and_the_other", binds),
        (
            "a_callout_that_moves_while_another_stops_it_is_armed_or_stopped",
            moving_callout,
        ),
        (
            "a_callout_that_arms_itself_is_idle_when_it_was_drained",
            drained_callout,
        ),
        (
            "memory_may_be_allocated_wherever_a_thread_is_preempted",
            allocation,
        ),
    ];

    /// A process that takes longer hangs.
    const LIMIT: Duration = Duration::from_secs(60);

    pub fn main() {
        let filter = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
        if let Some((_, test)) = filter
            .as_ref()
            .and_then(|name| TESTS.iter().find(|(known, _)| known == name))
        {
            return test();
        }
        let exe = std::env::current_exe().expect("the path of this test");
        let wanted = TESTS.iter().filter(|(name, _)| {
            filter
                .as_ref()
                .is_none_or(|part| name.contains(part.as_str()))
        });
        let mut passed = 0;
        let mut failed = 0;
        for (name, _) in wanted {
            let mut child = Command::new(&exe)
                .arg(name)
                .spawn()
                .expect("this test again");
            let start = Instant::now();
            let status = loop {
                if let Some(status) = child.try_wait().expect("a child of ours") {
                    break Some(status);
                }
                if start.elapsed() > LIMIT {
                    let _ = child.kill();
                    let _ = child.wait();
                    break None;
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            match status {
                Some(status) if status.success() => {
                    passed += 1;
                    println!("test {name} ... ok");
                }
                Some(status) => {
                    failed += 1;
                    println!("test {name} ... FAILED: {status}");
                }
                None => {
                    failed += 1;
                    println!("test {name} ... FAILED: hangs");
                }
            }
        }
        println!("\ntest result: {passed} passed; {failed} failed");
        if failed != 0 {
            exit(1);
        }
    }

    fn run<T: Send + 'static>(cpus: usize, body: impl FnOnce() -> T + Send + 'static) -> T {
        Machine::builder().cpus(cpus).quiet().run(body)
    }

    fn join_all(threads: impl IntoIterator<Item = ThreadHandle>) {
        // All run before the first is waited for.
        let threads: Vec<_> = threads.into_iter().collect();
        threads.into_iter().for_each(ThreadHandle::join);
    }

    fn bound(cpu: usize, f: impl FnOnce() + Send + 'static) -> ThreadHandle {
        kthread_add("bound", Pri::PUSER, Some(cpu), f)
    }

    /// Waits without giving up the CPU.
    fn spin_until(what: &str, mut ready: impl FnMut() -> bool) {
        let end = machine::sbinuptime() + Sbintime::from_s(30);
        while !ready() {
            assert!(machine::sbinuptime() < end, "waited in vain for {what}");
            machine::cpu_spinwait();
        }
    }

    fn body() {
        let value = run(1, || {
            assert_eq!(machine::curthread().name(), "kernel");
            assert!(machine::intr_enabled());
            vec![1, 2, 3]
        });
        assert_eq!(value, [1, 2, 3]);
    }

    fn parallel() {
        run(2, || {
            // Each waits for the other's step, with interrupts off: on one CPU neither would ever get further.
            let ball = Arc::new(AtomicU32::new(0));
            join_all((0..2).map(|me| {
                let ball = Arc::clone(&ball);
                bound(me, move || {
                    let state = machine::intr_disable();
                    for turn in 0..1000 {
                        spin_until("the other CPU", || {
                            ball.load(Ordering::Acquire) == 2 * turn + me as u32
                        });
                        assert_eq!(machine::curcpu(), me);
                        ball.fetch_add(1, Ordering::Release);
                    }
                    machine::intr_restore(state);
                })
            }));
        });
    }

    fn wakeups() {
        run(2, || {
            let ball = Arc::new(Mutex::<u32, Leaf>::new(0));
            const TURNS: u32 = 2000;
            join_all((0..2).map(|me| {
                let ball = Arc::clone(&ball);
                bound(me, move || {
                    let chan = WChan::of(&*ball);
                    let mut guard = ball.lock();
                    while *guard < TURNS {
                        if *guard % 2 == me as u32 {
                            *guard += 1;
                            wakeup_one(chan);
                        } else {
                            (guard, _) =
                                MutexGuard::msleep(guard, chan, Pri::PWAIT, "ball", None, false);
                        }
                    }
                    drop(guard);
                    wakeup(chan);
                })
            }));
            assert_eq!(*ball.lock(), TURNS);
        });
    }

    fn sleep() {
        run(2, || {
            for us in [1, 50, 500, 5_000] {
                let start = machine::sbinuptime();
                pause_sbt("sleep", Sbintime::from_us(us));
                assert!(machine::sbinuptime() - start >= Sbintime::from_us(us));
            }
        });
    }

    fn binds() {
        run(2, || {
            join_all((0..3).map(|me| {
                kthread_add("binds", Pri::PUSER, None, move || {
                    for turn in 0..3000 {
                        let cpu = (turn / (me + 1)) % 2;
                        sched_bind(cpu);
                        assert_eq!(machine::curcpu(), cpu);
                    }
                })
            }));
        });
    }

    fn mutex() {
        run(2, || {
            let sum = Arc::new(Mutex::<u64, Leaf>::new(0));
            join_all((0..4).map(|_| {
                let sum = Arc::clone(&sum);
                kthread_add("adder", Pri::PUSER, None, move || {
                    for _ in 0..50_000 {
                        *sum.lock() += 1;
                    }
                })
            }));
            assert_eq!(*sum.lock(), 200_000);
        });
    }

    fn rwlock() {
        run(2, || {
            let twins = Arc::new(RwLock::<(u64, u64), Leaf>::new((0, 0)));
            join_all((0..4).map(|number| {
                let twins = Arc::clone(&twins);
                kthread_add("user", Pri::PUSER, None, move || {
                    for turn in 0..20_000 {
                        if (turn + number) % 8 == 0 {
                            let mut guard = twins.write();
                            guard.0 += 1;
                            guard.1 += 1;
                        } else {
                            let guard = twins.read();
                            assert_eq!(guard.0, guard.1);
                        }
                    }
                })
            }));
            assert_eq!(twins.read().0, 10_000);
        });
    }

    fn preemption() {
        run(1, || {
            let rang = Arc::new(AtomicBool::new(false));
            let theirs = Arc::clone(&rang);
            // Asleep until the timer wakes it; this thread never gives up the only CPU.
            let sleeper = kthread_add("sleeper", Pri::PI_NET, None, move || {
                pause_sbt("alarm", Sbintime::from_ms(2));
                theirs.store(true, Ordering::Release);
            });
            spin_until("the sleeper", || rang.load(Ordering::Acquire));
            sleeper.join();
        });
    }

    fn turns() {
        run(1, || {
            // Who got the CPU, in order. Neither gives it up until there were some turns.
            let order = Arc::new(Mutex::<Vec<usize>, Leaf>::new(Vec::new()));
            join_all((0..2).map(|number| {
                let order = Arc::clone(&order);
                kthread_add("program", Pri::PUSER, None, move || {
                    spin_until("the other's turn", || {
                        let mut order = order.lock();
                        if order.last() != Some(&number) {
                            order.push(number);
                        }
                        order.len() >= 6
                    });
                })
            }));
        });
    }

    fn ends() {
        run(1, || {
            let done = Arc::new(AtomicBool::new(false));
            let theirs = Arc::clone(&done);
            let urgent = kthread_add("urgent", Pri::PI_NET, None, move || {
                while !theirs.load(Ordering::Relaxed) {
                    pause_sbt("alarm", Sbintime::from_us(20));
                }
            });
            let end = machine::sbinuptime() + Sbintime::from_ms(1500);
            while machine::sbinuptime() < end {
                let threads = [(); 8].map(|()| kthread_add("short", Pri::PUSER, None, || {}));
                threads.into_iter().for_each(ThreadHandle::join);
            }
            done.store(true, Ordering::Relaxed);
            urgent.join();
        });
    }

    fn critical() {
        run(1, || {
            let rang = Arc::new(AtomicU32::new(0));
            let done = Arc::new(AtomicBool::new(false));
            let (their_rang, their_done) = (Arc::clone(&rang), Arc::clone(&done));
            let sleeper = kthread_add("sleeper", Pri::PI_NET, None, move || {
                while !their_done.load(Ordering::Relaxed) {
                    pause_sbt("alarm", Sbintime::from_ms(1));
                    their_rang.fetch_add(1, Ordering::Relaxed);
                }
            });
            let section = Critical::enter();
            let before = rang.load(Ordering::Relaxed);
            let end = machine::sbinuptime() + Sbintime::from_ms(5);
            while machine::sbinuptime() < end {
                assert_eq!(rang.load(Ordering::Relaxed), before);
            }
            drop(section);
            assert!(
                rang.load(Ordering::Relaxed) > before,
                "the debt is paid at the end"
            );
            done.store(true, Ordering::Relaxed);
            sleeper.join();
        });
    }

    static SEEN: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];

    fn rendezvous() {
        run(2, || {
            const ROUNDS: u32 = 300;
            // Both call for both, in the middle of each other's call.
            join_all((0..2).map(|cpu| {
                bound(cpu, || {
                    for _ in 0..ROUNDS {
                        smp_rendezvous(
                            CpuSet::all(),
                            |_| {
                                SEEN[machine::curcpu()].fetch_add(1, Ordering::Relaxed);
                            },
                            0,
                        );
                    }
                })
            }));
            assert_eq!(SEEN[0].load(Ordering::Relaxed), 2 * ROUNDS);
            assert_eq!(SEEN[1].load(Ordering::Relaxed), 2 * ROUNDS);
        });
    }

    static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

    fn device() {
        run(2, || {
            let handler = |arg| {
                assert_eq!((arg, machine::curcpu()), (7, 1));
                assert!(!machine::intr_enabled());
                INTERRUPTS.fetch_add(1, Ordering::Release);
            };
            let vector = machine::intr_alloc(IrqSource::Msi, 1, handler, 7).expect("a vector");
            let model = machine::native::hostcall(|| {
                std::thread::spawn(move || {
                    for expected in 1..=200 {
                        machine::native::raise(vector.irq);
                        while INTERRUPTS.load(Ordering::Acquire) < expected {
                            std::thread::yield_now();
                        }
                    }
                })
            });
            spin_until("the interrupts", || {
                INTERRUPTS.load(Ordering::Acquire) == 200
            });
            machine::native::hostcall(|| model.join().expect("no panic there"));
            machine::intr_free(vector);
        });
    }

    static HANDLED: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];

    fn handled() -> u32 {
        HANDLED
            .iter()
            .map(|count| count.load(Ordering::Acquire))
            .sum()
    }

    fn moving_device() {
        const PIECES: u32 = 2000;
        run(2, || {
            let handler = |_| {
                HANDLED[machine::curcpu()].fetch_add(1, Ordering::Release);
            };
            let line = IrqSource::Line(IrqLine {
                gsi: 11,
                level: true,
                active_low: true,
            });
            for source in [line, IrqSource::Msi] {
                for count in &HANDLED {
                    count.store(0, Ordering::Relaxed);
                }
                let vector = machine::intr_alloc(source, 0, handler, 0).expect("a vector");
                // What the device was told.
                let addr = Arc::new(AtomicU64::new(vector.msi_addr));
                let device = Arc::clone(&addr);
                let model = machine::native::hostcall(|| {
                    std::thread::spawn(move || {
                        for expected in 1..=PIECES {
                            if source == IrqSource::Msi {
                                let addr = device.load(Ordering::Relaxed);
                                machine::native::message(addr, vector.msi_data);
                            } else {
                                machine::native::raise(vector.irq);
                            }
                            while handled() < expected {
                                std::thread::yield_now();
                            }
                        }
                    })
                });
                let mut cpu = 0;
                spin_until("the interrupts", || {
                    cpu = 1 - cpu;
                    let moved = machine::intr_assign_cpu(vector, cpu).expect("both CPUs exist");
                    assert_eq!((moved.cpu, moved.msi_data), (cpu, vector.msi_data));
                    addr.store(moved.msi_addr, Ordering::Relaxed);
                    handled() == PIECES
                });
                machine::native::hostcall(|| model.join().expect("no panic there"));
                let absent = machine::intr_assign_cpu(vector, 2);
                assert_eq!(absent, Err(sys::errno::Errno::EINVAL));
                machine::intr_free(vector);
                for count in &HANDLED {
                    assert_ne!(count.load(Ordering::Relaxed), 0, "a CPU had none");
                }
            }
        });
    }

    static INSIDE: AtomicBool = AtomicBool::new(false);

    fn freed_handler() {
        run(2, || {
            sched_bind(0);
            let handler = |_| {
                INSIDE.store(true, Ordering::SeqCst);
                let end = machine::sbinuptime() + Sbintime::from_ms(5);
                while machine::sbinuptime() < end {
                    machine::cpu_spinwait();
                }
                INSIDE.store(false, Ordering::SeqCst);
            };
            for _ in 0..5 {
                let vector = machine::intr_alloc(IrqSource::Msi, 1, handler, 0).expect("a vector");
                machine::native::raise(vector.irq);
                spin_until("the handler", || INSIDE.load(Ordering::SeqCst));
                machine::intr_free(vector);
                assert!(!INSIDE.load(Ordering::SeqCst));
            }
        });
    }

    /// A callout that rings every 50 µs, so that whatever runs is interrupted and preempted all the time.
    struct Nuisance(Callout, AtomicU64, AtomicBool);

    impl Nuisance {
        fn start() -> Arc<Nuisance> {
            let nuisance = Arc::new(Nuisance(
                Callout::new(),
                AtomicU64::new(0),
                AtomicBool::new(false),
            ));
            nuisance.0.reset(Sbintime::from_us(50), &nuisance);
            nuisance
        }

        /// Calls `step` with 0, 1, 2, …: at least `steps` times, and until the work was interrupted often enough to mean something.
        fn trouble(&self, steps: usize, mut step: impl FnMut(usize)) -> usize {
            let mut number = 0;
            while number < steps || self.1.load(Ordering::Relaxed) <= 10 {
                step(number);
                number += 1;
            }
            number
        }

        fn stop(&self) {
            self.2.store(true, Ordering::Relaxed);
            self.0.drain();
        }
    }

    impl CalloutTarget for Nuisance {
        fn callout(self: Arc<Self>, _: Sbintime) {
            drop(vec![0_u8; 100]);
            self.1.fetch_add(1, Ordering::Relaxed);
            if !self.2.load(Ordering::Relaxed) {
                self.0.reset(Sbintime::from_us(50), &self);
            }
        }
    }

    /// A target that only counts.
    #[derive(Default)]
    struct Rings(AtomicU64);

    impl CalloutTarget for Rings {
        fn callout(self: Arc<Self>, _: Sbintime) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn moving_callout() {
        const ROUNDS: u32 = 5_000;
        run(2, || {
            let shared = Arc::new((Callout::new(), Arc::new(Rings::default())));
            // Keeps the wheel busy that the callout moves to.
            sched_bind(0);
            let nuisance = Nuisance::start();
            // How many threads have come to each meeting: two before and two after the part that they do at once.
            let meetings = Arc::new(AtomicU32::new(0));
            let meet = |meetings: &AtomicU32, number: u32| {
                meetings.fetch_add(1, Ordering::SeqCst);
                spin_until("the other", || {
                    meetings.load(Ordering::SeqCst) >= 2 * number
                });
            };
            let (theirs, their_meetings) = (Arc::clone(&shared), Arc::clone(&meetings));
            let armer = bound(1, move || {
                let (callout, rings) = &*theirs;
                for round in 0..ROUNDS {
                    callout.reset_on(Sbintime::from_s(9), 1, rings);
                    meet(&their_meetings, 2 * round + 1);
                    callout.reset_on(Sbintime::from_s(9), 0, rings);
                    meet(&their_meetings, 2 * round + 2);
                    let armed = Arc::strong_count(rings) == 2;
                    assert_eq!(callout.pending(), armed, "round {round}");
                }
            });
            for round in 0..ROUNDS {
                meet(&meetings, 2 * round + 1);
                for _ in 0..round % 100 {
                    machine::cpu_spinwait();
                }
                shared.0.stop();
                meet(&meetings, 2 * round + 2);
            }
            armer.join();
            nuisance.stop();
        });
    }

    /// A target that arms itself for at once.
    struct Again(Callout);

    impl CalloutTarget for Again {
        fn callout(self: Arc<Self>, _: Sbintime) {
            self.0.reset(Sbintime::ZERO, &self);
        }
    }

    fn drained_callout() {
        run(2, || {
            sched_bind(0);
            for round in 0..20_000 {
                let again = Arc::new(Again(Callout::new()));
                again.0.reset_on(Sbintime::ZERO, 1, &again);
                for _ in 0..round % 200 {
                    machine::cpu_spinwait();
                }
                again.0.drain();
                assert!(!again.0.pending(), "round {round}");
            }
        });
    }

    fn counters() {
        run(2, || {
            let nuisance = Nuisance::start();
            let counter = Arc::new(sys::counter::Counter::new());
            let counted = Arc::new(AtomicU64::new(0));
            join_all((0..5).map(|_| {
                let (counter, counted) = (Arc::clone(&counter), Arc::clone(&counted));
                let nuisance = Arc::clone(&nuisance);
                kthread_add("counts", Pri::PUSER, None, move || {
                    let steps = nuisance.trouble(1_000_000, |_| counter.inc());
                    counted.fetch_add(steps as u64, Ordering::Relaxed);
                })
            }));
            nuisance.stop();
            assert_eq!(counter.fetch(), counted.load(Ordering::Relaxed));
        });
    }

    fn allocation() {
        run(2, || {
            let nuisance = Nuisance::start();
            join_all((0..5).map(|number| {
                let nuisance = Arc::clone(&nuisance);
                kthread_add("allocates", Pri::PUSER, None, move || {
                    let mut kept: Vec<Vec<u8>> = Vec::new();
                    nuisance.trouble(50_000, |turn| {
                        let size = 1 + (turn * 37 + number * 11) % 500;
                        kept.push(vec![number as u8; size]);
                        if kept.len() > 50 {
                            let old = kept.swap_remove(turn % 50);
                            assert!(old.iter().all(|&byte| byte == number as u8));
                        }
                    });
                })
            }));
            nuisance.stop();
        });
    }
}
