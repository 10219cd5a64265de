//! dhclient: leases an address for an interface.
//!
//! FreeBSD: sbin/dhclient; RFC 2131, RFC 2132
//! Differs from FreeBSD: one program does the work of dhclient, dhclient-script and the kernel's route socket; what a
//! daemon tells syslog stands on the console, and only what changes something.

mod frame;
mod message;
#[cfg(not(target_os = "none"))]
pub mod properties;
mod state;
#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use netinet::if_ether::{arprequest, has_arp};
use netinet::in_control::{AddrArgs, in_aifaddr, in_difaddr, in_sifaddr};
use netinet::vnet::{InetVnet, NetCx, inet_of};
use sys::errno::Errno;
use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_synch::pause_sbt;
use sys::kern::lock_order::App;
use sys::kern::subr_epoch::NetEpoch;
use sys::kern::uipc_syscalls::SocketHandle;
use sys::machine;
use sys::machine_local;
use sys::net::bpf::BpfTap;
use sys::net::ifnet::{IfFlags, Ifnet, LinkState};
use sys::net::route::{RouteSpec, RtFlags};
use sys::socket::{AF_INET, MsgFlags, SO_REUSEPORT, SOL_SOCKET, SockAddr, SockType};
use sys::time::Sbintime;

use crate::apps::Env;
use crate::outln;

use frame::{CLIENT_PORT, Event, Listener, SERVER_PORT};
use message::{Kind, Offer, Request};
use state::{Action, Machine, RETRY};

/// How long an interface without link is waited for.
const LINK_WAIT: Sbintime = Sbintime::from_s(10);
/// How often a wait looks whether the program should stop, and how the interface is.
const POLL: Sbintime = Sbintime::from_ms(100);

const USAGE: &str = "usage: dhclient [-bd] interface\n";

machine_local! {
    /// The interfaces that have a client.
    static CLIENTS: Mutex<Vec<Weak<Ifnet>>, App> = Mutex::new(Vec::new());
}

/// The right to be an interface's client, until dropped. FreeBSD: the lock on `/var/run/dhclient/dhclient.em0.pid`.
struct Claim(Weak<Ifnet>);

impl Claim {
    /// `None` if the interface has a client.
    fn new(ifp: &Arc<Ifnet>) -> Option<Claim> {
        let ifp = Arc::downgrade(ifp);
        let mut clients = CLIENTS.lock();
        if clients.iter().any(|other| other.ptr_eq(&ifp)) {
            return None;
        }
        clients.push(ifp.clone());
        Some(Claim(ifp))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLIENTS.lock().retain(|other| !other.ptr_eq(&self.0));
    }
}

/// Why a client ended.
enum Exit {
    Interrupted,
    Failed(String),
}

/// When the program gives the shell back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Once it has a lease, which it keeps up in the background, or sleeps for want of a server.
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
    let mut client = match Client::new(env, name) {
        Ok(client) => client,
        Err(reason) => {
            outln!(env, "{name}: {reason}");
            return 1;
        }
    };
    match mode {
        Mode::Foreground => client.finish(),
        Mode::Background => {
            crate::apps::spawn(env, "dhclient", move |_| client.finish());
            0
        }
        Mode::AfterLease => match client.begin().and_then(|()| client.run(Until::Settled)) {
            Ok(()) => {
                client.chatty = false;
                crate::apps::spawn(env, "dhclient", move |_| client.finish());
                0
            }
            Err(exit) => client.exit(exit),
        },
    }
}

/// How long [`Client::run`] goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Until there is a lease, or there will be none for some time (FreeBSD: `go_daemon`).
    Settled,
    /// Until it is interrupted, or the interface is taken from it.
    End,
}

struct Client {
    env: Env,
    inet: Arc<InetVnet>,
    ifp: Arc<Ifnet>,
    machine: Machine,
    listener: Arc<Listener>,
    /// The listener where the interface knows it by, while there is something to listen for.
    tap: Option<Arc<dyn BpfTap>>,
    /// Sends to a server by its address, and makes the port one that is in use: answers come through the tap.
    so: SocketHandle,
    started: Sbintime,
    /// What the interface is configured by.
    used: Option<Offer>,
    begun: bool,
    link: LinkState,
    /// Whether each message is reported.
    chatty: bool,
    _claim: Claim,
}

