//! Two hosts with the project's own stack.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};

use netinet::in_control::{AddrArgs, in_aifaddr, len_mask};
use netinet::tcp_usrreq::TCP_NODELAY;
use netinet::vnet::{InetVnet, inet_attach};
use sys::errno::Errno;
use sys::kern::kern_mutex::SpinMutex;
use sys::kern::kern_synch::pause;
use sys::kern::lock_order::Leaf;
use sys::kern::subr_epoch::NetEpoch;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::mbuf::{CsumFlags, IfIndex, Mbuf, MbufQueue};
use sys::net::if_loop::loop_attach;
use sys::net::ifnet::{IfCap, IfDriver, IfFlags, Ifnet, IfnetInit, LinkState};
use sys::net::vnet::Vnet;
use sys::socket::{AF_INET, IPPROTO_TCP, MsgFlags, SockAddr, SockType};

use crate::net::{Checksums, DATAGRAM, Hosts, Kind};
use crate::rounds::Side;

const ADDR: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2)];
const PORT: u16 = 5001;
/// Milliseconds that a connection may take.
const PATIENCE_MS: u32 = 1000;

/// A cable's end: what its interface has sent waits here.
struct End {
    sent: SpinMutex<MbufQueue, Leaf>,
    /// The interface at the other end.
    far: OnceLock<IfIndex>,
    checksums: Checksums,
}

impl IfDriver for End {
    fn transmit(&self, _ifp: &Ifnet, mut m: Mbuf) -> Result<(), Errno> {
        let hdr = m.pkthdr_mut();
        hdr.rcvif = *self.far.get().ok_or(Errno::ENETDOWN)?;
        hdr.csum_flags = CsumFlags::empty();
        if self.checksums == Checksums::Offloaded {
            hdr.csum_flags = CsumFlags::IP_CHECKED
                | CsumFlags::IP_VALID
                | CsumFlags::DATA_VALID
                | CsumFlags::PSEUDO_HDR;
            hdr.csum_data = 0xffff;
        }
        self.sent.lock().push(m);
        Ok(())
    }

    fn init(&self, ifp: &Ifnet) -> Result<(), Errno> {
        ifp.set_drv_flags(IfFlags::RUNNING, IfFlags::empty());
        Ok(())
    }
}

/// A host at one end of a cable.
struct Host {
    inet: Arc<InetVnet>,
    ifp: Arc<Ifnet>,
    end: Arc<End>,
}

impl Host {
    fn new(addr: Ipv4Addr, checksums: Checksums) -> Host {
        let vnet = Vnet::new(&format!("bench {addr}"));
        loop_attach(&vnet);
        let inet = inet_attach(&vnet).expect("a stack");
        let caps = match checksums {
            Checksums::Software => IfCap::empty(),
            Checksums::Offloaded => IfCap::TXCSUM | IfCap::RXCSUM,
        };
        let unit = addr.octets()[3];
        let init = IfnetInit {
            capabilities: caps,
            capenable: caps,
            ..IfnetInit::ether("cable", u32::from(unit), [2, 0, 0, 0, 0, unit])
        };
        let end = Arc::new(End {
            sent: SpinMutex::new(MbufQueue::new()),
            far: OnceLock::new(),
            checksums,
        });
        let ifp = vnet.if_attach(init, end.clone());
        ifp.set_link_state(LinkState::Up);
        let args = AddrArgs {
            netmask: Some(len_mask(24)),
            ..AddrArgs::default()
        };
        in_aifaddr(&inet, &ifp, addr, &args).expect("an address");
        Host { inet, ifp, end }
    }

    fn socket(&self, kind: SockType) -> SocketHandle {
        SocketHandle::socket(&self.inet.vnet, AF_INET, kind, 0).expect("a socket")
    }

    /// Takes in what the other end has sent, as a driver's interrupt thread does; false if that was nothing.
    fn take(&self, from: &Host) -> bool {
        let mut q = std::mem::replace(&mut *from.end.sent.lock(), MbufQueue::new());
        if q.is_empty() {
            return false;
        }
        let epoch = NetEpoch::enter();
        self.ifp.if_input_batch(&epoch, &mut q);
        true
    }
}

