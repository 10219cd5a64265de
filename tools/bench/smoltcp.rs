//! Two hosts with smoltcp.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ::smoltcp::iface::{
    Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet,
};
use ::smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use ::smoltcp::socket::{tcp, udp};
use ::smoltcp::time::{Duration, Instant};
use ::smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use crate::net::{Checksums, DATAGRAM, Hosts, Kind};
use crate::rounds::Side;

/// A frame with its Ethernet header.
const FRAME: usize = 1514;
/// Frames that a cable holds each way.
const FRAMES: usize = 256;
/// Bytes of a socket's buffer.
const BUFFER: usize = 128 << 10;
const PORT: u16 = 5001;
/// Time from one poll to the next while a connection is made: smoltcp asks for a neighbour once a second.
const SETTLE: Duration = Duration::from_millis(150);
const SETTLE_POLLS: usize = 20;

/// Frames on their way.
struct Way {
    frames: Vec<[u8; FRAME]>,
    lens: [usize; FRAMES],
    taken: usize,
    sent: usize,
}

impl Way {
    fn new() -> Rc<RefCell<Way>> {
        Rc::new(RefCell::new(Way {
            frames: vec![[0; FRAME]; FRAMES],
            lens: [0; FRAMES],
            taken: 0,
            sent: 0,
        }))
    }
}

/// A frame that has come.
struct Arrived<'a>(&'a RefCell<Way>);

impl RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let mut way = self.0.borrow_mut();
        let at = way.taken % FRAMES;
        way.taken += 1;
        f(&way.frames[at][..way.lens[at]])
    }
}

/// Room for a frame.
struct Room<'a>(&'a RefCell<Way>);

impl TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut way = self.0.borrow_mut();
        let at = way.sent % FRAMES;
        way.sent += 1;
        way.lens[at] = len;
        f(&mut way.frames[at][..len])
    }
}

/// A cable's end.
struct End {
    rx: Rc<RefCell<Way>>,
    tx: Rc<RefCell<Way>>,
    checksums: Checksums,
}

impl End {
    fn room(&self) -> Option<Room<'_>> {
        let full = {
            let tx = self.tx.borrow();
            tx.sent - tx.taken == FRAMES
        };
        (!full).then_some(Room(&self.tx))
    }
}

impl Device for End {
    type RxToken<'a> = Arrived<'a>;
    type TxToken<'a> = Room<'a>;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        if self.checksums == Checksums::Offloaded {
            capabilities.checksum = ChecksumCapabilities::ignored();
        }
        capabilities
    }

    fn receive(&mut self, _: Instant) -> Option<(Arrived<'_>, Room<'_>)> {
        let empty = {
            let rx = self.rx.borrow();
            rx.sent == rx.taken
        };
        let room = self.room()?;
        (!empty).then_some((Arrived(&self.rx), room))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        self.room()
    }
}

/// A host with one socket.
struct Host {
    end: End,
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    /// Stands still while it is measured.
    now: Cell<Instant>,
}

