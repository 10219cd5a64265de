//! Connections that a device takes over from the stack.

mod tcp_common;

use netinet::tcp_fsm::TcpState;
use netinet::tcp_input::Segment;
use netinet::tcp_offload::ToeDev;
use netinet::tcp_seq::TcpSeq;
use netinet::tcp_subr::Conn;
use netinet::tcp_var::Tcpcb;
use netsim::wire::Dir;
use netsim::world::{ADDR_B, World};
use std::sync::{Arc, Mutex};
use sys::errno::Errno;
use sys::net::ifnet::IfCap;
use sys::socket::{MsgFlags, SO_NO_OFFLOAD, SOL_SOCKET, SockAddr};
use tcp_common::*;

/// A device that writes down what is asked of it.
#[derive(Default)]
struct Device {
    asked: Mutex<Vec<&'static str>>,
    full: bool,
}

impl Device {
    fn note(&self, what: &'static str) {
        self.asked.lock().unwrap().push(what);
    }

    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl ToeDev for Device {
    fn tod_connect(&self, c: &Conn<'_>, tp: &mut Tcpcb) -> Result<(), Errno> {
        self.note("connect");
        if self.full {
            return Err(Errno::ENOBUFS);
        }
        // Its handshake takes no time.
        tp.t_state = TcpState::Established;
        c.so.soisconnected();
        Ok(())
    }
    fn tod_listen_start(&self, _c: &Conn<'_>, _tp: &mut Tcpcb) {
        self.note("listen_start");
    }
    fn tod_listen_stop(&self, _c: &Conn<'_>, _tp: &mut Tcpcb) {
        self.note("listen_stop");
    }
    fn tod_input(&self, _c: &Conn<'_>, _tp: &mut Tcpcb, _seg: &mut Segment) {
        self.note("input");
    }
    fn tod_rcvd(&self, _c: &Conn<'_>, _tp: &mut Tcpcb) {
        self.note("rcvd");
    }
    fn tod_output(&self, c: &Conn<'_>, _tp: &mut Tcpcb) -> Result<(), Errno> {
        self.note("output");
        // It sends at once, and the peer acknowledges at once.
        let mut snd = c.so.snd.lock();
        snd.flush();
        Ok(())
    }
    fn tod_send_rst(&self, _c: &Conn<'_>, _tp: &mut Tcpcb) -> Result<(), Errno> {
        self.note("send_rst");
        Ok(())
    }
    fn tod_send_fin(&self, _c: &Conn<'_>, _tp: &mut Tcpcb) -> Result<(), Errno> {
        self.note("send_fin");
        Ok(())
    }
    fn tod_pcb_detach(&self, _tp: &mut Tcpcb) {
        self.note("pcb_detach");
    }
}

fn with_device(device: Device, test: impl FnOnce(&World, &Device) + Send + 'static) {
    let config = WireConfig {
        capabilities: IfCap::TOE4,
        ..WireConfig::default()
    };
    World::run(config, move |world| {
        let device = Arc::new(device);
        let devs = &world.a.inet.tcp.toe;
        devs.register(&world.a.ifp, device.clone()).unwrap();
        assert_eq!(
            devs.register(&world.a.ifp, device.clone()),
            Err(Errno::EEXIST)
        );
        test(world, &device);
        devs.unregister(&world.a.ifp).unwrap();
        assert_eq!(devs.unregister(&world.a.ifp), Err(Errno::ENODEV));
    });
}

#[test]
fn a_connection_that_the_device_takes_sends_nothing_by_the_stack() {
    with_device(Device::default(), |world, device| {
        let tap = Tap::on(world);
        let a = tcp(&world.a);
        a.connect(&SockAddr::v4(ADDR_B, PORT)).unwrap();
        assert_eq!(device.asked(), ["connect"]);
        send_all(&a, b"hello");
        assert_eq!(device.asked(), ["output"]);
        shut(&a);
        assert_eq!(device.asked(), ["send_fin"]);
        shut(&a);
        assert_eq!(device.asked(), ["output"], "one FIN is enough");
        let inp = inpcb(&world.a, &a);
        assert!(inp.read().ppcb.t_toe.is_some());
        a.set_linger(Some(0)).unwrap();
        drop(a);
        assert_eq!(device.asked(), ["send_rst", "pcb_detach"]);
        pass_ms(100);
        assert!(tap.all().is_empty());
    });
}

#[test]
fn a_segment_that_comes_through_the_stack_is_handed_to_the_device() {
    with_device(Device::default(), |world, device| {
        let a = tcp(&world.a);
        a.bind(&SockAddr::v4(netsim::world::ADDR_A, 4000)).unwrap();
        a.connect(&SockAddr::v4(ADDR_B, PORT)).unwrap();
        device.asked();
        // The other host tries to connect from the port that `a` is connected to.
        let b = tcp(&world.b);
        b.bind(&SockAddr::v4(ADDR_B, PORT)).unwrap();
        b.set_nonblocking(true);
        let begun = b.connect(&SockAddr::v4(netsim::world::ADDR_A, 4000));
        assert_eq!(begun, Err(Errno::EINPROGRESS));
        pass_ms(10);
        assert_eq!(device.asked(), ["input"]);
        assert_eq!(look(&world.a, &a, |tp| tp.rcv_nxt), TcpSeq(0));
    });
}

#[test]
fn a_connection_that_the_device_does_not_take_stays_with_the_stack() {
    let full = Device {
        full: true,
        ..Device::default()
    };
    with_device(full, |world, device| {
        let (a, b) = connected(world);
        assert_eq!(device.asked(), ["connect"]);
        send_all(&a, b"hello");
        let mut buffer = [0; 8];
        assert_eq!(b.recv(&mut buffer, MsgFlags::empty()), Ok(5));
        assert!(device.asked().is_empty());
    });
}

#[test]
fn the_device_is_asked_only_where_it_is_switched_on_and_wanted() {
    with_device(Device::default(), |world, device| {
        let listen = listener(&world.b, 5);
        let a = tcp(&world.a);
        a.setsockopt_int(SOL_SOCKET, SO_NO_OFFLOAD, 1).unwrap();
        a.connect(&SockAddr::v4(ADDR_B, PORT)).unwrap();
        listen.accept().unwrap();
        assert!(device.asked().is_empty());
        let ifp = &world.a.ifp;
        ifp.set_capenable(ifp.capenable() - IfCap::TOE4).unwrap();
        let tap = Tap::on(world);
        let a = tcp(&world.a);
        a.connect(&SockAddr::v4(ADDR_B, PORT)).unwrap();
        assert!(device.asked().is_empty());
        assert!(!tap.seen(Dir::AtoB).is_empty());
    });
}

#[test]
fn the_device_hears_of_listeners() {
    with_device(Device::default(), |world, device| {
        let listen = listener(&world.a, 5);
        assert_eq!(device.asked(), ["listen_start"]);
        drop(listen);
        assert_eq!(device.asked(), ["listen_stop"]);
    });
}
