//! Protocol families by number.
//!
//! FreeBSD: sys/kern/uipc_domain.c

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::Errno;
use crate::kern::socklocks::kern_mutex::Mutex;
use crate::kern::socklocks::lock_order::DomainLock;
use crate::protosw::Domain;

/// The protocol families of one stack instance.
pub struct DomainTable {
    domains: Mutex<Vec<(u8, Arc<dyn Domain>)>, DomainLock>,
}

/// Something sockets can be made in: a stack instance.
pub trait HasDomains {
    /// Its protocol families.
    fn domains(&self) -> &DomainTable;
}

impl<T: HasDomains + ?Sized> HasDomains for Arc<T> {
    fn domains(&self) -> &DomainTable {
        (**self).domains()
    }
}

impl Default for DomainTable {
    fn default() -> DomainTable {
        DomainTable::new()
    }
}

impl DomainTable {
    /// A table without families.
    pub const fn new() -> DomainTable {
        DomainTable {
            domains: Mutex::new(Vec::new()),
        }
    }

    /// Adds a family, replacing one of the same number.
    #[doc(alias = "domain_add")]
    pub fn add(&self, af: u8, domain: Arc<dyn Domain>) {
        let mut domains = self.domains.lock();
        domains.retain(|(number, _)| *number != af);
        domains.push((af, domain));
    }

    /// The family numbered `af`.
    #[doc(alias = "pffinddomain")]
    pub fn find(&self, af: u8) -> Result<Arc<dyn Domain>, Errno> {
        self.domains
            .lock()
            .iter()
            .find(|(number, _)| *number == af)
            .map(|(_, domain)| Arc::clone(domain))
            .ok_or(Errno::EAFNOSUPPORT)
    }

    /// Forgets all families, and with them what they hold.
    pub fn clear(&self) {
        let gone = core::mem::take(&mut *self.domains.lock());
        drop(gone);
    }
}
