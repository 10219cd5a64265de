//! What must hold of any bytes that a server sends; for the fuzzer, which feeds them.

use core::net::Ipv4Addr;

use alloc::vec::Vec;

use super::message::{Kind, Request, decode, encode};

const XID: u32 = 0x3903_f326;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Where the options begin.
const OPTIONS: usize = 240;
const CHADDR: usize = 28;

/// Reads `input` as the server's options behind a message to us, and as a whole message. Panics where a property fails.
pub fn check(input: &[u8]) {
    let _ = decode(input, XID, MAC);
    let mut text = reply_to_us(Ipv4Addr::new(10, 0, 2, 15));
    text.extend_from_slice(input);
    let Some(reply) = decode(&text, XID, MAC) else {
        return;
    };
    let offer = &reply.offer;
    // A refusal leases nothing, whatever times stand in it.
    if reply.kind != Kind::Nak {
        assert!(offer.renew_after().0 > 0, "a lease renewed without a pause");
    }
    assert!(offer.rebind_after().0 >= 0 && offer.lease.0 >= 0);
    // A message of somebody else's is never taken.
    assert!(decode(&text, XID + 1, MAC).is_none());
    assert!(decode(&text, XID, [0; 6]).is_none());
    // What was read, written by a server, is read again.
    let mut again = reply_to_us(offer.address);
    again.extend_from_slice(&options_of(&reply.kind, offer));
    let twice = decode(&again, XID, MAC).expect("a message of a server");
    assert_eq!(twice.kind, reply.kind);
    let told = |o: &super::message::Offer| (o.address, o.server, o.netmask, o.broadcast, o.router);
    assert_eq!(told(&twice.offer), told(offer));
    assert_eq!(twice.offer.lease, offer.lease);
    // What we then ask for is no reply, and is as long as relays want it.
    let request = Request::Select {
        address: offer.address,
        server: offer.server,
    };
    let request = encode(&request, XID, 0, MAC);
    assert!(request.len() >= 300 && decode(&request, XID, MAC).is_none());
}

/// The fixed part of a reply to us, with the cookie.
fn reply_to_us(address: Ipv4Addr) -> Vec<u8> {
    let mut text = encode(&Request::Discover, XID, 0, MAC);
    text.truncate(OPTIONS);
    if let Some(op) = text.first_mut() {
        *op = 2;
    }
    text[16..20].copy_from_slice(&address.octets());
    text[CHADDR..CHADDR + 6].copy_from_slice(&MAC);
    text
}

fn options_of(kind: &Kind, offer: &super::message::Offer) -> Vec<u8> {
    let kind = match kind {
        Kind::Offer => 2,
        Kind::Ack => 5,
        Kind::Nak => 6,
    };
    let mut options = Vec::from([53, 1, kind]);
    let lease = (offer.lease.as_s() as u32).to_be_bytes();
    let mut put = |code: u8, value: Option<[u8; 4]>| {
        if let Some(value) = value {
            options.extend_from_slice(&[code, 4]);
            options.extend_from_slice(&value);
        }
    };
    put(54, Some(offer.server.octets()));
    put(1, offer.netmask.map(|a| a.octets()));
    put(28, offer.broadcast.map(|a| a.octets()));
    put(3, offer.router.map(|a| a.octets()));
    put(51, Some(lease));
    options.push(255);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_offer_has_the_properties() {
        check(&[
            53, 1, 2, 54, 4, 10, 0, 2, 2, 1, 4, 255, 255, 255, 0, 51, 4, 0, 1, 0x51, 0x80, 255,
        ]);
        check(&[]);
    }

    #[test]
    fn a_refusal_may_name_a_lease_of_no_time() {
        check(&[53, 1, 6, 54, 4, 10, 0, 2, 2, 51, 4, 0, 0, 0, 0, 255]);
    }
}
