//! Error numbers, with FreeBSD's values and texts.
//!
//! FreeBSD: sys/sys/errno.h, lib/libc/gen/errlst.c

use core::fmt;

macro_rules! errnos {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        /// Why a system or socket call failed.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(i32)]
        pub enum Errno {
            $(#[doc = $text] $name = $value,)*
        }

        impl Errno {
            /// Every error number that the stack uses.
            pub const ALL: &'static [Errno] = &[$(Errno::$name,)*];

            /// The operation would block: the same number as `EAGAIN`.
            pub const EWOULDBLOCK: Errno = Errno::EAGAIN;

            /// Returns the number.
            pub const fn number(self) -> i32 {
                self as i32
            }

            /// Returns the name, for example `ECONNREFUSED`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Errno::$name => stringify!($name),)*
                }
            }

            /// Returns FreeBSD's text, as `strerror` does.
            #[doc(alias = "strerror")]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Errno::$name => $text,)*
                }
            }

            /// Finds the error with this number.
            pub const fn from_number(number: i32) -> Option<Errno> {
                match number {
                    $($value => Some(Errno::$name),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such file or directory";
    ESRCH = 3, "No such process";
    EINTR = 4, "Interrupted system call";
    EIO = 5, "Input/output error";
    ENXIO = 6, "Device not configured";
    E2BIG = 7, "Argument list too long";
    EBADF = 9, "Bad file descriptor";
    EDEADLK = 11, "Resource deadlock avoided";
    ENOMEM = 12, "Cannot allocate memory";
    EACCES = 13, "Permission denied";
    EFAULT = 14, "Bad address";
    EBUSY = 16, "Device busy";
    EEXIST = 17, "File exists";
    ENODEV = 19, "Operation not supported by device";
    EINVAL = 22, "Invalid argument";
    ENFILE = 23, "Too many open files in system";
    EMFILE = 24, "Too many open files";
    EFBIG = 27, "File too large";
    ENOSPC = 28, "No space left on device";
    EPIPE = 32, "Broken pipe";
    EDOM = 33, "Numerical argument out of domain";
    ERANGE = 34, "Result too large";
    EAGAIN = 35, "Resource temporarily unavailable";
    EINPROGRESS = 36, "Operation now in progress";
    EALREADY = 37, "Operation already in progress";
    ENOTSOCK = 38, "Socket operation on non-socket";
    EDESTADDRREQ = 39, "Destination address required";
    EMSGSIZE = 40, "Message too long";
    EPROTOTYPE = 41, "Protocol wrong type for socket";
    ENOPROTOOPT = 42, "Protocol not available";
    EPROTONOSUPPORT = 43, "Protocol not supported";
    ESOCKTNOSUPPORT = 44, "Socket type not supported";
    EOPNOTSUPP = 45, "Operation not supported";
    EPFNOSUPPORT = 46, "Protocol family not supported";
    EAFNOSUPPORT = 47, "Address family not supported by protocol family";
    EADDRINUSE = 48, "Address already in use";
    EADDRNOTAVAIL = 49, "Can't assign requested address";
    ENETDOWN = 50, "Network is down";
    ENETUNREACH = 51, "Network is unreachable";
    ENETRESET = 52, "Network dropped connection on reset";
    ECONNABORTED = 53, "Software caused connection abort";
    ECONNRESET = 54, "Connection reset by peer";
    ENOBUFS = 55, "No buffer space available";
    EISCONN = 56, "Socket is already connected";
    ENOTCONN = 57, "Socket is not connected";
    ESHUTDOWN = 58, "Can't send after socket shutdown";
    ETOOMANYREFS = 59, "Too many references: can't splice";
    ETIMEDOUT = 60, "Operation timed out";
    ECONNREFUSED = 61, "Connection refused";
    ENAMETOOLONG = 63, "File name too long";
    EHOSTDOWN = 64, "Host is down";
    EHOSTUNREACH = 65, "No route to host";
    ENOSYS = 78, "Function not implemented";
    EFTYPE = 79, "Inappropriate file type or format";
    EOVERFLOW = 84, "Value too large to be stored in data type";
    ECANCELED = 85, "Operation canceled";
    EBADMSG = 89, "Bad message";
    EPROTO = 92, "Protocol error";
    ENOTCAPABLE = 93, "Capabilities insufficient";
    EINTEGRITY = 97, "Integrity check failed";
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text())
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn numbers_and_texts_are_those_of_freebsd_and_not_of_linux() {
        assert_eq!(Errno::EAGAIN.number(), 35);
        assert_eq!(Errno::EWOULDBLOCK.number(), 35);
        assert_eq!(Errno::ENOBUFS.number(), 55);
        assert_eq!(Errno::ECONNREFUSED.number(), 61);
        assert_eq!(Errno::ETIMEDOUT.to_string(), "Operation timed out");
        assert_eq!(Errno::EHOSTUNREACH.to_string(), "No route to host");
    }

    #[test]
    fn every_number_leads_back_to_its_error() {
        for &errno in Errno::ALL {
            assert_eq!(Errno::from_number(errno.number()), Some(errno));
        }
        assert_eq!(Errno::from_number(0), None);
    }
}
