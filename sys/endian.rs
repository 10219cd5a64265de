//! Integers with a byte order, for headers and descriptors.
//!
//! FreeBSD: sys/sys/endian.h
//! Differs from FreeBSD: the byte order is part of the field's type, so that a header field cannot be read
//! without converting it.

pub use zerocopy::byteorder::big_endian::{U16 as U16Be, U32 as U32Be, U64 as U64Be};
pub use zerocopy::byteorder::little_endian::{U16 as U16Le, U32 as U32Le, U64 as U64Le};
