//! The server's side of Fast Open: cookies for clients, made of their addresses and a secret.
//!
//! FreeBSD: tcp_fastopen_check_cookie, tcp_fastopen_make_cookie, tcp_fastopen_addkey, tcp_fastopen_autokey_locked
//! (tcp_fastopen.c)
//! RFC 7413 §4.1.
//! Differs from FreeBSD: keys are renewed when somebody looks whether they are old enough, instead of by a timer.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::sync::{Arc, Weak};
use core::hash::Hasher;

use siphasher::sip::SipHasher24;
use sys::errno::Errno;
use sys::kern::kern_mutex::Mutex;
use sys::kern::lock_order::Leaf;
use sys::machine;
use sys::machine::atomic::{AtomicU32, Ordering};
use sys::net::vnet::Vnet;
use sys::sysctl::{Procedure, ReadOnly, Tunable};
use sys::time::Ticks;

use crate::in_pcb::{InConninfo, hash_addr};
use crate::tcp::TfoCookie;
use crate::tcp_subr::random_key;

/// Bytes of a key (`net.inet.tcp.fastopen.keylen`).
const KEY_LEN: usize = 16;
/// Bytes of a secret that client and server share beforehand (`TCP_FASTOPEN_PSK_LEN`).
pub const TCP_FASTOPEN_PSK_LEN: usize = 16;
/// Keys of each kind that are good at a time (`net.inet.tcp.fastopen.maxkeys`, `maxpsks`).
const MAX_KEYS: usize = 2;
/// Seconds after which a new key is made (`net.inet.tcp.fastopen.autokey`).
const AUTOKEY: u32 = 120;

type Key = [u8; KEY_LEN];

/// The keys of one kind, newest first.
#[derive(Clone, Copy, Default)]
struct Keys([Option<Key>; MAX_KEYS]);

impl Keys {
    fn add(&mut self, key: Key) {
        self.0.rotate_right(1);
        self.0[0] = Some(key);
    }

    fn all(&self) -> impl Iterator<Item = &Key> {
        self.0.iter().flatten()
    }

    fn count(&self) -> usize {
        self.all().count()
    }
}

struct State {
    enabled: bool,
    psk_enabled: bool,
    keys: Keys,
    psks: Keys,
    /// When the newest key was made.
    renewed: Ticks,
}

/// What a server thinks of a SYN's cookie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checked {
    /// The client has it from us: its data counts.
    pub valid: bool,
    /// What the SYN|ACK gives the client, if anything.
    pub answer: Option<TfoCookie>,
}

/// The keys and switches of a stack instance.
pub struct Server {
    state: Mutex<State, Leaf>,
    acceptany: Arc<Tunable<bool>>,
    autokey: Arc<Tunable<u32>>,
}

impl Server {
    /// Switched off, with its variables.
    pub fn new(vnet: &Arc<Vnet>) -> Arc<Server> {
        let server = Arc::new(Server {
            state: Mutex::new(State {
                enabled: false,
                psk_enabled: false,
                keys: Keys::default(),
                psks: Keys::default(),
                renewed: Ticks(0),
            }),
            acceptany: Arc::new(Tunable::new(false, 0, 1, "Accept any non-empty cookie")),
            autokey: Arc::new(Tunable::new(
                AUTOKEY,
                0,
                i64::from(i32::MAX / 1000),
                "Number of seconds between auto-generation of a new key; zero disables",
            )),
        });
        server.register(vnet);
        server
    }

    fn register(self: &Arc<Server>, vnet: &Arc<Vnet>) {
        let tree = &vnet.sysctl;
        let name = |leaf: &str| format!("net.inet.tcp.fastopen.{leaf}");
        tree.register(&name("acceptany"), self.acceptany.clone());
        tree.register(&name("autokey"), self.autokey.clone());
        for (leaf, words, value) in [
            ("keylen", "Key length in bytes", KEY_LEN),
            ("maxkeys", "Maximum number of keys supported", MAX_KEYS),
            (
                "maxpsks",
                "Maximum number of pre-shared keys supported",
                MAX_KEYS,
            ),
        ] {
            tree.register(
                &name(leaf),
                Arc::new(ReadOnly::new(words, move || value.to_string())),
            );
        }
        let shown = |words, read: fn(&mut State) -> usize| {
            let this = Arc::downgrade(self);
            ReadOnly::new(words, move || {
                let server = this.upgrade();
                server
                    .map_or(0, |server| read(&mut server.current(machine::ticks())))
                    .to_string()
            })
        };
        tree.register(
            &name("numkeys"),
            Arc::new(shown("Number of keys installed", |state| {
                state.keys.count()
            })),
        );
        tree.register(
            &name("numpsks"),
            Arc::new(shown("Number of pre-shared keys installed", |state| {
                state.psks.count()
            })),
        );
        self.switch(
            vnet,
            &name("server_enable"),
            "Enable/disable TCP Fast Open server functionality",
            |state| state.enabled,
            |server, on| server.enable(on),
        );
        self.switch(
            vnet,
            &name("psk_enable"),
            "Enable/disable TCP Fast Open server pre-shared key mode",
            |state| state.psk_enabled,
            |server, on| server.enable_psk(on),
        );
        for (leaf, words, psk) in [
            ("setkey", "Install a new key", false),
            ("setpsk", "Install a new pre-shared key", true),
        ] {
            let this = Arc::downgrade(self);
            let node = Procedure::new(
                words,
                || "".to_string(),
                move |value: &str| {
                    let key = parse_key(value).ok_or(Errno::EINVAL)?;
                    if let Some(server) = this.upgrade() {
                        let mut state = server.current(machine::ticks());
                        match psk {
                            true => state.psks.add(key),
                            false => state.keys.add(key),
                        }
                    }
                    Ok(())
                },
            );
            tree.register(&name(leaf), Arc::new(node));
        }
    }

