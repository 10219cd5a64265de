//! Interrupt events, interrupt threads and software interrupts.
