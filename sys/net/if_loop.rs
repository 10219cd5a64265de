//! The loopback interface.
//!
//! FreeBSD: sys/net/if_loop.c

use alloc::sync::Arc;

use crate::errno::Errno;
use crate::kern::subr_epoch::NetEpoch;
use crate::mbuf::{CsumFlags, MFlags, Mbuf};
use crate::net::bpf::{BpfDir, bpf_mtap};
use crate::net::ifnet::{IFT_LOOP, IfCap, IfDriver, IfFlags, Ifnet, IfnetInit, LinkState};
use crate::net::netisr::{self, NetisrProto};
use crate::net::vnet::Vnet;

/// MTU of lo0.
pub const LOMTU: u32 = 16384;

/// What a looped packet is marked with: its checksums are as good as verified.
const LO_CSUM_SET: CsumFlags = CsumFlags::IP_CHECKED
    .union(CsumFlags::IP_VALID)
    .union(CsumFlags::DATA_VALID)
    .union(CsumFlags::PSEUDO_HDR);

struct Loop;

/// Attaches lo0 to an instance, up and running but without address.
#[doc(alias = "lo_clone_create")]
pub fn loop_attach(vnet: &Arc<Vnet>) -> Arc<Ifnet> {
    let capabilities =
        IfCap::RXCSUM | IfCap::TXCSUM | IfCap::LINKSTATE | IfCap::RXCSUM_IPV6 | IfCap::TXCSUM_IPV6;
    let init = IfnetInit {
        if_type: IFT_LOOP,
        mtu: LOMTU,
        flags: IfFlags::LOOPBACK
            | IfFlags::MULTICAST
            | IfFlags::UP
            | IfFlags::RUNNING
            | IfFlags::LOWER_UP,
        capabilities,
        capenable: capabilities,
        ..IfnetInit::ether("lo", 0, [0; 6])
    };
    let ifp = vnet.if_attach(init, Arc::new(Loop));
    ifp.init_link_state(LinkState::Up);
    ifp
}

impl IfDriver for Loop {
    /// Frames cannot be sent on the loopback: packets come through `looutput`.
    fn transmit(&self, _ifp: &Ifnet, _m: Mbuf) -> Result<(), Errno> {
        Err(Errno::EAFNOSUPPORT)
    }

    fn init(&self, ifp: &Ifnet) -> Result<(), Errno> {
        ifp.set_drv_flags(IfFlags::RUNNING, IfFlags::empty());
        Ok(())
    }

    fn stop(&self, ifp: &Ifnet) {
        ifp.set_drv_flags(IfFlags::empty(), IfFlags::RUNNING);
    }

    fn set_cap(&self, _ifp: &Ifnet, enable: IfCap) -> Result<(), Errno> {
        // Nobody computes what nobody verifies: one without the other would lose packets.
        let pairs = [
            (IfCap::RXCSUM, IfCap::TXCSUM),
            (IfCap::RXCSUM_IPV6, IfCap::TXCSUM_IPV6),
        ];
        let whole = |&(rx, tx): &(IfCap, IfCap)| enable.contains(rx) == enable.contains(tx);
        if pairs.iter().all(whole) {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }
}

/// Sends `m` (a packet without link header) on the loopback: back to ourselves, through netisr's queue. It comes in by
/// `origin`: the loopback, or the interface whose link-local address it is for.
pub fn looutput(
    ifp: &Ifnet,
    origin: &Ifnet,
    epoch: &NetEpoch,
    m: Mbuf,
    proto: NetisrProto,
) -> Result<(), Errno> {
    if !ifp.flags().contains(IfFlags::UP) {
        ifp.counters.oqdrops.inc();
        return Err(Errno::ENETDOWN);
    }
    let mut m = m;
    let len = m.pkt_len() as u64;
    ifp.counters.opackets.inc();
    ifp.counters.obytes.add(len);
    let header = m.pkthdr_mut();
    header.csum_flags = CsumFlags::empty();
    header.tso_segsz = 0;
    let verified = match proto {
        NetisrProto::Ip6 => IfCap::RXCSUM_IPV6,
        _ => IfCap::RXCSUM,
    };
    if ifp.capenable().contains(verified) {
        header.csum_flags = LO_CSUM_SET;
        header.csum_data = 0xffff;
    }
    if_simloop(origin, epoch, m, proto)
}

/// Makes a packet that `ifp` would have sent arrive on it; the link header is not there.
pub fn if_simloop(ifp: &Ifnet, epoch: &NetEpoch, m: Mbuf, proto: NetisrProto) -> Result<(), Errno> {
    let mut m = m;
    m.pkthdr_mut().rcvif = ifp.if_index;
    m.clear_flags(MFlags::PROTOFLAGS | MFlags::PROMISC);
    if ifp.is_loopback() {
        bpf_mtap(ifp, epoch, BpfDir::In, &m);
    }
    ifp.counters.ipackets.inc();
    ifp.counters.ibytes.add(m.pkt_len() as u64);
    netisr::queue(ifp.vnet(), proto, m).inspect_err(|_| ifp.counters.iqdrops.inc())
}