impl Host {
    fn new(unit: u8, kind: Kind, end: End) -> Host {
        let mut end = end;
        let address = HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, unit]));
        let now = Cell::new(Instant::ZERO);
        let mut interface = Interface::new(Config::new(address), &mut end, now.get());
        interface.update_ip_addrs(|addrs| {
            let _ = addrs.push(IpCidr::new(IpAddress::v4(10, 9, 0, unit), 24));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let socket = match kind {
            Kind::Tcp => {
                let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
                let mut socket = tcp::Socket::new(buffer(), buffer());
                socket.set_nagle_enabled(false);
                // One that is put off would wait for a clock that stands still.
                socket.set_ack_delay(None);
                sockets.add(socket)
            }
            Kind::Udp => {
                let metadata = vec![udp::PacketMetadata::EMPTY; 64];
                let buffer = || udp::PacketBuffer::new(metadata.clone(), vec![0; BUFFER]);
                let mut socket = udp::Socket::new(buffer(), buffer());
                socket.bind(PORT).expect("a free port");
                sockets.add(socket)
            }
        };
        Host {
            end,
            interface,
            sockets,
            socket,
            now,
        }
    }

    fn tcp(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    fn udp(&mut self) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// Sends all that may be sent.
    fn send(&mut self) {
        let (now, end, sockets) = (self.now.get(), &mut self.end, &mut self.sockets);
        while self.interface.poll_egress(now, end, sockets) != PollResult::None {}
    }

    /// Takes in up to `n` frames, and tells whether there was one.
    fn take(&mut self, n: usize) -> bool {
        let (now, end, sockets) = (self.now.get(), &mut self.end, &mut self.sockets);
        let mut one = || self.interface.poll_ingress_single(now, end, sockets);
        (0..n).fold(false, |any, _| {
            !matches!(one(), PollIngressSingleResult::None) || any
        })
    }

    /// Takes in all frames, and sends what may be sent.
    fn poll(&mut self) {
        while self.take(1) {}
        self.send();
    }
}

/// The hosts.
pub struct Smoltcp {
    near: Host,
    far: Host,
}

const FAR: IpEndpoint = IpEndpoint {
    addr: IpAddress::v4(10, 9, 0, 2),
    port: PORT,
};

impl Smoltcp {
    /// Lets frames pass and time too.
    fn settle(&mut self) {
        for _ in 0..SETTLE_POLLS {
            for host in [&mut self.near, &mut self.far] {
                host.poll();
                host.now.set(host.now.get() + SETTLE);
            }
        }
    }
}

impl Hosts for Smoltcp {
    const NAME: &'static str = "smoltcp";
    const SIDE: Side = Side::Peer;

    fn new(kind: Kind, checksums: Checksums) -> Smoltcp {
        let (there, back) = (Way::new(), Way::new());
        let end = |rx: &Rc<RefCell<Way>>, tx: &Rc<RefCell<Way>>| End {
            rx: rx.clone(),
            tx: tx.clone(),
            checksums,
        };
        let mut hosts = Smoltcp {
            near: Host::new(1, kind, end(&back, &there)),
            far: Host::new(2, kind, end(&there, &back)),
        };
        match kind {
            Kind::Tcp => {
                hosts.far.tcp().listen(PORT).expect("a listener");
                let near = &mut hosts.near;
                let socket: &mut tcp::Socket<'_> = near.sockets.get_mut(near.socket);
                let begun = socket.connect(near.interface.context(), FAR, 40_000);
                begun.expect("a route");
                hosts.settle();
                assert!(hosts.far.tcp().may_recv(), "no connection");
            }
            Kind::Udp => {
                // The first finds the neighbour.
                hosts
                    .near
                    .udp()
                    .send_slice(&[0; DATAGRAM], FAR)
                    .expect("room");
                hosts.settle();
                hosts.far.udp().recv().expect("the first datagram");
            }
        }
        hosts
    }

    fn block(&mut self, data: &[u8], buffer: &mut [u8]) {
        let (mut sent, mut got) = (0, 0);
        while got < data.len() {
            if sent < data.len() {
                sent += self
                    .near
                    .tcp()
                    .send_slice(&data[sent..])
                    .expect("a connection");
            }
            self.near.poll();
            while self.far.take(2) {
                self.far.send();
            }
            got += self.far.tcp().recv_slice(buffer).expect("a connection");
            self.far.send();
        }
    }

    fn round_trip(&mut self) {
        let mut byte = [0];
        self.near.tcp().send_slice(&[1]).expect("a connection");
        self.near.send();
        self.far.take(1);
        assert_eq!(self.far.tcp().recv_slice(&mut byte), Ok(1), "a request");
        self.far.tcp().send_slice(&[2]).expect("a connection");
        self.far.send();
        self.near.take(1);
        assert_eq!(self.near.tcp().recv_slice(&mut byte), Ok(1), "an answer");
    }

    fn datagrams(&mut self, n: usize) {
        for _ in 0..n {
            self.near
                .udp()
                .send_slice(&[5; DATAGRAM], FAR)
                .expect("room");
        }
        self.near.send();
        while self.far.take(1) {}
        for _ in 0..n {
            let mut buffer = [0; DATAGRAM];
            self.far.udp().recv_slice(&mut buffer).expect("a datagram");
        }
    }
}