impl Client {
    fn new(env: &Env, name: &str) -> Result<Client, String> {
        let ifp = env
            .vnet
            .ifunit(name)
            .ok_or_else(|| String::from("not found"))?;
        let inet = inet_of(&env.vnet)
            .ok_or_else(|| String::from("no Internet protocols in this stack"))?;
        if !has_arp(&ifp) {
            return Err(String::from("not an Ethernet interface"));
        }
        let claim = Claim::new(&ifp).ok_or_else(|| String::from("dhclient already running"))?;
        let so =
            open(env).map_err(|errno| format!("cannot bind to port {CLIENT_PORT}: {errno}"))?;
        let now = machine::sbinuptime();
        Ok(Client {
            env: env.clone(),
            inet,
            machine: Machine::new(now, machine::random_u64),
            listener: Arc::new(Listener::new()),
            tap: None,
            so,
            started: now,
            used: None,
            begun: false,
            link: ifp.link_state(),
            chatty: true,
            ifp,
            _claim: claim,
        })
    }

    fn name(&self) -> &str {
        &self.ifp.if_xname
    }

    /// Goes on to the end; the program's status.
    fn finish(mut self) -> i32 {
        let begun = if self.begun { Ok(()) } else { self.begin() };
        match begun.and_then(|()| self.run(Until::End)) {
            Ok(()) => 0,
            Err(exit) => self.exit(exit),
        }
    }

    fn exit(&self, exit: Exit) -> i32 {
        match exit {
            Exit::Interrupted => 0,
            Exit::Failed(reason) => {
                outln!(self.env, "{reason}");
                1
            }
        }
    }

    /// Brings the interface up, and waits for its link.
    fn begin(&mut self) -> Result<(), Exit> {
        self.begun = true;
        self.ifp
            .change_flags(IfFlags::UP, IfFlags::empty())
            .map_err(|errno| Exit::Failed(format!("{}: {errno}", self.name())))?;
        let deadline = machine::sbinuptime() + LINK_WAIT;
        while self.ifp.link_state() == LinkState::Down {
            if self.env.interrupted() {
                return Err(Exit::Interrupted);
            }
            if machine::sbinuptime() > deadline {
                let name = self.name();
                return Err(Exit::Failed(format!("{name}: no link ........ giving up")));
            }
            pause_sbt("dhclnk", POLL);
        }
        self.link = self.ifp.link_state();
        Ok(())
    }

    fn run(&mut self, until: Until) -> Result<(), Exit> {
        loop {
            let now = machine::sbinuptime();
            if self.env.interrupted() {
                return Err(Exit::Interrupted);
            }
            self.still_ours()?;
            let link = self.ifp.link_state();
            let returned = link != LinkState::Down && self.link == LinkState::Down;
            self.link = link;
            let mut settled = false;
            if returned {
                let actions = self.machine.link_returned(now);
                settled |= self.perform(actions);
            }
            let actions = self.machine.tick(now);
            settled |= self.perform(actions);
            if settled && until == Until::Settled {
                return Ok(());
            }
            self.listen();
            let wait = POLL.min(self.machine.deadline() - machine::sbinuptime());
            match self.listener.wait(wait) {
                Some(Event::Message(text)) => {
                    let reply = message::decode(&text, self.machine.xid(), self.ifp.lladdr());
                    // What the socket got of it is not needed.
                    let mut rest = [0; 1];
                    while self.so.recv(&mut rest, MsgFlags::DONTWAIT).is_ok() {}
                    let Some(reply) = reply else { continue };
                    if self.chatty {
                        let kind = match reply.kind {
                            Kind::Offer => "DHCPOFFER",
                            Kind::Ack => "DHCPACK",
                            Kind::Nak => "DHCPNAK",
                        };
                        outln!(self.env, "{kind} from {}", reply.offer.server);
                    }
                    let actions = self.machine.reply(reply, machine::sbinuptime());
                    settled = self.perform(actions);
                }
                Some(Event::InUse(address)) => {
                    let actions = self.machine.in_use(address, machine::sbinuptime());
                    settled = self.perform(actions);
                }
                None => {}
            }
            if settled && until == Until::Settled {
                return Ok(());
            }
        }
    }