    fn switch(
        self: &Arc<Server>,
        vnet: &Arc<Vnet>,
        name: &str,
        words: &'static str,
        read: fn(&State) -> bool,
        write: fn(&Server, bool),
    ) {
        let (shown, set): (Weak<Server>, Weak<Server>) =
            (Arc::downgrade(self), Arc::downgrade(self));
        let node = Procedure::new(
            words,
            move || {
                let on = shown
                    .upgrade()
                    .is_some_and(|server| read(&server.state.lock()));
                u32::from(on).to_string()
            },
            move |value: &str| {
                let value: i64 = value.parse().map_err(|_| Errno::EINVAL)?;
                if !(0..=1).contains(&value) {
                    return Err(Errno::EINVAL);
                }
                if let Some(server) = set.upgrade() {
                    write(&server, value == 1);
                }
                Ok(())
            },
        );
        vnet.sysctl.register(name, Arc::new(node));
    }

    /// Whether servers may use Fast Open.
    pub fn enabled(&self) -> bool {
        self.state.lock().enabled
    }

    /// Switched on it gets a key, unless keys are to be set by hand; switched off it forgets all.
    fn enable(&self, on: bool) {
        let key = random_key();
        let mut state = self.state.lock();
        if on && !state.enabled && self.autokey.get() > 0 {
            state.keys.add(key);
            state.renewed = machine::ticks();
        } else if !on {
            state.keys = Keys::default();
        }
        state.enabled = on;
    }

    fn enable_psk(&self, on: bool) {
        let mut state = self.state.lock();
        if !on {
            state.psks = Keys::default();
        }
        state.psk_enabled = on;
    }

    /// The state, with keys as new as they should be.
    #[doc(alias = "tcp_fastopen_autokey_callout")]
    fn current(&self, now: Ticks) -> sys::kern::kern_mutex::MutexGuard<'_, State, Leaf> {
        let period = self.autokey.get().saturating_mul(1000);
        let mut state = self.state.lock();
        if state.enabled && period > 0 {
            let mut due = (now - state.renewed).max(0) as u32 / period;
            if due > 0 {
                state.renewed = state.renewed + due.saturating_mul(period);
                due = due.min(MAX_KEYS as u32);
                for _ in 0..due {
                    state.keys.add(random_key());
                }
            }
        }
        state
    }

    /// Looks at the cookie of a SYN.
    #[doc(alias = "tcp_fastopen_check_cookie")]
    pub fn check(&self, inc: &InConninfo, cookie: &TfoCookie, now: Ticks) -> Checked {
        if self.acceptany.get() {
            return Checked {
                valid: !cookie.is_empty(),
                answer: Some(TfoCookie::new(&[0; 8])),
            };
        }
        let state = self.current(now);
        let ours = |key: &Key| make_cookie(key, inc).to_le_bytes();
        let good = |challenge: &[u8; 8]| match state.psk_enabled {
            true => state
                .psks
                .all()
                .any(|psk| cookie.bytes() == make_psk_cookie(psk, challenge)),
            false => cookie.bytes() == challenge,
        };
        Checked {
            valid: state.keys.all().any(|key| good(&ours(key))),
            answer: state
                .keys
                .all()
                .next()
                .map(|key| TfoCookie::new(&ours(key))),
        }
    }
}

fn parse_key(text: &str) -> Option<Key> {
    let text = text.strip_prefix("0x").unwrap_or(text);
    // One digit for each half byte; a sign would be taken for one.
    if text.len() != 2 * KEY_LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some(u128::from_str_radix(text, 16).ok()?.to_be_bytes())
}

/// The cookie of a client: of its address alone, so that it is good for any port.
#[doc(alias = "tcp_fastopen_make_cookie")]
fn make_cookie(key: &Key, inc: &InConninfo) -> u64 {
    let mut hasher = SipHasher24::new_with_key(key);
    hash_addr(&mut hasher, inc.inc_faddr);
    hasher.finish()
}

