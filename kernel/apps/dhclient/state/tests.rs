//! A client with a server and a clock that a test plays.

use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 16);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const LEASE: i64 = 8000;

fn at(s: i64) -> Sbintime {
    Sbintime::from_s(s)
}

/// No jitter: the middle of its range.
fn middle() -> u64 {
    JITTER.0 as u64
}

fn reply(kind: Kind, address: Ipv4Addr) -> Reply {
    Reply {
        kind,
        offer: Offer::for_test(address, SERVER, Sbintime::from_s(LEASE)),
    }
}

fn offer(address: Ipv4Addr) -> Offer {
    reply(Kind::Ack, address).offer
}

/// Lets time pass up to `end`; what was done, and when (in whole seconds).
fn run(machine: &mut Machine, end: Sbintime) -> Vec<(i64, Action)> {
    let mut done = Vec::new();
    while machine.deadline() <= end {
        let now = machine.deadline();
        done.extend(machine.tick(now).into_iter().map(|a| (now.as_s(), a)));
    }
    done
}

fn sent(request: Request) -> Action {
    Action::Send(request)
}

/// A client that was bound to `ADDRESS` at time 1.
fn bound() -> Machine {
    let mut machine = Machine::new(Sbintime::ZERO, middle);
    machine.tick(Sbintime::ZERO);
    machine.reply(reply(Kind::Offer, ADDRESS), Sbintime::ZERO);
    machine.reply(reply(Kind::Ack, ADDRESS), Sbintime::ZERO);
    run(&mut machine, at(1));
    assert!(matches!(machine.state(), State::Bound(_)));
    machine
}

const RENEW: Request = Request::Renew {
    address: ADDRESS,
    server: SERVER,
};
const REBIND: Request = Request::Rebind { address: ADDRESS };
const SELECT: Request = Request::Select {
    address: ADDRESS,
    server: SERVER,
};

#[test]
fn an_address_is_discovered_requested_looked_for_and_bound() {
    let mut machine = Machine::new(Sbintime::ZERO, middle);
    assert_eq!(machine.tick(Sbintime::ZERO), [sent(Request::Discover)]);
    assert_eq!(
        machine.reply(reply(Kind::Offer, ADDRESS), at(1)),
        [sent(SELECT)]
    );
    // A second server's offer is not wanted any more.
    assert_eq!(machine.reply(reply(Kind::Offer, OTHER), at(1)), []);
    assert_eq!(
        machine.reply(reply(Kind::Ack, ADDRESS), at(2)),
        [Action::Probe(ADDRESS)]
    );
    assert_eq!(
        run(&mut machine, at(3)),
        [
            (2, Action::Probe(ADDRESS)),
            (2, Action::Bind(offer(ADDRESS)))
        ]
    );
    assert_eq!(machine.address(), Some(ADDRESS));
    // Half of the lease, from when it was asked for.
    assert_eq!(machine.deadline(), at(1 + LEASE / 2));
}

#[test]
fn requests_are_repeated_after_four_seconds_and_twice_that_each_time() {
    let mut machine = Machine::new(Sbintime::ZERO, middle);
    let discover = sent(Request::Discover);
    assert_eq!(
        run(&mut machine, at(59)),
        [0, 4, 12, 28].map(|t| (t, discover.clone()))
    );
    // Clients that start together do not stay together.
    let mut early = Machine::new(Sbintime::ZERO, || 0);
    assert_eq!(run(&mut early, at(3)).len(), 2);
}

#[test]
fn without_a_server_the_client_sleeps_five_minutes_and_begins_again_for_ever() {
    let mut machine = Machine::new(Sbintime::ZERO, middle);
    let done = run(&mut machine, at(1000));
    let sleeps: Vec<i64> = done
        .iter()
        .filter_map(|(t, action)| (*action == Action::Sleep).then_some(*t))
        .collect();
    assert_eq!(sleeps, [60, 420, 780]);
    assert!(done.contains(&(360, sent(Request::Discover))));
}

#[test]
fn a_server_that_offers_but_does_not_lease_is_left_after_a_minute() {
    let mut machine = Machine::new(Sbintime::ZERO, middle);
    machine.tick(Sbintime::ZERO);
    machine.reply(reply(Kind::Offer, ADDRESS), Sbintime::ZERO);
    let done = run(&mut machine, at(60));
    assert_eq!(done.len(), 4);
    assert_eq!(done[2], (28, sent(SELECT)));
    assert_eq!(done[3], (60, sent(Request::Discover)));
}

#[test]
fn a_refused_request_begins_anew() {
    let mut machine = Machine::new(Sbintime::ZERO, middle);
    machine.tick(Sbintime::ZERO);
    machine.reply(reply(Kind::Offer, ADDRESS), Sbintime::ZERO);
    assert_eq!(
        machine.reply(reply(Kind::Nak, ADDRESS), at(1)),
        [Action::Refused, sent(Request::Discover)]
    );
}