    /// The interface is up, and has the address that it was given. FreeBSD: `routehandler`
    fn still_ours(&self) -> Result<(), Exit> {
        if !self.ifp.flags().contains(IfFlags::UP) {
            return Err(Exit::Failed(format!(
                "Interface {} is down, dhclient exiting",
                self.name()
            )));
        }
        match self.machine.address() {
            Some(address) if !self.has(address) => Err(Exit::Failed(format!(
                "My address ({address}) was deleted, dhclient exiting"
            ))),
            _ => Ok(()),
        }
    }

    /// Listens to the interface while an answer can come: a lease in use costs its traffic nothing.
    fn listen(&mut self) {
        match (self.machine.listens(), &self.tap) {
            (true, None) => {
                let tap: Arc<dyn BpfTap> = self.listener.clone();
                self.ifp.if_bpf.attach(tap.clone());
                self.tap = Some(tap);
            }
            (false, Some(tap)) => {
                self.ifp.if_bpf.detach(tap);
                self.tap = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Does what the machine wants done. Whether there is a lease now, or a pause.
    fn perform(&mut self, actions: Vec<Action>) -> bool {
        // Before the first request, not after its answer.
        self.listen();
        let mut settled = false;
        for action in actions {
            match action {
                Action::Send(request) => self.request(&request),
                Action::Probe(address) => {
                    self.listener.watch(address);
                    let epoch = NetEpoch::enter();
                    let cx = NetCx::new(&self.inet, &epoch);
                    let _ = arprequest(&cx, &self.ifp, Some(Ipv4Addr::UNSPECIFIED), address);
                }
                Action::Bind(offer) => {
                    settled = true;
                    self.bind(offer);
                }
                Action::Renewed(offer) => {
                    settled = true;
                    self.reroute(offer.router);
                    self.used = Some(offer);
                }
                Action::Unbind => self.unbind(),
                Action::Refused => {
                    if !self.chatty {
                        outln!(self.env, "{}: DHCPNAK received.", self.name());
                    }
                }
                Action::InUse(address) => {
                    outln!(self.env, "{}: {address} is in use, declined.", self.name());
                }
                Action::Sleep => {
                    settled = true;
                    if self.chatty {
                        outln!(self.env, "No DHCPOFFERS received.");
                        outln!(
                            self.env,
                            "No working leases in persistent database - sleeping."
                        );
                    }
                }
            }
        }
        settled
    }

    /// Sends one message: to the server if it is its client's, else to everybody.
    fn request(&self, request: &Request) {
        let now = machine::sbinuptime();
        let seconds = (now - self.started).as_s() as u16;
        let text = message::encode(request, self.machine.xid(), seconds, self.ifp.lladdr());
        let (name, to) = (self.name(), Ipv4Addr::BROADCAST);
        let sent = match request {
            Request::Renew { server, .. } => {
                self.say(format!(
                    "DHCPREQUEST on {name} to {server} port {SERVER_PORT}"
                ));
                let to = SockAddr::v4(*server, SERVER_PORT);
                let sent = self.so.sendto(&text, MsgFlags::DONTWAIT, &to);
                sent.map(drop)
            }
            Request::Discover => {
                let interval = (self.machine.deadline() - now).as_s().max(0);
                self.say(format!(
                    "DHCPDISCOVER on {name} to {to} port {SERVER_PORT} interval {interval}"
                ));
                self.broadcast(&text, Ipv4Addr::UNSPECIFIED)
            }
            Request::Select { .. } | Request::Reboot { .. } => {
                self.say(format!("DHCPREQUEST on {name} to {to} port {SERVER_PORT}"));
                self.broadcast(&text, Ipv4Addr::UNSPECIFIED)
            }
            Request::Rebind { address } => {
                self.say(format!("DHCPREQUEST on {name} to {to} port {SERVER_PORT}"));
                self.broadcast(&text, *address)
            }
            Request::Decline { .. } => {
                self.say(format!("DHCPDECLINE on {name} to {to} port {SERVER_PORT}"));
                self.broadcast(&text, Ipv4Addr::UNSPECIFIED)
            }
        };
        // The next try may get through.
        if let Err(errno) = sent {
            self.say(format!("send_packet: {errno}"));
        }
    }

    fn broadcast(&self, text: &[u8], src: Ipv4Addr) -> Result<(), Errno> {
        let m = frame::broadcast(text, src).ok_or(Errno::ENOBUFS)?;
        let epoch = NetEpoch::enter();
        frame::output(&self.ifp, &epoch, m)
    }

    fn say(&self, text: String) {
        if self.chatty {
            outln!(self.env, "{text}");
        }
    }

    fn has(&self, address: Ipv4Addr) -> bool {
        let epoch = NetEpoch::enter();
        let addrs = self.ifp.addrs(&epoch);
        addrs.iter().any(|ia| ia.ia_addr == address)
    }

    /// Gives the interface its address in place of the one it was given before, and the stack its default route.
    fn bind(&mut self, offer: Offer) {
        let replaces = self.used.is_some();
        self.unbind();
        let args = AddrArgs {
            netmask: offer.netmask,
            broadcast: offer.broadcast,
            dest: None,
        };
        let set = if self.has(offer.address) {
            Ok(())
        } else if replaces {
            in_aifaddr(&self.inet, &self.ifp, offer.address, &args)
        } else {
            in_sifaddr(&self.inet, &self.ifp, offer.address, &args)
        };
        if let Err(errno) = set {
            let retry = RETRY.as_s();
            outln!(
                self.env,
                "{}: cannot set the address {}: {errno}; trying again in {retry} seconds",
                self.name(),
                offer.address
            );
            self.machine.unusable(machine::sbinuptime());
            return;
        }
        self.reroute(offer.router);
        outln!(
            self.env,
            "bound to {} -- renewal in {} seconds.",
            offer.address,
            offer.renew_after().as_s()
        );
        self.used = Some(offer);
    }

    /// Takes the address and the route away again.
    fn unbind(&mut self) {
        self.reroute(None);
        if let Some(offer) = self.used.take() {
            let _ = in_difaddr(&self.inet, &self.ifp, offer.address);
        }
    }

    /// Has the default route lead to `router`, in place of where it led by the lease in use. One that is not a lease's
    /// stays.
    fn reroute(&self, router: Option<Ipv4Addr>) {
        let old = self.used.as_ref().and_then(|offer| offer.router);
        let rib = &self.inet.rib;
        let ours = rib.get(Ipv4Addr::UNSPECIFIED, 0).is_some_and(|route| {
            old.is_some() && route.nhop.gw == old && Arc::ptr_eq(&route.nhop.nh_ifp, &self.ifp)
        });
        if ours && old == router {
            return;
        }
        if ours {
            let _ = rib.delete(Ipv4Addr::UNSPECIFIED, 0);
        }
        let Some(router) = router else { return };
        let added = rib.add(RouteSpec {
            dst: Ipv4Addr::UNSPECIFIED,
            prefix_len: 0,
            gw: Some(router),
            ifp: self.ifp.clone(),
            ifa: None,
            flags: RtFlags::GATEWAY | RtFlags::STATIC,
            mtu: 0,
        });
        if let Err(errno) = added {
            self.say(format!("route: add default {router}: {errno}"));
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(tap) = self.tap.take() {
            self.ifp.if_bpf.detach(&tap);
        }
    }
}

/// A socket at the client's port, which clients of several interfaces share.
fn open(env: &Env) -> Result<SocketHandle, Errno> {
    let so = SocketHandle::socket(&env.vnet, AF_INET, SockType::Dgram, 0)?;
    so.setsockopt_int(SOL_SOCKET, SO_REUSEPORT, 1)?;
    so.bind(&SockAddr::v4(Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
    Ok(so)
}
