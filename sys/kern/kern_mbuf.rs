//! Where mbufs and clusters come from and go to.
//!
//! FreeBSD: sys/kern/kern_mbuf.c

use crate::mbuf::{ClusterSize, How, Mbuf};

impl Mbuf {
    /// An empty mbuf without packet header.
    #[doc(alias = "m_get")]
    pub fn get(how: How) -> Option<Mbuf> {
        let _ = how;
        todo!()
    }

    /// An empty packet without cluster.
    #[doc(alias = "m_gethdr")]
    pub fn gethdr(how: How) -> Option<Mbuf> {
        let _ = how;
        todo!()
    }

    /// An empty packet with a 2k cluster.
    #[doc(alias = "m_getcl")]
    pub fn getcl(how: How) -> Option<Mbuf> {
        let _ = how;
        todo!()
    }

    /// An empty packet with a cluster of `size`.
    #[doc(alias = "m_getjcl")]
    pub fn getjcl(how: How, size: ClusterSize) -> Option<Mbuf> {
        let _ = (how, size);
        todo!()
    }

    /// An empty mbuf without packet header, with a cluster of `size`.
    pub fn getcl_nohdr(how: How, size: ClusterSize) -> Option<Mbuf> {
        let _ = (how, size);
        todo!()
    }

    /// A chain of empty mbufs with room for `len` bytes, each as large as is useful; with a packet header if
    /// `pkthdr`.
    #[doc(alias = "m_getm2")]
    pub fn getm2(how: How, len: usize, pkthdr: bool) -> Option<Mbuf> {
        let _ = (how, len, pkthdr);
        todo!()
    }

    /// A packet with a copy of `bytes`, and room for headers before them.
    pub fn from_bytes(bytes: &[u8], how: How) -> Option<Mbuf> {
        let _ = (bytes, how);
        todo!()
    }
}

/// One row of `netstat -m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MbZoneStat {
    /// In use.
    pub current: u64,
    /// Free in caches and slabs.
    pub cache: u64,
    /// Most that may exist.
    pub max: u64,
    /// Requests refused.
    pub denied: u64,
    /// Requests that slept.
    pub delayed: u64,
}

/// The numbers of `netstat -m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MbufStat {
    /// mbufs.
    pub mbuf: MbZoneStat,
    /// 2k clusters.
    pub cluster: MbZoneStat,
    /// mbuf and cluster pairs of the packet zone.
    pub packet: MbZoneStat,
    /// Page-sized clusters.
    pub jumbop: MbZoneStat,
    /// 9k clusters.
    pub jumbo9: MbZoneStat,
    /// 16k clusters.
    pub jumbo16: MbZoneStat,
}

impl MbufStat {
    /// Counts now.
    pub fn snapshot() -> MbufStat {
        todo!()
    }

    /// mbufs and clusters of all sizes in use; equal before and after means nothing leaked.
    pub fn in_use(&self) -> (u64, u64) {
        (
            self.mbuf.current,
            self.cluster.current + self.jumbop.current + self.jumbo9.current + self.jumbo16.current,
        )
    }
}
