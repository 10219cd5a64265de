//! DHCP messages.
//!
//! RFC 2131 §2 (layout), RFC 2132 (options)

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use sys::time::Sbintime;

/// Bytes before the options: the BOOTP message, and the magic cookie.
const FIXED: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The shortest message; some relays drop shorter ones (RFC 951).
const MIN_MESSAGE: usize = 300;

const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
const HTYPE_ETHER: u8 = 1;
/// The server shall broadcast its answer: we cannot receive unicast before we have the address.
const FLAG_BROADCAST: u16 = 0x8000;

// Offsets in the BOOTP message.
const XID: usize = 4;
const SECS: usize = 8;
const FLAGS: usize = 10;
const CIADDR: usize = 12;
const YIADDR: usize = 16;
const CHADDR: usize = 28;

// Options.
const OPT_PAD: u8 = 0;
const OPT_SUBNET_MASK: u8 = 1;
const OPT_ROUTERS: u8 = 3;
const OPT_DNS: u8 = 6;
const OPT_BROADCAST: u8 = 28;
const OPT_REQUESTED_ADDRESS: u8 = 50;
const OPT_LEASE_TIME: u8 = 51;
const OPT_MESSAGE_TYPE: u8 = 53;
const OPT_SERVER: u8 = 54;
const OPT_PARAMETERS: u8 = 55;
const OPT_RENEWAL_TIME: u8 = 58;
const OPT_REBINDING_TIME: u8 = 59;
const OPT_CLIENT: u8 = 61;
const OPT_END: u8 = 255;

/// The lease time if a server names none.
const DEFAULT_LEASE: u32 = 3600;
/// The shortest lease that is taken, and the shortest time after which one is renewed, so that a broken server is not
/// flooded.
const MIN_RENEWAL: Sbintime = Sbintime::from_s(10);

/// What a client says.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Request {
    /// Who has an address for me?
    Discover,
    /// I take this one.
    Select { address: Ipv4Addr, server: Ipv4Addr },
    /// I want to keep it, to the server it is from.
    Renew { address: Ipv4Addr, server: Ipv4Addr },
    /// I want to keep it, to any server.
    Rebind { address: Ipv4Addr },
    /// May I still use it here?
    Reboot { address: Ipv4Addr },
    /// Somebody uses what you leased me.
    Decline { address: Ipv4Addr, server: Ipv4Addr },
}

/// What a server's message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Offer,
    Ack,
    Nak,
}

/// An address and what belongs to it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Offer {
    pub(super) address: Ipv4Addr,
    pub(super) server: Ipv4Addr,
    pub(super) netmask: Option<Ipv4Addr>,
    pub(super) broadcast: Option<Ipv4Addr>,
    pub(super) router: Option<Ipv4Addr>,
    pub(super) lease: Sbintime,
    renewal: Option<Sbintime>,
    rebinding: Option<Sbintime>,
}

impl Offer {
    /// T1: half of the lease unless the server says otherwise (RFC 2131 §4.4.5).
    pub(super) fn renew_after(&self) -> Sbintime {
        let half = Sbintime(self.lease.0 / 2);
        self.renewal
            .unwrap_or(half)
            .max(MIN_RENEWAL)
            .min(self.rebind_after())
    }

    /// T2: seven eighths of the lease, never later than its end.
    pub(super) fn rebind_after(&self) -> Sbintime {
        self.rebinding
            .unwrap_or(Sbintime(self.lease.0 / 8 * 7))
            .max(MIN_RENEWAL)
            .min(self.lease)
    }

    #[cfg(test)]
    pub(super) fn for_test(address: Ipv4Addr, server: Ipv4Addr, lease: Sbintime) -> Offer {
        Offer {
            address,
            server,
            netmask: None,
            broadcast: None,
            router: None,
            lease,
            renewal: None,
            rebinding: None,
        }
    }
}

/// A server's message to us.
pub(super) struct Reply {
    pub(super) kind: Kind,
    pub(super) offer: Offer,
}

