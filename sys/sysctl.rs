//! What a subsystem puts into the sysctl tree.
//!
//! FreeBSD: sys/sys/sysctl.h
//! Differs from FreeBSD: nodes are text in and text out; the binary forms of `sysctl(3)` have no reader here.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::errno::Errno;
pub use crate::kern::kern_sysctl::{SysctlTree, kenv, root};
use crate::machine::atomic::{AtomicU64, Ordering};

/// A leaf of the tree.
pub trait SysctlNode: Send + Sync {
    /// The value, as `sysctl` prints it after the colon.
    fn get(&self) -> String;

    /// Takes a new value: `EPERM` if it cannot be written, `EINVAL` if it is not a value.
    fn set(&self, value: &str) -> Result<(), Errno> {
        let _ = value;
        Err(Errno::EPERM)
    }

    /// One line for `sysctl -d`.
    fn description(&self) -> &str {
        ""
    }

    /// Whether a list of the whole tree leaves it out: it is shown only to who asks for it, or for what lies above.
    #[doc(alias = "CTLFLAG_SKIP")]
    fn is_skipped(&self) -> bool {
        false
    }
}

/// A part of the tree whose leaves come and go: it is asked when somebody looks.
pub trait SysctlBranch: Send + Sync {
    /// The names of all leaves, below that of the branch, and their values.
    fn walk(&self) -> Vec<(String, String)>;
}

/// A read-only leaf whose value is computed.
pub struct ReadOnly<F> {
    read: F,
    description: &'static str,
    skipped: bool,
}

impl<F: Fn() -> String + Send + Sync> ReadOnly<F> {
    /// A leaf that shows what `read` returns.
    pub fn new(description: &'static str, read: F) -> ReadOnly<F> {
        ReadOnly {
            read,
            description,
            skipped: false,
        }
    }

    /// The same, left out of a list of the whole tree.
    #[doc(alias = "CTLFLAG_SKIP")]
    #[must_use]
    pub fn skipped(mut self) -> ReadOnly<F> {
        self.skipped = true;
        self
    }
}

impl<F: Fn() -> String + Send + Sync> SysctlNode for ReadOnly<F> {
    fn get(&self) -> String {
        (self.read)()
    }

    fn description(&self) -> &str {
        self.description
    }

    fn is_skipped(&self) -> bool {
        self.skipped
    }
}

/// A leaf read and written by functions.
pub struct Procedure<R, W> {
    read: R,
    write: W,
    description: &'static str,
}

impl<R, W> Procedure<R, W>
where
    R: Fn() -> String + Send + Sync,
    W: Fn(&str) -> Result<(), Errno> + Send + Sync,
{
    /// A leaf that shows what `read` returns and hands new values to `write`.
    #[doc(alias = "SYSCTL_PROC")]
    pub fn new(description: &'static str, read: R, write: W) -> Procedure<R, W> {
        Procedure {
            read,
            write,
            description,
        }
    }
}

impl<R, W> SysctlNode for Procedure<R, W>
where
    R: Fn() -> String + Send + Sync,
    W: Fn(&str) -> Result<(), Errno> + Send + Sync,
{
    fn get(&self) -> String {
        (self.read)()
    }

    fn set(&self, value: &str) -> Result<(), Errno> {
        (self.write)(value.trim())
    }

    fn description(&self) -> &str {
        self.description
    }
}

/// A type that a [`Tunable`] can hold.
pub trait TunableValue: Copy + Send + Sync + 'static {
    /// The value in 64 bits.
    fn to_bits(self) -> u64;
    /// The value from its 64 bits.
    fn from_bits(bits: u64) -> Self;
    /// The value as `sysctl` prints it.
    fn show(self) -> String;
    /// The value from text, if it is one and lies in the range.
    fn parse(text: &str, low: i64, high: i64) -> Option<Self>;
}

impl TunableValue for bool {
    fn to_bits(self) -> u64 {
        u64::from(self)
    }

    fn from_bits(bits: u64) -> bool {
        bits != 0
    }

    fn show(self) -> String {
        String::from(if self { "1" } else { "0" })
    }

    /// Any number but 0 is true, as in C.
    fn parse(text: &str, _: i64, _: i64) -> Option<bool> {
        text.parse::<i64>().ok().map(|number| number != 0)
    }
}

macro_rules! tunable_integer {
    ($($ty:ty)*) => { $(
        impl TunableValue for $ty {
            fn to_bits(self) -> u64 {
                self as u64
            }

            fn from_bits(bits: u64) -> $ty {
                bits as $ty
            }

            fn show(self) -> String {
                self.to_string()
            }

            fn parse(text: &str, low: i64, high: i64) -> Option<$ty> {
                let number: i64 = text.parse().ok()?;
                if !(low..=high).contains(&number) {
                    return None;
                }
                <$ty>::try_from(number).ok()
            }
        }
    )* };
}

tunable_integer!(u16 u32 u64 i32 usize);

/// A setting that can be read at any time without a lock, and changed by its sysctl.
pub struct Tunable<T> {
    bits: AtomicU64,
    kind: core::marker::PhantomData<T>,
    low: i64,
    high: i64,
    description: &'static str,
}

