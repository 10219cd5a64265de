//! Placeholder for the locks until kern_mutex, kern_sx and kern_synch are here; then it goes.
#![allow(missing_docs, reason = "goes")]
pub mod lock_order {
    pub trait LockClass: 'static {
        const NAME: &'static str;
        const RANK: u32;
    }
    macro_rules! c { ($($n:ident)*) => { $(pub struct $n; impl LockClass for $n { const NAME: &'static str = stringify!($n); const RANK: u32 = 0; })* } }
    c!(SoListen SoRcv SoSnd SoRcvSx SoSndSx SelInfo);
}
pub mod kern_synch {
    pub struct WChan(usize);
    impl WChan {
        pub fn of<T>(t: &T) -> WChan {
            WChan(t as *const T as usize)
        }
    }
    pub enum SleepError {
        TimedOut,
        Interrupted,
    }
    pub const PSOCK: u8 = 1;
    pub fn wakeup(_c: WChan) {}
}
pub mod kern_mutex {
    use super::kern_synch::*;
    use super::lock_order::LockClass;
    use crate::time::Sbintime;
    use core::marker::PhantomData;
    #[derive(Default)]
    pub struct Mutex<T, C: LockClass>(spin::Mutex<T>, PhantomData<C>);
    pub struct MutexGuard<'a, T, C: LockClass>(spin::MutexGuard<'a, T>, PhantomData<C>);
    impl<T, C: LockClass> Mutex<T, C> {
        pub const fn new(t: T) -> Self {
            Mutex(spin::Mutex::new(t), PhantomData)
        }
        pub fn lock(&self) -> MutexGuard<'_, T, C> {
            MutexGuard(self.0.lock(), PhantomData)
        }
    }
    impl<'a, T, C: LockClass> MutexGuard<'a, T, C> {
        pub fn msleep(
            g: Self,
            _c: WChan,
            _p: u8,
            _w: &'static str,
            _t: Option<Sbintime>,
            _catch: bool,
        ) -> (Self, Result<(), SleepError>) {
            (g, Ok(()))
        }
    }
    impl<'a, T, C: LockClass> core::ops::Deref for MutexGuard<'a, T, C> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.0
        }
    }
    impl<'a, T, C: LockClass> core::ops::DerefMut for MutexGuard<'a, T, C> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.0
        }
    }
}
pub mod kern_sx {
    pub use super::kern_mutex::*;
    use super::lock_order::LockClass;
    pub struct Sx<T, C: LockClass>(Mutex<T, C>);
    impl<T, C: LockClass> Sx<T, C> {
        pub const fn new(t: T) -> Self {
            Sx(Mutex::new(t))
        }
        pub fn xlock(&self) -> MutexGuard<'_, T, C> {
            self.0.lock()
        }
        pub fn try_xlock(&self) -> Option<MutexGuard<'_, T, C>> {
            Some(self.0.lock())
        }
    }
}
pub fn sbinuptime() -> crate::time::Sbintime {
    crate::time::Sbintime(0)
}
#[macro_export]
macro_rules! kprintf { ($($t:tt)*) => { let _ = format_args!($($t)*); } }
