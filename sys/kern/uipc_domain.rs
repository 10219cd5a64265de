//! Finds the protocol family of a new socket.
//!
//! FreeBSD: sys/kern/uipc_domain.c

use alloc::sync::Arc;

use crate::protosw::Domain;

/// Something sockets can be made in: a stack instance.
pub trait HasDomains {
    /// The family numbered `af`.
    #[doc(alias = "pffinddomain")]
    fn find_domain(&self, af: u8) -> Option<Arc<dyn Domain>>;
}

impl<T: HasDomains + ?Sized> HasDomains for Arc<T> {
    fn find_domain(&self, af: u8) -> Option<Arc<dyn Domain>> {
        (**self).find_domain(af)
    }
}
