//! SYN cookies: a handshake remembered in its own sequence number.
//!
//! FreeBSD: syncookie_generate, syncookie_lookup, syncookie_mac (tcp_syncache.c)
//! The initial sequence number is 24 bits of a keyed hash and 8 bits of what the peer's SYN offered. Timestamps are
//! recognised by the ACK having them.
//! Differs from FreeBSD: secrets are made when first needed in their 15 seconds, instead of by a timer.

use core::hash::Hasher;

use siphasher::sip::SipHasher24;
use sys::kern::kern_mutex::Mutex;
use sys::kern::lock_order::Leaf;
use sys::time::Ticks;

use crate::in_pcb::InConninfo;
use crate::tcp_seq::TcpSeq;
use crate::tcp_subr::random_key;

/// How long a secret makes cookies, in ms; they are good as long again (`SYNCOOKIE_LIFETIME`).
pub(super) const SYNCOOKIE_LIFETIME: u32 = 15_000;
/// Segment sizes that a cookie can tell.
const MSSTAB: [u16; 8] = [216, 536, 1200, 1360, 1400, 1440, 1452, 1460];
/// Window scales that a cookie can tell; the first is none.
const WSTAB: [u8; 8] = [0, 0, 1, 2, 4, 6, 7, 8];

/// What a cookie tells of a SYN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Offer {
    /// The largest segment.
    pub(super) mss: u16,
    /// The peer's window scale, if it has one.
    pub(super) wscale: Option<u8>,
    /// SACK permitted.
    pub(super) sack: bool,
}

impl Offer {
    /// The part of a cookie that tells it, and which secret made the cookie.
    fn encode(&self, odd_even: u8) -> u8 {
        let mss = MSSTAB.iter().rposition(|&mss| mss <= self.mss).unwrap_or(0);
        let wscale = self.wscale.map_or(0, |wscale| {
            let at = WSTAB[1..].iter().rposition(|&known| known <= wscale);
            at.map_or(0, |at| at + 1)
        });
        odd_even | u8::from(self.sack) << 1 | (wscale as u8) << 2 | (mss as u8) << 5
    }

    fn decode(bits: u8) -> Offer {
        let wscale = usize::from(bits >> 2 & 7);
        Offer {
            mss: MSSTAB[usize::from(bits >> 5)],
            wscale: (wscale != 0).then_some(WSTAB[wscale]),
            sack: bits & 2 != 0,
        }
    }
}

/// A secret, and the span of time in which it makes cookies.
type Secret = (u32, [u8; 16]);

/// The two secrets that cookies are made with, in turn.
pub(super) struct Secrets(Mutex<[Option<Secret>; 2], Leaf>);

impl Secrets {
    pub(super) fn new() -> Secrets {
        Secrets(Mutex::new([None; 2]))
    }

    /// The cookie for a SYN: the initial sequence number of the answer.
    #[doc(alias = "syncookie_generate")]
    pub(super) fn generate(
        &self,
        inc: &InConninfo,
        irs: TcpSeq,
        offer: &Offer,
        now: Ticks,
    ) -> TcpSeq {
        let span = now.0 / SYNCOOKIE_LIFETIME;
        let odd_even = (span & 1) as u8;
        let key = {
            let mut secrets = self.0.lock();
            match secrets[usize::from(odd_even)] {
                Some((made, key)) if made == span => key,
                _ => {
                    let key = random_key();
                    secrets[usize::from(odd_even)] = Some((span, key));
                    key
                }
            }
        };
        let bits = offer.encode(odd_even);
        let hash = mac(&key, inc, irs, bits);
        TcpSeq(hash & !0xff | (u32::from(bits) ^ hash >> 24))
    }

    /// What the SYN offered that our answer `iss` went to, if that was a cookie of ours and not too long ago.
    #[doc(alias = "syncookie_lookup")]
    pub(super) fn lookup(
        &self,
        inc: &InConninfo,
        irs: TcpSeq,
        iss: TcpSeq,
        now: Ticks,
    ) -> Option<Offer> {
        let bits = (iss.0 ^ iss.0 >> 24) as u8;
        let (made, key) = self.0.lock()[usize::from(bits & 1)]?;
        let span = now.0 / SYNCOOKIE_LIFETIME;
        let fresh = span.wrapping_sub(made) <= 1;
        let genuine = mac(&key, inc, irs, bits) & !0xff == iss.0 & !0xff;
        (fresh && genuine).then(|| Offer::decode(bits))
    }
}

#[doc(alias = "syncookie_mac")]
fn mac(key: &[u8; 16], inc: &InConninfo, irs: TcpSeq, bits: u8) -> u32 {
    let mut hasher = SipHasher24::new_with_key(key);
    crate::in_pcb::hash_addr(&mut hasher, inc.inc_faddr);
    crate::in_pcb::hash_addr(&mut hasher, inc.inc_laddr);
    hasher.write(&inc.inc_fport.to_be_bytes());
    hasher.write(&inc.inc_lport.to_be_bytes());
    hasher.write(&irs.0.to_be_bytes());
    hasher.write(&[bits]);
    let hash = hasher.finish();
    (hash ^ hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use sys::machine::hosted::Machine;

    fn peer(port: u16) -> InConninfo {
        InConninfo {
            inc_faddr: Ipv4Addr::new(192, 0, 2, 1).into(),
            inc_laddr: Ipv4Addr::new(192, 0, 2, 2).into(),
            inc_fport: port,
            inc_lport: 80,
        }
    }

    #[test]
    fn a_cookie_tells_what_was_offered_for_15_to_30_seconds() {
        Machine::builder().quiet().run(|| {
            let secrets = Secrets::new();
            let offer = Offer {
                mss: 1448,
                wscale: Some(5),
                sack: true,
            };
            let told = Offer {
                mss: 1440,
                wscale: Some(4),
                ..offer
            };
            let (irs, now) = (TcpSeq(77), Ticks(1_000_000));
            let iss = secrets.generate(&peer(1), irs, &offer, now);
            assert_eq!(secrets.lookup(&peer(1), irs, iss, now + 15_000), Some(told));
            assert_eq!(secrets.lookup(&peer(1), irs, iss, now + 30_000), None);
            assert_eq!(secrets.lookup(&peer(2), irs, iss, now), None);
            assert_eq!(secrets.lookup(&peer(1), irs + 1, iss, now), None);
            assert_eq!(secrets.lookup(&peer(1), irs, iss + 256, now), None);
        });
    }

    #[test]
    fn offers_between_the_steps_of_the_tables_are_rounded_down() {
        for (mss, wscale, told_mss, told_wscale) in [
            (100, None, 216, None),
            (65_000, Some(14), 1460, Some(8)),
            (536, Some(0), 536, Some(0)),
        ] {
            let offer = Offer {
                mss,
                wscale,
                sack: false,
            };
            let told = Offer::decode(offer.encode(1));
            assert_eq!(
                (told.mss, told.wscale, told.sack),
                (told_mss, told_wscale, false)
            );
        }
    }
}
