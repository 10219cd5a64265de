//! dhclient: leases an address for an interface.
//!
//! FreeBSD: sbin/dhclient; RFC 2131, RFC 2132
//! Differs from FreeBSD: only requests go out as frames of our own making, since there is no address to send
//! from; answers come in through a UDP socket, because our `ip_input` accepts the limited broadcast on an
//! interface without an address just as FreeBSD's does.

mod frame;
mod message;
#[cfg(not(target_os = "none"))]
pub mod properties;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::net::Ipv4Addr;

use netinet::in_control::{AddrArgs, in_difaddr, in_sifaddr};
use netinet::vnet::{InetVnet, inet_of};
use sys::errno::Errno;
use sys::kern::kern_synch::pause_sbt;
use sys::kern::subr_epoch::NetEpoch;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine;
use sys::net::ifnet::{IfFlags, Ifnet};
use sys::net::route::{RouteSpec, RtFlags};
use sys::socket::{AF_INET, MsgFlags, SO_REUSEADDR, SOL_SOCKET, SockAddr, SockType};
use sys::time::Sbintime;

use crate::apps::Env;
use crate::outln;

use message::{Kind, Offer, Reply, Request};

/// The client's port; the server's is 67.
const CLIENT_PORT: u16 = 68;
/// The first wait for an answer; doubled after each try, up to [`LAST_WAIT`] (RFC 2131 §4.1).
const FIRST_WAIT: Sbintime = Sbintime::from_s(1);
const LAST_WAIT: Sbintime = Sbintime::from_s(16);
/// How long an interface without link is waited for.
const LINK_WAIT: Sbintime = Sbintime::from_s(10);
/// Tries before giving up; FreeBSD's client gives up after 60 s.
const TRIES: u32 = 6;
/// How often a wait looks whether the program should stop.
const POLL: Sbintime = Sbintime::from_ms(100);
/// The longest answer that is read.
const MAX_MESSAGE: usize = 1500;

const USAGE: &str = "usage: dhclient [-bd] interface\n";

/// A lease that was taken.
struct Lease {
    offer: Offer,
    /// When it was asked for.
    since: Sbintime,
}

/// Why there is no lease.
enum Failure {
    NoAnswer,
    Refused,
    Interrupted,
    NoLink,
    Socket(&'static str, Errno),
    Configure(Errno),
}

impl Failure {
    fn reason(&self, ifname: &str) -> String {
        match self {
            Failure::NoAnswer => String::from("No DHCPOFFERS received."),
            Failure::Refused => String::from("DHCPNAK received."),
            Failure::Interrupted => String::from("interrupted."),
            Failure::NoLink => format!("{ifname}: no link ........ giving up"),
            Failure::Socket(what, errno) => format!("{ifname}: cannot {what}: {errno}"),
            Failure::Configure(errno) => format!("{ifname}: cannot set the address: {errno}"),
        }
    }
}

/// When the program gives the shell back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Once it has a lease, which it keeps up in the background.
    AfterLease,
    /// At once (`-b`).
    Background,
    /// Never: it stays until interrupted (`-d`).
    Foreground,
}

/// Runs `dhclient` with the words of `env`: takes a lease, and keeps it up.
pub fn main(env: &Env) -> i32 {
    let (mode, name) = match env.operands() {
        [flag, name] if flag == "-b" => (Mode::Background, name),
        [flag, name] if flag == "-d" => (Mode::Foreground, name),
        [name] if !name.starts_with('-') => (Mode::AfterLease, name),
        _ => {
            env.out.write(USAGE);
            return 1;
        }
    };
    let Some(ifp) = env.vnet.ifunit(name) else {
        outln!(env, "{name}: not found");
        return 1;
    };
    let Some(inet) = inet_of(&env.vnet) else {
        outln!(env, "{name}: no Internet protocols in this stack");
        return 1;
    };
    let take_and_keep = move |env: &Env| {
        let mut client = Client::new(env, inet, ifp);
        match client.take() {
            Ok(lease) if mode == Mode::AfterLease => {
                crate::apps::spawn(env, "dhclient", move |env| {
                    client_again(env, &lease);
                    0
                });
                0
            }
            Ok(lease) => client.keep(lease),
            Err(failure) => {
                outln!(env, "{}", failure.reason(client.name()));
                1
            }
        }
    };
    match mode {
        Mode::Background => {
            crate::apps::spawn(env, "dhclient", take_and_keep);
            0
        }
        Mode::AfterLease | Mode::Foreground => take_and_keep(env),
    }
}

