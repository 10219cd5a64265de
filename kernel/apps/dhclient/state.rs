//! What a client does next: RFC 2131 figure 5 without sockets and clocks, so that a test plays server and time.
//!
//! FreeBSD: sbin/dhclient/dhclient.c (state_init, state_selecting, state_bound, state_panic, …)
//! Differs from FreeBSD: retransmissions follow RFC 2131 §4.1 and §4.4.5 rather than `backoff-cutoff`; an address is
//! asked for by ARP before it is used, and declined if somebody answers (RFC 2131 §3.1).
//! Not carried over: the database of old leases; INIT-REBOOT begins from the lease at hand, when the link returns.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use sys::time::Sbintime;

use super::message::{Kind, Offer, Reply, Request};

/// The first wait for an answer; doubled after each try, up to [`LAST_WAIT`] (RFC 2131 §4.1).
const FIRST_WAIT: Sbintime = Sbintime::from_s(4);
const LAST_WAIT: Sbintime = Sbintime::from_s(64);
/// Each wait is longer or shorter by up to this, so that clients that start together do not stay together.
const JITTER: Sbintime = Sbintime::from_s(1);
/// How long a server is looked for before the client sleeps (dhclient.conf(5), `timeout`).
const TIMEOUT: Sbintime = Sbintime::from_s(60);
/// How long it sleeps then (dhclient.conf(5), `retry`).
pub(super) const RETRY: Sbintime = Sbintime::from_s(300);
/// How long an old lease is asked for after the link returned (dhclient.conf(5), `reboot`).
const REBOOT: Sbintime = Sbintime::from_s(10);
/// The shortest time between two requests to go on with a lease (RFC 2131 §4.4.5).
const MIN_RENEWAL_WAIT: Sbintime = Sbintime::from_s(60);
/// The pause after an address was declined (RFC 2131 §3.1).
const DECLINE_WAIT: Sbintime = Sbintime::from_s(10);
/// ARP probes for an address before it is used, and the wait after each: a host on the link that is awake answers in
/// milliseconds. RFC 5227's own spacing would hold up a boot for seven seconds.
const PROBES: u32 = 2;
const PROBE_WAIT: Sbintime = Sbintime::from_ms(100);

/// A lease that was taken.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Lease {
    pub(super) offer: Offer,
    /// When it was asked for; its times count from here (RFC 2131 §4.4.1).
    pub(super) since: Sbintime,
}

impl Lease {
    fn expires(&self) -> Sbintime {
        self.since.saturating_add(self.offer.lease)
    }

    fn rebind(&self) -> Sbintime {
        self.since.saturating_add(self.offer.rebind_after())
    }

    fn renew(&self) -> Sbintime {
        self.since.saturating_add(self.offer.renew_after())
    }
}

/// Where the client is in figure 5. FreeBSD: `enum dhcp_state`.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum State {
    /// Begins at the deadline.
    Init,
    /// Has asked for offers.
    Selecting(Retry),
    /// Has chosen one.
    Requesting(Offer, Retry),
    /// Asks for the old lease again.
    Rebooting(Lease, Retry),
    /// Has been given an address, and looks whether somebody uses it. The figure has this inside its arrow to BOUND.
    Checking { lease: Lease, probes: u32 },
    /// Uses it.
    Bound(Lease),
    /// Past T1: asks its server. The time is that of the last request.
    Renewing(Lease, Sbintime),
    /// Past T2: asks any server.
    Rebinding(Lease, Sbintime),
}

/// A request that is repeated until it is answered.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Retry {
    /// When it was first sent.
    first: Sbintime,
    /// When it was last sent.
    last: Sbintime,
    /// The wait before it is sent again.
    wait: Sbintime,
}

/// What the client is to do.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Action {
    Send(Request),
    /// Ask by ARP who has it.
    Probe(Ipv4Addr),
    /// Use what was leased, instead of what is in use.
    Bind(Offer),
    /// Use no address.
    Unbind,
    /// The server goes on with the lease as it was.
    Renewed(Offer),
    /// The server refused.
    Refused,
    /// Somebody has the address.
    InUse(Ipv4Addr),
    /// No server answers; the client tries again later.
    Sleep,
}

/// A client of one interface.
pub(super) struct Machine {
    state: State,
    /// When [`Machine::tick`] has something to do.
    deadline: Sbintime,
    /// Whether an address is in use.
    bound: Option<Ipv4Addr>,
    xid: u32,
    random: fn() -> u64,
}

