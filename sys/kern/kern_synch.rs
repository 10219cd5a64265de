//! Sleep, wakeup and the switch between threads.
