//! Values of which each machine has one.
//!
//! On bare metal and on the native machine there is one machine, and the value is a plain static. Of hosted machines many
//! live in one process, and the static only names a value of the current one, which is made when it is first asked for.

use core::ops::Deref;

/// Declares values of which each machine has one: `machine_local! { static FOO: Foo = Foo::new(); }`.
///
/// The initial value must be constant for bare metal's sake. `FOO.get()` is a `&'static Foo`; `FOO` also derefs to it.
#[cfg(any(target_os = "none", native))]
#[macro_export]
macro_rules! machine_local {
    ($($(#[$attr:meta])* $vis:vis static $name:ident : $ty:ty = $init:expr;)*) => { $(
        $(#[$attr])*
        $vis static $name: $crate::machine::MachineLocal<$ty> = $crate::machine::MachineLocal::new($init);
    )* };
}

/// Declares values of which each machine has one: `machine_local! { static FOO: Foo = Foo::new(); }`.
///
/// The initial value must be constant for bare metal's sake. `FOO.get()` is a `&'static Foo`; `FOO` also derefs to it.
#[cfg(not(any(target_os = "none", native)))]
#[macro_export]
macro_rules! machine_local {
    ($($(#[$attr:meta])* $vis:vis static $name:ident : $ty:ty = $init:expr;)*) => { $(
        $(#[$attr])*
        $vis static $name: $crate::machine::MachineLocal<$ty> = $crate::machine::MachineLocal::new(|| $init);
    )* };
}

/// A static that stands for the current machine's value.
#[cfg(any(target_os = "none", native))]
pub struct MachineLocal<T>(T);

#[cfg(any(target_os = "none", native))]
impl<T> MachineLocal<T> {
    #[doc(hidden)]
    pub const fn new(value: T) -> MachineLocal<T> {
        MachineLocal(value)
    }

    /// Returns the machine's value.
    #[inline(always)]
    pub const fn get(&'static self) -> &'static T {
        &self.0
    }
}

#[cfg(not(any(target_os = "none", native)))]
pub use super::backend::MachineLocal;

impl<T: Send + Sync + 'static> Deref for MachineLocal<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        #[cfg(any(target_os = "none", native))]
        return &self.0;
        #[cfg(not(any(target_os = "none", native)))]
        return self.lookup();
    }
}

#[cfg(not(any(target_os = "none", native)))]
pub use super::backend::call_thread_body;
#[cfg(not(any(target_os = "none", native, loom)))]
pub(crate) use super::backend::unwind_thread;
#[cfg(not(any(target_os = "none", native)))]
pub(crate) use super::backend::{interleave, leak, teardown_started};

#[cfg(any(target_os = "none", native))]
mod bare {
    use alloc::boxed::Box;

    /// Runs the body of a thread; a panic in it ends the kernel.
    pub fn call_thread_body(_name: &str, body: impl FnOnce()) {
        body();
    }

    /// A point where another CPU could interfere; here it does so by itself.
    #[inline(always)]
    pub(crate) fn interleave() {}

    /// Keeps `value` for as long as the machine runs.
    pub(crate) fn leak<T>(value: Box<T>) -> &'static T {
        Box::leak(value)
    }

    /// Tells whether the machine is ending, so that its threads unwind; a real one is just turned off.
    #[inline(always)]
    pub(crate) const fn teardown_started() -> bool {
        false
    }

    /// Ends a thread by unwinding it.
    pub(crate) fn unwind_thread() -> ! {
        unreachable!("a real machine is turned off without unwinding")
    }
}

#[cfg(any(target_os = "none", native))]
pub use bare::call_thread_body;
#[cfg(any(target_os = "none", native))]
pub(crate) use bare::{interleave, leak, teardown_started, unwind_thread};