impl Machine {
    /// A client that begins at once. `random` spreads its tries and names its transactions.
    pub(super) fn new(now: Sbintime, random: fn() -> u64) -> Machine {
        Machine {
            state: State::Init,
            deadline: now,
            bound: None,
            xid: random() as u32,
            random,
        }
    }

    /// The transaction whose answers are read.
    pub(super) fn xid(&self) -> u32 {
        self.xid
    }

    /// The address in use.
    pub(super) fn address(&self) -> Option<Ipv4Addr> {
        self.bound
    }

    /// When [`Machine::tick`] is due.
    pub(super) fn deadline(&self) -> Sbintime {
        self.deadline
    }

    /// Whether a message or somebody's ARP would matter now.
    pub(super) fn listens(&self) -> bool {
        !matches!(self.state, State::Init | State::Bound(_))
    }

    /// What was leased cannot be used here: tries again later.
    pub(super) fn unusable(&mut self, now: Sbintime) {
        self.unbound();
        self.init(now.saturating_add(RETRY));
    }

    #[cfg(test)]
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Does what is due at `now`.
    pub(super) fn tick(&mut self, now: Sbintime) -> Vec<Action> {
        let mut actions = Vec::new();
        if now < self.deadline {
            return actions;
        }
        match self.state.clone() {
            State::Init => self.discover(now, &mut actions),
            State::Selecting(retry) => match self.again(retry, now, TIMEOUT) {
                Some(retry) => {
                    actions.push(Action::Send(Request::Discover));
                    self.state = State::Selecting(retry);
                }
                None => {
                    actions.push(Action::Sleep);
                    self.init(now.saturating_add(RETRY));
                }
            },
            State::Requesting(offer, retry) => match self.again(retry, now, TIMEOUT) {
                Some(retry) => {
                    actions.push(select(&offer));
                    self.state = State::Requesting(offer, retry);
                }
                None => self.discover(now, &mut actions),
            },
            State::Rebooting(lease, retry) => match self.again(retry, now, REBOOT) {
                Some(retry) => {
                    let address = lease.offer.address;
                    actions.push(Action::Send(Request::Reboot { address }));
                    self.state = State::Rebooting(lease, retry);
                }
                // RFC 2131 §3.2: nobody objects, so the lease is used as long as it runs.
                None => {
                    self.deadline = lease.renew();
                    self.state = State::Bound(lease);
                }
            },
            State::Checking { lease, probes } => self.check(lease, probes, now, &mut actions),
            State::Bound(lease) | State::Renewing(lease, _) | State::Rebinding(lease, _) => {
                self.extend(lease, now, &mut actions);
            }
        }
        actions
    }

    /// Takes a server's answer.
    pub(super) fn reply(&mut self, reply: Reply, now: Sbintime) -> Vec<Action> {
        let mut actions = Vec::new();
        let Reply { kind, offer } = reply;
        match (self.state.clone(), kind) {
            (State::Selecting(_), Kind::Offer) => {
                actions.push(select(&offer));
                self.state = State::Requesting(offer, self.first_try(now));
            }
            (State::Requesting(_, retry) | State::Rebooting(_, retry), Kind::Ack) => {
                let since = retry.last;
                self.granted(Lease { offer, since }, now, &mut actions);
            }
            (State::Renewing(_, since) | State::Rebinding(_, since), Kind::Ack) => {
                self.granted(Lease { offer, since }, now, &mut actions);
            }
            (
                State::Requesting(..)
                | State::Rebooting(..)
                | State::Renewing(..)
                | State::Rebinding(..),
                Kind::Nak,
            ) => {
                actions.push(Action::Refused);
                if self.bound.is_some() {
                    actions.push(Action::Unbind);
                    self.unbound();
                }
                self.discover(now, &mut actions);
            }
            // An answer that comes twice or too late.
            (
                State::Init
                | State::Selecting(_)
                | State::Requesting(..)
                | State::Rebooting(..)
                | State::Checking { .. }
                | State::Bound(_)
                | State::Renewing(..)
                | State::Rebinding(..),
                Kind::Offer | Kind::Ack | Kind::Nak,
            ) => {}
        }
        actions
    }

    /// Somebody on the link has `address`.
    pub(super) fn in_use(&mut self, address: Ipv4Addr, now: Sbintime) -> Vec<Action> {
        let mut actions = Vec::new();
        let State::Checking { lease, .. } = &self.state else {
            return actions;
        };
        if lease.offer.address != address {
            return actions;
        }
        let server = lease.offer.server;
        actions.push(Action::InUse(address));
        actions.push(Action::Send(Request::Decline { address, server }));
        if self.bound.is_some() {
            actions.push(Action::Unbind);
            self.unbound();
        }
        self.init(now.saturating_add(DECLINE_WAIT));
        actions
    }