#[test]
fn an_address_that_answers_arp_is_declined_and_another_asked_for_ten_seconds_later() {
    let mut machine = Machine::new(Sbintime::ZERO, middle);
    machine.tick(Sbintime::ZERO);
    machine.reply(reply(Kind::Offer, ADDRESS), Sbintime::ZERO);
    machine.reply(reply(Kind::Ack, ADDRESS), Sbintime::ZERO);
    // Not the one that is looked for.
    assert_eq!(machine.in_use(OTHER, Sbintime::ZERO), []);
    assert_eq!(
        machine.in_use(ADDRESS, Sbintime::ZERO),
        [
            Action::InUse(ADDRESS),
            sent(Request::Decline {
                address: ADDRESS,
                server: SERVER
            })
        ]
    );
    assert_eq!(machine.address(), None);
    assert_eq!(run(&mut machine, at(10)), [(10, sent(Request::Discover))]);
}

#[test]
fn the_server_is_asked_from_t1_on_and_every_server_from_t2_on_each_time_after_half_of_what_is_left()
{
    let mut machine = bound();
    assert_eq!(machine.deadline(), at(4000));
    assert_eq!(
        run(&mut machine, at(LEASE - 1)),
        [
            (4000, sent(RENEW)),
            (5500, sent(RENEW)),
            (6250, sent(RENEW)),
            (6625, sent(RENEW)),
            (6812, sent(RENEW)),
            (6906, sent(RENEW)),
            (6966, sent(RENEW)),
            (7000, sent(REBIND)),
            (7500, sent(REBIND)),
            (7750, sent(REBIND)),
            (7875, sent(REBIND)),
            (7937, sent(REBIND)),
            (7997, sent(REBIND)),
        ]
    );
    assert_eq!(machine.address(), Some(ADDRESS));
}

#[test]
fn a_lease_that_ran_out_is_given_up_and_servers_are_looked_for_until_one_answers() {
    let mut machine = bound();
    run(&mut machine, at(LEASE - 1));
    assert_eq!(
        run(&mut machine, at(LEASE)),
        [(LEASE, Action::Unbind), (LEASE, sent(Request::Discover))]
    );
    assert_eq!(machine.address(), None);
    // A day later it still asks.
    run(&mut machine, at(100_000));
    let next = machine.deadline();
    assert!(next <= at(100_000) + RETRY);
    machine.link_returned(at(100_001));
    assert_eq!(
        machine.reply(reply(Kind::Offer, ADDRESS), at(100_001)),
        [sent(SELECT)]
    );
}

#[test]
fn a_renewed_lease_runs_from_the_request_that_was_answered() {
    let mut machine = bound();
    run(&mut machine, at(5500));
    assert_eq!(
        machine.reply(reply(Kind::Ack, ADDRESS), at(5501)),
        [Action::Renewed(offer(ADDRESS))]
    );
    assert_eq!(machine.deadline(), at(5500 + LEASE / 2));
    // The same of another server.
    let mut machine = bound();
    run(&mut machine, at(7000));
    machine.reply(reply(Kind::Ack, ADDRESS), at(7001));
    assert!(matches!(machine.state(), State::Bound(_)));
}

#[test]
fn a_renewal_that_brings_another_address_looks_for_it_first_and_then_takes_it() {
    let mut machine = bound();
    run(&mut machine, at(4000));
    assert_eq!(
        machine.reply(reply(Kind::Ack, OTHER), at(4001)),
        [Action::Probe(OTHER)]
    );
    let done = run(&mut machine, at(4002));
    assert_eq!(done.last(), Some(&(4001, Action::Bind(offer(OTHER)))));
    assert_eq!(machine.address(), Some(OTHER));
}

#[test]
fn a_renewal_that_is_refused_gives_the_address_up_at_once() {
    for late in [4000, 7000] {
        let mut machine = bound();
        run(&mut machine, at(late));
        assert_eq!(
            machine.reply(reply(Kind::Nak, ADDRESS), at(late + 1)),
            [Action::Refused, Action::Unbind, sent(Request::Discover)]
        );
        assert_eq!(machine.address(), None);
    }
}

#[test]
fn when_the_link_returns_the_lease_is_asked_for_again() {
    let reboot = sent(Request::Reboot { address: ADDRESS });
    let mut machine = bound();
    assert_eq!(
        machine.link_returned(at(100)),
        core::slice::from_ref(&reboot)
    );
    assert_eq!(
        machine.reply(reply(Kind::Ack, ADDRESS), at(101)),
        [Action::Renewed(offer(ADDRESS))]
    );
    assert_eq!(machine.deadline(), at(100 + LEASE / 2));
    // Nobody answers: it is used as long as it runs.
    let mut machine = bound();
    machine.link_returned(at(100));
    assert_eq!(
        run(&mut machine, at(4000)),
        [(104, reboot), (4000, sent(RENEW))]
    );
    // At a network where it is wrong.
    let mut machine = bound();
    machine.link_returned(at(100));
    assert_eq!(
        machine.reply(reply(Kind::Nak, ADDRESS), at(101)),
        [Action::Refused, Action::Unbind, sent(Request::Discover)]
    );
}