/// Builds a client's message.
pub(super) fn encode(request: &Request, xid: u32, seconds: u16, mac: [u8; 6]) -> Vec<u8> {
    let mut text = alloc::vec![0; FIXED];
    text[..4].copy_from_slice(&[BOOTREQUEST, HTYPE_ETHER, mac.len() as u8, 0]);
    text[XID..XID + 4].copy_from_slice(&xid.to_be_bytes());
    text[SECS..SECS + 2].copy_from_slice(&seconds.to_be_bytes());
    text[CHADDR..CHADDR + 6].copy_from_slice(&mac);
    match request {
        Request::Discover | Request::Select { .. } | Request::Reboot { .. } => {
            text[FLAGS..FLAGS + 2].copy_from_slice(&FLAG_BROADCAST.to_be_bytes());
        }
        Request::Renew { address, .. } | Request::Rebind { address } => {
            text[CIADDR..CIADDR + 4].copy_from_slice(&address.octets());
        }
        Request::Decline { .. } => {}
    }
    text.extend_from_slice(&COOKIE);

    const DHCPDISCOVER: u8 = 1;
    const DHCPREQUEST: u8 = 3;
    const DHCPDECLINE: u8 = 4;
    let kind = match request {
        Request::Discover => DHCPDISCOVER,
        Request::Select { .. }
        | Request::Renew { .. }
        | Request::Rebind { .. }
        | Request::Reboot { .. } => DHCPREQUEST,
        Request::Decline { .. } => DHCPDECLINE,
    };
    let mut option = |code: u8, value: &[u8]| {
        text.extend_from_slice(&[code, value.len() as u8]);
        text.extend_from_slice(value);
    };
    option(OPT_MESSAGE_TYPE, &[kind]);
    let mut client = [HTYPE_ETHER, 0, 0, 0, 0, 0, 0];
    client[1..].copy_from_slice(&mac);
    option(OPT_CLIENT, &client);
    // RFC 2131 table 5: who names which.
    match request {
        Request::Select { address, server } | Request::Decline { address, server } => {
            option(OPT_REQUESTED_ADDRESS, &address.octets());
            option(OPT_SERVER, &server.octets());
        }
        Request::Reboot { address } => option(OPT_REQUESTED_ADDRESS, &address.octets()),
        Request::Discover | Request::Renew { .. } | Request::Rebind { .. } => {}
    }
    if !matches!(request, Request::Decline { .. }) {
        option(
            OPT_PARAMETERS,
            &[
                OPT_SUBNET_MASK,
                OPT_BROADCAST,
                OPT_ROUTERS,
                OPT_DNS,
                OPT_LEASE_TIME,
                OPT_RENEWAL_TIME,
                OPT_REBINDING_TIME,
            ],
        );
    }
    text.push(OPT_END);
    text.resize(text.len().max(MIN_MESSAGE), OPT_PAD);
    text
}

/// Reads a server's message; `None` if it is not one, or not for us.
pub(super) fn decode(text: &[u8], xid: u32, mac: [u8; 6]) -> Option<Reply> {
    let fixed = text.get(..FIXED)?;
    let ours = fixed[0] == BOOTREPLY
        && fixed[XID..XID + 4] == xid.to_be_bytes()
        && fixed[CHADDR..CHADDR + 6] == mac;
    let options = text.get(FIXED..)?.strip_prefix(&COOKIE)?;
    if !ours {
        return None;
    }
    let kind = match value(options, OPT_MESSAGE_TYPE)? {
        [2] => Kind::Offer,
        [5] => Kind::Ack,
        [6] => Kind::Nak,
        _ => return None,
    };
    let yiaddr = Ipv4Addr::from(*fixed[YIADDR..].first_chunk::<4>()?);
    let usable = !yiaddr.is_unspecified() && !yiaddr.is_multicast() && !yiaddr.is_broadcast();
    if kind != Kind::Nak && !usable {
        return None;
    }
    let address = |code| {
        value(options, code)?
            .first_chunk::<4>()
            .map(|octets| Ipv4Addr::from(*octets))
    };
    let seconds = |code| {
        value(options, code)?
            .first_chunk::<4>()
            .map(|bytes| u32::from_be_bytes(*bytes))
    };
    let span = |s: u32| Sbintime::from_s(i64::from(s.min(i32::MAX as u32)));
    let lease = span(seconds(OPT_LEASE_TIME).unwrap_or(DEFAULT_LEASE));
    if kind != Kind::Nak && lease < MIN_RENEWAL {
        return None;
    }
    Some(Reply {
        kind,
        offer: Offer {
            address: yiaddr,
            server: address(OPT_SERVER)?,
            netmask: address(OPT_SUBNET_MASK),
            broadcast: address(OPT_BROADCAST),
            router: address(OPT_ROUTERS),
            lease,
            renewal: seconds(OPT_RENEWAL_TIME).map(span),
            rebinding: seconds(OPT_REBINDING_TIME).map(span),
        },
    })
}