    /// The link is back, perhaps at another network: asks for the lease again, or for another.
    pub(super) fn link_returned(&mut self, now: Sbintime) -> Vec<Action> {
        let mut actions = Vec::new();
        match self.state.clone() {
            State::Bound(lease) | State::Renewing(lease, _) | State::Rebinding(lease, _) => {
                self.new_transaction();
                let address = lease.offer.address;
                actions.push(Action::Send(Request::Reboot { address }));
                self.state = State::Rebooting(lease, self.first_try(now));
            }
            State::Init | State::Selecting(_) | State::Requesting(..) => {
                self.discover(now, &mut actions);
            }
            // Under way already.
            State::Rebooting(..) | State::Checking { .. } => {}
        }
        actions
    }

    fn unbound(&mut self) {
        self.bound = None;
    }

    fn new_transaction(&mut self) {
        self.xid = (self.random)() as u32;
    }

    fn init(&mut self, at: Sbintime) {
        self.state = State::Init;
        self.deadline = at;
    }

    /// INIT to SELECTING.
    fn discover(&mut self, now: Sbintime, actions: &mut Vec<Action>) {
        self.new_transaction();
        actions.push(Action::Send(Request::Discover));
        self.state = State::Selecting(self.first_try(now));
    }

    /// A server has leased us something: that which we use, or an address that somebody else may use.
    fn granted(&mut self, lease: Lease, now: Sbintime, actions: &mut Vec<Action>) {
        if self.bound == Some(lease.offer.address) {
            actions.push(Action::Renewed(lease.offer.clone()));
            self.deadline = lease.renew();
            self.state = State::Bound(lease);
        } else {
            self.check(lease, 0, now, actions);
        }
    }

    fn check(&mut self, lease: Lease, probes: u32, now: Sbintime, actions: &mut Vec<Action>) {
        if probes < PROBES {
            actions.push(Action::Probe(lease.offer.address));
            self.deadline = now.saturating_add(PROBE_WAIT);
            let probes = probes + 1;
            self.state = State::Checking { lease, probes };
            return;
        }
        actions.push(Action::Bind(lease.offer.clone()));
        self.bound = Some(lease.offer.address);
        self.deadline = lease.renew();
        self.state = State::Bound(lease);
    }

    /// Asks to go on with a lease, more often as it runs out (RFC 2131 §4.4.5), until it has.
    fn extend(&mut self, lease: Lease, now: Sbintime, actions: &mut Vec<Action>) {
        if now >= lease.expires() {
            actions.push(Action::Unbind);
            self.unbound();
            self.discover(now, actions);
            return;
        }
        if matches!(self.state, State::Bound(_)) {
            self.new_transaction();
        }
        let address = lease.offer.address;
        let (request, end) = if now < lease.rebind() {
            let server = lease.offer.server;
            (Request::Renew { address, server }, lease.rebind())
        } else {
            (Request::Rebind { address }, lease.expires())
        };
        actions.push(Action::Send(request));
        let half = Sbintime((end - now).0 / 2);
        self.deadline = now.saturating_add(half.max(MIN_RENEWAL_WAIT)).min(end);
        self.state = if now < lease.rebind() {
            State::Renewing(lease, now)
        } else {
            State::Rebinding(lease, now)
        };
    }

    fn first_try(&mut self, now: Sbintime) -> Retry {
        self.deadline = now.saturating_add(self.jittered(FIRST_WAIT));
        Retry {
            first: now,
            last: now,
            wait: FIRST_WAIT,
        }
    }

    /// The next try, unless `limit` has passed since the first.
    fn again(&mut self, retry: Retry, now: Sbintime, limit: Sbintime) -> Option<Retry> {
        let end = retry.first.saturating_add(limit);
        if now >= end {
            return None;
        }
        let wait = (retry.wait + retry.wait).min(LAST_WAIT);
        self.deadline = now.saturating_add(self.jittered(wait)).min(end);
        Some(Retry {
            last: now,
            wait,
            ..retry
        })
    }

    fn jittered(&self, wait: Sbintime) -> Sbintime {
        let spread = 2 * JITTER.0 as u64 + 1;
        wait + Sbintime(((self.random)() % spread) as i64) - JITTER
    }
}

fn select(offer: &Offer) -> Action {
    Action::Send(Request::Select {
        address: offer.address,
        server: offer.server,
    })
}

#[cfg(test)]
mod tests;