/// Goes on with a lease on another thread.
fn client_again(env: &Env, lease: &Lease) {
    let Some(name) = env.operands().last() else {
        return;
    };
    let (Some(ifp), Some(inet)) = (env.vnet.ifunit(name), inet_of(&env.vnet)) else {
        return;
    };
    let lease = Lease {
        offer: lease.offer.clone(),
        since: lease.since,
    };
    Client::new(env, inet, ifp).keep(lease);
}

struct Client<'a> {
    env: &'a Env,
    inet: Arc<InetVnet>,
    ifp: Arc<Ifnet>,
    xid: u32,
    started: Sbintime,
}

impl<'a> Client<'a> {
    fn new(env: &'a Env, inet: Arc<InetVnet>, ifp: Arc<Ifnet>) -> Client<'a> {
        Client {
            env,
            inet,
            ifp,
            xid: machine::random_u64() as u32,
            started: machine::sbinuptime(),
        }
    }

    fn name(&self) -> &str {
        &self.ifp.if_xname
    }

    /// INIT to BOUND (RFC 2131 §4.4.1).
    fn take(&mut self) -> Result<Lease, Failure> {
        self.ifp
            .change_flags(IfFlags::UP, IfFlags::empty())
            .map_err(Failure::Configure)?;
        self.wait_for_link()?;
        let so = self.listen()?;
        let name = String::from(self.name());

        outln!(
            self.env,
            "DHCPDISCOVER on {name} to 255.255.255.255 port 67"
        );
        let offer = self.ask(&so, &Request::Discover, Kind::Offer)?;
        outln!(self.env, "DHCPOFFER from {}", offer.server);
        outln!(self.env, "DHCPREQUEST on {name} to 255.255.255.255 port 67");
        let since = machine::sbinuptime();
        let request = Request::Select {
            address: offer.address,
            server: offer.server,
        };
        let offer = self.ask(&so, &request, Kind::Ack)?;
        outln!(self.env, "DHCPACK from {}", offer.server);
        self.configure(&offer).map_err(Failure::Configure)?;
        outln!(
            self.env,
            "bound to {} -- renewal in {} seconds.",
            offer.address,
            offer.renew_after().as_s()
        );
        Ok(Lease { offer, since })
    }

    fn wait_for_link(&self) -> Result<(), Failure> {
        use sys::net::ifnet::LinkState;
        let deadline = machine::sbinuptime() + LINK_WAIT;
        while self.ifp.link_state() == LinkState::Down {
            if self.env.interrupted() {
                return Err(Failure::Interrupted);
            }
            if machine::sbinuptime() > deadline {
                return Err(Failure::NoLink);
            }
            pause_sbt("dhclnk", POLL);
        }
        Ok(())
    }

    fn listen(&self) -> Result<SocketHandle, Failure> {
        let so = SocketHandle::socket(&self.env.vnet, AF_INET, SockType::Dgram, 0)
            .map_err(|errno| Failure::Socket("create a socket", errno))?;
        so.setsockopt_int(SOL_SOCKET, SO_REUSEADDR, 1)
            .and_then(|()| so.set_rcvtimeo(Some(POLL)))
            .map_err(|errno| Failure::Socket("prepare the socket", errno))?;
        so.bind(&SockAddr::v4(Ipv4Addr::UNSPECIFIED, CLIENT_PORT))
            .map_err(|errno| Failure::Socket("bind to port 68", errno))?;
        Ok(so)
    }

    /// Sends `request` until the wanted answer comes.
    fn ask(&self, so: &SocketHandle, request: &Request, wanted: Kind) -> Result<Offer, Failure> {
        let mut wait = FIRST_WAIT;
        for _ in 0..TRIES {
            self.send(so, request)?;
            let deadline = machine::sbinuptime() + wait;
            while machine::sbinuptime() < deadline {
                if self.env.interrupted() {
                    return Err(Failure::Interrupted);
                }
                match self.receive(so)? {
                    Some(Reply { kind, offer }) if kind == wanted => return Ok(offer),
                    Some(Reply {
                        kind: Kind::Nak, ..
                    }) if wanted == Kind::Ack => {
                        return Err(Failure::Refused);
                    }
                    _ => {}
                }
            }
            wait = (wait + wait).min(LAST_WAIT);
        }
        Err(Failure::NoAnswer)
    }

    /// Sends one message: to the server if we have an address, else as a broadcast frame.
    fn send(&self, so: &SocketHandle, request: &Request) -> Result<(), Failure> {
        let seconds = (machine::sbinuptime() - self.started).as_s() as u16;
        let text = message::encode(request, self.xid, seconds, self.ifp.lladdr());
        let failed = |errno| Failure::Socket("send a request", errno);
        if let Request::Renew { server, .. } = request {
            let to = SockAddr::v4(*server, frame::SERVER_PORT);
            return so.sendto(&text, MsgFlags::empty(), &to).map(drop).or_else(
                |errno| match errno {
                    // The next try, or the broadcast after them, may get through.
                    Errno::EHOSTUNREACH | Errno::EHOSTDOWN | Errno::ENETUNREACH => Ok(()),
                    errno => Err(failed(errno)),
                },
            );
        }
        let m = frame::broadcast(&text, CLIENT_PORT).ok_or_else(|| failed(Errno::ENOBUFS))?;
        let epoch = NetEpoch::enter();
        frame::output(&self.ifp, &epoch, m).map_err(failed)
    }

    /// The next message that is an answer to us, if one comes within [`POLL`].
    fn receive(&self, so: &SocketHandle) -> Result<Option<Reply>, Failure> {
        let mut buffer = [0; MAX_MESSAGE];
        match so.recv(&mut buffer, MsgFlags::empty()) {
            Ok(len) => {
                let text = buffer.get(..len).unwrap_or(&[]);
                Ok(message::decode(text, self.xid, self.ifp.lladdr()))
            }
            Err(Errno::EAGAIN) => Ok(None),
            Err(Errno::EINTR) => Err(Failure::Interrupted),
            Err(errno) => Err(Failure::Socket("receive", errno)),
        }
    }

    /// Gives the interface its address, and the stack its default route.
    fn configure(&self, offer: &Offer) -> Result<(), Errno> {
        let args = AddrArgs {
            netmask: offer.netmask,
            broadcast: offer.broadcast,
            dest: None,
        };
        let known = {
            let epoch = NetEpoch::enter();
            self.ifp
                .addrs(&epoch)
                .iter()
                .any(|ia| ia.ia_addr == offer.address)
        };
        if !known {
            in_sifaddr(&self.inet, &self.ifp, offer.address, &args)?;
        }
        let Some(router) = offer.router else {
            return Ok(());
        };
        let spec = RouteSpec {
            dst: Ipv4Addr::UNSPECIFIED,
            prefix_len: 0,
            gw: Some(router),
            ifp: self.ifp.clone(),
            ifa: None,
            flags: RtFlags::GATEWAY | RtFlags::STATIC,
            mtu: 0,
        };
        match self.inet.rib.add(spec.clone()) {
            Err(Errno::EEXIST) => self.inet.rib.change(spec),
            other => other,
        }
    }

    /// BOUND, RENEWING and REBINDING, until interrupted (RFC 2131 §4.4.5).
    fn keep(&mut self, mut lease: Lease) -> i32 {
        loop {
            let renew = lease.since + lease.offer.renew_after();
            while machine::sbinuptime() < renew {
                if self.env.interrupted() {
                    return 0;
                }
                pause_sbt(
                    "dhcp",
                    Sbintime::from_s(1).min(renew - machine::sbinuptime()),
                );
            }
            match self.renew(&lease) {
                Ok(renewed) => lease = renewed,
                Err(Failure::Interrupted) => return 0,
                Err(failure) => {
                    outln!(self.env, "{}", failure.reason(self.name()));
                    let _ = in_difaddr(&self.inet, &self.ifp, lease.offer.address);
                    match self.take() {
                        Ok(fresh) => lease = fresh,
                        Err(_) => return 1,
                    }
                }
            }
        }
    }

    /// Asks the server, and late in the lease any server, to go on with it.
    fn renew(&mut self, lease: &Lease) -> Result<Lease, Failure> {
        let so = self.listen()?;
        let expires = lease.since + lease.offer.lease;
        let rebind = lease.since + lease.offer.rebind_after();
        self.xid = self.xid.wrapping_add(1);
        while machine::sbinuptime() < expires {
            let since = machine::sbinuptime();
            let address = lease.offer.address;
            let request = if since < rebind {
                Request::Renew {
                    address,
                    server: lease.offer.server,
                }
            } else {
                Request::Rebind { address }
            };
            match self.ask(&so, &request, Kind::Ack) {
                Ok(offer) => {
                    self.configure(&offer).map_err(Failure::Configure)?;
                    return Ok(Lease { offer, since });
                }
                Err(Failure::NoAnswer) => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::NoAnswer)
    }
}