/// The value of the first option with this code.
fn value(mut options: &[u8], wanted: u8) -> Option<&[u8]> {
    loop {
        match *options {
            [OPT_PAD, ref rest @ ..] => options = rest,
            [OPT_END, ..] | [] | [_] => return None,
            [code, len, ref rest @ ..] => {
                let (value, after) = rest.split_at_checked(usize::from(len))?;
                if code == wanted {
                    return Some(value);
                }
                options = after;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn offer(options: &[u8]) -> Vec<u8> {
        let mut text = alloc::vec![0; FIXED];
        text[0] = BOOTREPLY;
        text[XID..XID + 4].copy_from_slice(&7u32.to_be_bytes());
        text[YIADDR..YIADDR + 4].copy_from_slice(&[10, 0, 2, 15]);
        text[CHADDR..CHADDR + 6].copy_from_slice(&MAC);
        text.extend_from_slice(&COOKIE);
        text.extend_from_slice(options);
        text
    }

    const USUAL: &[u8] = &[
        53, 1, 2, 0, 0, 54, 4, 10, 0, 2, 2, 1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 2, 2, 51, 4, 0, 1,
        0x51, 0x80, 255,
    ];

    #[test]
    fn an_offer_is_read_with_its_mask_router_and_lease() {
        let reply = decode(&offer(USUAL), 7, MAC).unwrap();
        assert_eq!(reply.kind, Kind::Offer);
        assert_eq!(reply.offer.address, Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(reply.offer.router, Some(Ipv4Addr::new(10, 0, 2, 2)));
        assert_eq!(reply.offer.lease.as_s(), 86_400);
        assert_eq!(reply.offer.renew_after().as_s(), 43_200);
        assert_eq!(reply.offer.rebind_after().as_s(), 75_600);
    }

    #[test]
    fn what_is_not_for_us_is_passed_over() {
        assert!(decode(&offer(USUAL), 8, MAC).is_none());
        assert!(decode(&offer(USUAL), 7, [0; 6]).is_none());
        let mut request = offer(USUAL);
        request[0] = BOOTREQUEST;
        assert!(decode(&request, 7, MAC).is_none());
    }

    #[test]
    fn messages_cut_anywhere_are_refused_or_read_but_never_panic() {
        let whole = offer(USUAL);
        for len in 0..whole.len() {
            let _ = decode(&whole[..len], 7, MAC);
        }
        assert!(decode(&offer(&[53, 200, 2]), 7, MAC).is_none());
    }

    #[test]
    fn a_request_names_the_address_and_the_server_it_chose() {
        let address = Ipv4Addr::new(10, 0, 2, 15);
        let server = Ipv4Addr::new(10, 0, 2, 2);
        let text = encode(&Request::Select { address, server }, 7, 3, MAC);
        assert!(text.len() >= MIN_MESSAGE);
        let options = &text[FIXED + COOKIE.len()..];
        assert_eq!(value(options, OPT_MESSAGE_TYPE), Some(&[3][..]));
        assert_eq!(
            value(options, OPT_REQUESTED_ADDRESS),
            Some(&address.octets()[..])
        );
        assert_eq!(value(options, OPT_SERVER), Some(&server.octets()[..]));
        assert_eq!(text[SECS..SECS + 2], [0, 3]);
    }

    #[test]
    fn a_declined_address_is_an_option_and_nothing_is_asked_for() {
        let address = Ipv4Addr::new(10, 0, 2, 15);
        let server = Ipv4Addr::new(10, 0, 2, 2);
        let text = encode(&Request::Decline { address, server }, 7, 0, MAC);
        assert_eq!(text[CIADDR..CIADDR + 4], [0; 4]);
        let options = &text[FIXED + COOKIE.len()..];
        assert_eq!(value(options, OPT_MESSAGE_TYPE), Some(&[4][..]));
        assert_eq!(value(options, OPT_SERVER), Some(&server.octets()[..]));
        assert_eq!(value(options, OPT_PARAMETERS), None);
    }

    #[test]
    fn times_out_of_order_are_put_in_order_and_a_lease_of_no_time_is_not_taken() {
        let mut options = Vec::from(&USUAL[..USUAL.len() - 1]);
        // T1 after T2, and that after the end.
        options.extend_from_slice(&[58, 4, 0, 3, 0, 0, 59, 4, 0, 2, 0, 0, 255]);
        let odd = decode(&offer(&options), 7, MAC).unwrap().offer;
        assert_eq!(odd.rebind_after(), odd.lease);
        assert_eq!(odd.renew_after(), odd.lease);
        let short = [53, 1, 2, 54, 4, 10, 0, 2, 2, 51, 4, 0, 0, 0, 1, 255];
        assert!(decode(&offer(&short), 7, MAC).is_none());
    }
}