/// The hosts, and a socket of each.
pub struct Stack {
    hosts: [Host; 2],
    near: SocketHandle,
    far: SocketHandle,
}

/// Lets frames pass until there are none.
fn settle([a, b]: &[Host; 2]) {
    while b.take(a) | a.take(b) {}
}

fn connection(hosts: &[Host; 2]) -> (SocketHandle, SocketHandle) {
    let [a, b] = hosts;
    let listener = b.socket(SockType::Stream);
    let to = SockAddr::v4(ADDR[1], PORT);
    listener.bind(&to).expect("a free port");
    listener.listen(1).expect("a listener");
    let near = a.socket(SockType::Stream);
    near.set_nonblocking(true);
    let begun = near.connect(&to);
    assert_eq!(begun, Err(Errno::EINPROGRESS));
    // The neighbours' answers wake threads that send on what waited for them.
    for _ in 0..PATIENCE_MS {
        settle(hosts);
        if let Ok((far, _)) = listener.accept_nowait() {
            settle(hosts);
            for so in [&near, &far] {
                so.setsockopt_int(IPPROTO_TCP, TCP_NODELAY, 1)
                    .expect("an option");
            }
            return (near, far);
        }
        pause("bench", 1);
    }
    panic!("no connection");
}

fn datagram_sockets(hosts: &[Host; 2]) -> (SocketHandle, SocketHandle) {
    let [near, far] = [0, 1].map(|i: usize| hosts[i].socket(SockType::Dgram));
    let to = SockAddr::v4(ADDR[1], PORT);
    far.bind(&to).expect("a free port");
    near.connect(&to).expect("a route");
    // The first finds the neighbour.
    near.send(&[0; DATAGRAM], MsgFlags::DONTWAIT).expect("room");
    settle(hosts);
    far.recv(&mut [0; DATAGRAM], MsgFlags::DONTWAIT)
        .expect("the first datagram");
    (near, far)
}

impl Hosts for Stack {
    const NAME: &'static str = "ours";
    const SIDE: Side = Side::Ours;

    fn new(kind: Kind, checksums: Checksums) -> Stack {
        let hosts = ADDR.map(|addr| Host::new(addr, checksums));
        let [a, b] = &hosts;
        let _ = (a.end.far.set(b.ifp.if_index), b.end.far.set(a.ifp.if_index));
        let (near, far) = match kind {
            Kind::Tcp => connection(&hosts),
            Kind::Udp => datagram_sockets(&hosts),
        };
        Stack { hosts, near, far }
    }

    fn block(&mut self, data: &[u8], buffer: &mut [u8]) {
        let [a, b] = &self.hosts;
        let (mut sent, mut got) = (0, 0);
        while got < data.len() {
            if sent < data.len() {
                sent += self
                    .near
                    .send(&data[sent..], MsgFlags::DONTWAIT)
                    .unwrap_or(0);
            }
            b.take(a);
            got += self.far.recv(buffer, MsgFlags::DONTWAIT).unwrap_or(0);
            a.take(b);
        }
    }

    fn round_trip(&mut self) {
        let [a, b] = &self.hosts;
        let mut byte = [0];
        self.near.send(&[1], MsgFlags::DONTWAIT).expect("room");
        b.take(a);
        self.far
            .recv(&mut byte, MsgFlags::DONTWAIT)
            .expect("a request");
        self.far.send(&[2], MsgFlags::DONTWAIT).expect("room");
        a.take(b);
        self.near
            .recv(&mut byte, MsgFlags::DONTWAIT)
            .expect("an answer");
    }

    fn datagrams(&mut self, n: usize) {
        let [a, b] = &self.hosts;
        for _ in 0..n {
            self.near
                .send(&[5; DATAGRAM], MsgFlags::DONTWAIT)
                .expect("room");
        }
        b.take(a);
        for _ in 0..n {
            let mut buffer = [0; DATAGRAM];
            self.far
                .recv(&mut buffer, MsgFlags::DONTWAIT)
                .expect("a datagram");
        }
    }
}