impl<T: TunableValue> Tunable<T> {
    /// A setting with its default and the range that `set` accepts.
    pub fn new(value: T, low: i64, high: i64, description: &'static str) -> Tunable<T> {
        Tunable {
            bits: AtomicU64::new(value.to_bits()),
            kind: core::marker::PhantomData,
            low,
            high,
            description,
        }
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> T {
        T::from_bits(self.bits.load(Ordering::Relaxed))
    }

    /// Sets the value from within the kernel.
    pub fn set(&self, value: T) {
        self.bits.store(value.to_bits(), Ordering::Relaxed);
    }

    /// The value as `sysctl` prints it.
    pub fn show(&self) -> String {
        self.get().show()
    }

    /// Sets the value from text.
    pub fn set_text(&self, text: &str) -> Result<(), Errno> {
        let value = T::parse(text.trim(), self.low, self.high).ok_or(Errno::EINVAL)?;
        self.set(value);
        Ok(())
    }

    /// One line for `sysctl -d`.
    pub fn description(&self) -> &'static str {
        self.description
    }
}

/// A [`Tunable`] that stands alone is a leaf itself.
impl<T: TunableValue> SysctlNode for Tunable<T> {
    fn get(&self) -> String {
        self.show()
    }

    fn set(&self, value: &str) -> Result<(), Errno> {
        self.set_text(value)
    }

    fn description(&self) -> &str {
        self.description
    }
}

/// One field of a structure of tunables, as a leaf: keeps the whole structure alive.
#[doc(hidden)]
pub struct Field<S, T: TunableValue> {
    pub whole: alloc::sync::Arc<S>,
    pub field: fn(&S) -> &Tunable<T>,
}

impl<S: Send + Sync, T: TunableValue> SysctlNode for Field<S, T> {
    fn get(&self) -> String {
        (self.field)(&self.whole).show()
    }

    fn set(&self, value: &str) -> Result<(), Errno> {
        (self.field)(&self.whole).set_text(value)
    }

    fn description(&self) -> &str {
        (self.field)(&self.whole).description()
    }
}

/// Declares a structure of [`Tunable`]s with their sysctl names, defaults and optional ranges.
///
/// ```ignore
/// tunables! {
///     /// What can be set about TCP.
///     pub struct TcpTunables {
///         rfc1323: bool = true, "net.inet.tcp.rfc1323", "Enable rfc1323 extensions";
///         msl: u32 = 30_000, "net.inet.tcp.msl", "Maximum segment lifetime, ms" (1..=300_000);
///     }
/// }
/// if tunables.rfc1323.get() { … }
/// tunables.register(&vnet.sysctl);
/// ```
#[macro_export]
macro_rules! tunables {
    ($(#[$attr:meta])* $vis:vis struct $name:ident {
        $($field:ident : $ty:ty = $default:expr, $oid:literal, $doc:literal $(($low:literal ..= $high:expr))?;)*
    }) => {
        $(#[$attr])*
        $vis struct $name {
            $(#[doc = concat!($doc, " (`", $oid, "`).")] pub $field: $crate::sysctl::Tunable<$ty>,)*
        }

        impl $name {
            /// The defaults.
            pub fn new() -> Self {
                Self {
                    $($field: $crate::tunables!(@new $ty, $default, $doc $(, $low, $high)?),)*
                }
            }

            /// Puts the settings into `tree`, which applies what the kernel's command line says of them.
            pub fn register(self: &$crate::sysctl::SharedTunables<Self>, tree: &$crate::sysctl::SysctlTree) {
                $(tree.register(
                    $oid,
                    $crate::sysctl::SharedTunables::new($crate::sysctl::Field {
                        whole: self.clone(),
                        field: |whole: &Self| &whole.$field,
                    }),
                );)*
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
    };
    (@new $ty:ty, $default:expr, $doc:literal) => {
        $crate::sysctl::Tunable::<$ty>::new($default, i64::MIN, i64::MAX, $doc)
    };
    (@new $ty:ty, $default:expr, $doc:literal, $low:literal, $high:expr) => {
        $crate::sysctl::Tunable::<$ty>::new($default, $low, $high, $doc)
    };
}

/// What a structure of tunables is held by.
#[doc(hidden)]
pub type SharedTunables<T> = alloc::sync::Arc<T>;

/// A line as `sysctl name` prints it.
pub fn line(name: &str, value: &str) -> String {
    format!("{name}: {value}")
}

/// Numbers as one value, such as one for each CPU.
pub(crate) fn spaced(numbers: impl Iterator<Item = u64>) -> String {
    let words: Vec<String> = numbers.map(|number| number.to_string()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;

    tunables! {
        /// Settings of a test.
        struct Settings {
            on: bool = true, "test.on", "Whether it is on";
            span: u32 = 30, "test.span", "A span, s" (1..=300);
        }
    }

    #[test]
    fn settings_keep_their_range() {
        crate::machine::hosted::Machine::builder().run(|| {
            let tree = SysctlTree::new();
            let settings = Arc::new(Settings::new());
            settings.register(&tree);
            assert_eq!(
                tree.set("test.span", "300"),
                Ok(("30".into(), "300".into()))
            );
            assert_eq!(tree.set("test.span", "301"), Err(Errno::EINVAL));
            assert_eq!(tree.set("test.span", "x"), Err(Errno::EINVAL));
            assert_eq!(settings.span.get(), 300);
            assert_eq!(tree.set("test.on", "0"), Ok(("1".into(), "0".into())));
            assert!(!settings.on.get());
        });
    }
}