/// What a client that shares `psk` with the server answers to the server's cookie.
#[doc(alias = "tcp_fastopen_make_psk_cookie")]
pub(super) fn make_psk_cookie(psk: &Key, cookie: &[u8]) -> [u8; 8] {
    let mut hasher = SipHasher24::new_with_key(psk);
    hasher.write(cookie);
    hasher.finish().to_le_bytes()
}

/// A connection of Fast Open whose handshake is not complete yet: counted at its listener.
pub struct Pending(Arc<AtomicU32>);

impl Pending {
    /// Counts one more; how many there were before.
    pub(crate) fn begin(counter: &Arc<AtomicU32>) -> (Pending, u32) {
        let before = counter.fetch_add(1, Ordering::Relaxed);
        (Pending(counter.clone()), before)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What Fast Open is to a control block beside its flag.
#[derive(Default)]
pub enum TfoRole {
    /// Nothing, or a client.
    #[default]
    None,
    /// It listens: how many of its connections are not complete (`t_tfo_pending`).
    Listener(Arc<AtomicU32>),
    /// A listener's connection whose SYN has been acknowledged by data and not by its peer; with the cookie for the SYN|ACK.
    Child(Box<(Pending, TfoCookie)>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use core::net::Ipv4Addr;
    use sys::machine::hosted::Machine;

    fn client(last: u8) -> InConninfo {
        InConninfo {
            inc_faddr: Ipv4Addr::new(192, 0, 2, last).into(),
            inc_laddr: Ipv4Addr::new(192, 0, 2, 200).into(),
            inc_fport: 1,
            inc_lport: 80,
        }
    }

    fn with_server(test: impl FnOnce(&Arc<Server>, &Arc<Vnet>)) {
        Machine::builder().quiet().run(|| {
            let vnet = Vnet::new("server");
            test(&Server::new(&vnet), &vnet);
            vnet.destroy();
        });
    }

    fn set(vnet: &Vnet, leaf: &str, value: &str) -> Result<(String, String), Errno> {
        vnet.sysctl
            .set(&format!("net.inet.tcp.fastopen.{leaf}"), value)
    }

    #[test]
    fn a_cookie_is_good_for_its_client_while_its_key_is_one_of_the_two_newest() {
        with_server(|server, vnet| {
            let now = machine::ticks();
            let none = TfoCookie::default();
            // Without a key there is nothing to give.
            assert_eq!(server.check(&client(1), &none, now).answer, None);
            set(vnet, "server_enable", "1").expect("a switch");
            let checked = server.check(&client(1), &none, now);
            let cookie = checked.answer.expect("a key was made");
            assert!(!checked.valid && cookie.len() == 8);
            assert!(server.check(&client(1), &cookie, now).valid);
            assert!(!server.check(&client(2), &cookie, now).valid);
            // After 120 s there is a new key, after 240 s the old one is gone.
            let later = server.check(&client(1), &cookie, now + 120_000);
            assert!(later.valid && later.answer != Some(cookie));
            assert!(!server.check(&client(1), &cookie, now + 240_000).valid);
        });
    }

    #[test]
    fn keys_set_by_hand_make_the_same_cookies_everywhere() {
        with_server(|server, vnet| {
            set(vnet, "autokey", "0").expect("a number");
            set(vnet, "server_enable", "1").expect("a switch");
            assert_eq!(
                vnet.sysctl.get("net.inet.tcp.fastopen.numkeys").as_deref(),
                Some("0")
            );
            let key = "000102030405060708090a0b0c0d0e0f";
            set(vnet, "setkey", key).expect("a key");
            assert_eq!(set(vnet, "setkey", "0001"), Err(Errno::EINVAL));
            assert_eq!(set(vnet, "setkey", &"+".repeat(32)), Err(Errno::EINVAL));
            let mut hasher = SipHasher24::new_with_key(&core::array::from_fn(|at| at as u8));
            hasher.write(&[192, 0, 2, 1]);
            let wanted = TfoCookie::new(&hasher.finish().to_le_bytes());
            let now = machine::ticks();
            let checked = server.check(&client(1), &wanted, now + 1_000_000);
            assert_eq!(
                checked,
                Checked {
                    valid: true,
                    answer: Some(wanted)
                }
            );
            set(vnet, "server_enable", "0").expect("a switch");
            assert_eq!(server.check(&client(1), &wanted, now).answer, None);
        });
    }

    #[test]
    fn with_shared_keys_the_cookie_is_a_challenge() {
        with_server(|server, vnet| {
            set(vnet, "server_enable", "1").expect("a switch");
            set(vnet, "psk_enable", "1").expect("a switch");
            set(vnet, "setpsk", &"ab".repeat(16)).expect("a key");
            let now = machine::ticks();
            let challenge = server.check(&client(1), &TfoCookie::default(), now).answer;
            let challenge = challenge.expect("a challenge");
            assert!(!server.check(&client(1), &challenge, now).valid);
            let answer = TfoCookie::new(&make_psk_cookie(&[0xab; 16], challenge.bytes()));
            assert!(server.check(&client(1), &answer, now).valid);
        });
    }
}
