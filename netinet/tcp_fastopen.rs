//! Fast Open: data in the SYN, to servers that have given out a cookie for it.
//!
//! FreeBSD: sys/netinet/tcp_fastopen.c
//! RFC 7413. This file is the client's side; the server's keys are in `server`.
//! Differs from FreeBSD: a SYN|ACK without option to a SYN with a cookie disables the path only if it does not acknowledge
//! the data.

mod server;

pub use server::{Checked, Pending, Server as FastOpenServer, TCP_FASTOPEN_PSK_LEN, TfoRole};

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::ToString;
use alloc::sync::{Arc, Weak};
use core::hash::Hasher;

use siphasher::sip::SipHasher24;
use sys::errno::Errno;
use sys::kern::kern_mutex::Mutex;
use sys::kern::lock_order::Leaf;
use sys::machine::atomic::{AtomicBool, Ordering};
use sys::net::vnet::Vnet;
use sys::sysctl::{Procedure, ReadOnly, Tunable};
use sys::time::Ticks;

use crate::in_pcb::InConninfo;
use crate::tcp::{TCP_MSS, TcpFlags, TcpHeader, TcpOpt, TcpOptFlags, TfoCookie};
use crate::tcp_subr::{Conn, random_key, tcp_mss};
use crate::tcp_var::{Tcpcb, Tf};

/// Shortest cookie (RFC 7413 §2).
const TCP_FASTOPEN_MIN_COOKIE_LEN: usize = 4;
/// Buckets of the client's cache (`net.inet.tcp.fastopen.ccache_buckets`).
const CCACHE_BUCKETS: usize = 2048;
/// Servers in a bucket (`net.inet.tcp.fastopen.ccache_bucket_limit`).
const CCACHE_BUCKET_LIMIT: u32 = 16;
/// Seconds that a path is left alone after it failed (`net.inet.tcp.fastopen.path_disable_time`).
const PATH_DISABLE_TIME: u32 = 900;

/// A server that a client has tried.
#[doc(alias = "tcp_fastopen_ccache_entry")]
struct Server {
    inc: InConninfo,
    /// Segment size of its last SYN|ACK.
    mss: u16,
    /// Its cookie; empty asks for one.
    cookie: TfoCookie,
    /// When the path failed.
    disabled: Option<Ticks>,
}

/// The servers that clients of a stack instance know. In a bucket what was used last stands first.
#[doc(alias = "tcp_fastopen_ccache")]
pub struct Ccache {
    buckets: Box<[Mutex<VecDeque<Server>, Leaf>]>,
    key: [u8; 16],
    enabled: AtomicBool,
    bucket_limit: Arc<Tunable<u32>>,
    path_disable_time: Arc<Tunable<u32>>,
}

impl Ccache {
    /// An empty cache with its variables.
    #[doc(alias = "tcp_fastopen_init")]
    pub fn new(vnet: &Arc<Vnet>) -> Arc<Ccache> {
        let cache = Arc::new(Ccache {
            buckets: (0..CCACHE_BUCKETS)
                .map(|_| Mutex::new(VecDeque::new()))
                .collect(),
            key: random_key(),
            enabled: AtomicBool::new(true),
            bucket_limit: Arc::new(Tunable::new(
                CCACHE_BUCKET_LIMIT,
                1,
                i64::from(u16::MAX),
                "Max entries per bucket in the client cookie cache",
            )),
            path_disable_time: Arc::new(Tunable::new(
                PATH_DISABLE_TIME,
                0,
                i64::from(i32::MAX / 1000),
                "Seconds a TFO failure disables a {client_ip, server_ip, server_port} path",
            )),
        });
        let name = |leaf: &str| format!("net.inet.tcp.fastopen.{leaf}");
        let tree = &vnet.sysctl;
        tree.register(&name("ccache_bucket_limit"), cache.bucket_limit.clone());
        tree.register(&name("path_disable_time"), cache.path_disable_time.clone());
        let buckets = ReadOnly::new("Client cookie cache number of buckets", || {
            CCACHE_BUCKETS.to_string()
        });
        tree.register(&name("ccache_buckets"), Arc::new(buckets));
        let (shown, set): (Weak<Ccache>, Weak<Ccache>) =
            (Arc::downgrade(&cache), Arc::downgrade(&cache));
        let enable = Procedure::new(
            "Enable/disable TCP Fast Open client functionality",
            move || {
                let on = shown.upgrade().is_some_and(|cache| cache.client_enabled());
                u32::from(on).to_string()
            },
            move |value: &str| {
                let value: i64 = value.parse().map_err(|_| Errno::EINVAL)?;
                if let Some(cache) = set.upgrade() {
                    cache.enable_client(value != 0);
                }
                Ok(())
            },
        );
        tree.register(&name("client_enable"), Arc::new(enable));
        cache
    }

    /// Whether clients may use Fast Open.
    pub fn client_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Switching it off forgets all servers (`sysctl_net_inet_tcp_fastopen_client_enable`).
    fn enable_client(&self, on: bool) {
        self.enabled.store(on, Ordering::Relaxed);
        if !on {
            for bucket in &self.buckets {
                bucket.lock().clear();
            }
        }
    }

    /// Looks at the server of a connection, made if it is not known. The local port does not count.
    #[doc(alias = "tcp_fastopen_ccache_lookup")]
    fn with<R>(&self, inc: &InConninfo, f: impl FnOnce(&mut Server) -> R) -> R {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        crate::in_pcb::hash_addr(&mut hasher, inc.inc_laddr);
        crate::in_pcb::hash_addr(&mut hasher, inc.inc_faddr);
        hasher.write(&inc.inc_fport.to_be_bytes());
        let mut bucket = self.buckets[hasher.finish() as usize % CCACHE_BUCKETS].lock();
        let is = |server: &Server| {
            let known = &server.inc;
            (known.inc_laddr, known.inc_faddr, known.inc_fport)
                == (inc.inc_laddr, inc.inc_faddr, inc.inc_fport)
        };
        let known = bucket.iter().position(is);
        let server = known.and_then(|at| bucket.remove(at)).unwrap_or(Server {
            inc: *inc,
            mss: 0,
            cookie: TfoCookie::default(),
            disabled: None,
        });
        bucket.truncate(self.bucket_limit.get() as usize - 1);
        bucket.push_front(server);
        f(&mut bucket[0])
    }
}

/// Gets ready to send the SYN: with data if the server has given us a cookie (`tcp_fastopen_connect`).
pub fn tcp_fastopen_connect(c: &Conn<'_>, tp: &mut Tcpcb) {
    let cache = &c.vt.fastopen;
    let now = c.net.now;
    let pause = cache.path_disable_time.get().saturating_mul(1000);
    let known = cache.with(&c.hdr.inp_inc, |server| {
        if let Some(at) = server.disabled {
            if now - at <= pause as i32 {
                return None;
            }
            // Another try, from the beginning: what is known may be wrong by now.
            server.disabled = None;
            server.cookie = TfoCookie::default();
            server.mss = 0;
        }
        Some((server.cookie, server.mss))
    });
    match known {
        None => tp.t_flags.remove(Tf::FASTOPEN),
        Some((cookie, mss)) => {
            // A secret set by the program answers the server's cookie.
            let psk = <&[u8; TCP_FASTOPEN_PSK_LEN]>::try_from(tp.t_tfo_client_cookie.bytes());
            let cookie = match psk {
                Ok(psk) if !cookie.is_empty() => {
                    TfoCookie::new(&server::make_psk_cookie(psk, cookie.bytes()))
                }
                _ => cookie,
            };
            tp.t_tfo_client_cookie = cookie;
            if !cookie.is_empty() {
                // The window is not known before the SYN|ACK: one segment, of the size of the last.
                tcp_mss(c, tp, Some(mss));
                tp.snd_wnd = tp.t_maxseg;
            }
        }
    }
}

/// What the peer's SYN|ACK says to our SYN with Fast Open.
pub fn tcp_fastopen_input_syn_sent(c: &Conn<'_>, tp: &Tcpcb, th: &TcpHeader, to: &TcpOpt) {
    if !tp.t_flags.contains(Tf::FASTOPEN) || !th.th_flags.contains(TcpFlags::ACK) {
        return;
    }
    if to.to_flags.contains(TcpOptFlags::FASTOPEN) {
        let mss = match to.to_flags.contains(TcpOptFlags::MSS) {
            true => to.to_mss,
            false => TCP_MSS as u16,
        };
        tcp_fastopen_update_cache(c, mss, &to.to_tfo);
    } else if tp.t_tfo_client_cookie.is_empty() || th.th_ack == tp.iss + 1 {
        tcp_fastopen_disable_path(c);
    }
}

/// Remembers a cookie; a malformed one disables the path.
fn tcp_fastopen_update_cache(c: &Conn<'_>, mss: u16, cookie: &TfoCookie) {
    let len = cookie.len();
    if len < TCP_FASTOPEN_MIN_COOKIE_LEN || cookie.is_cut() || !len.is_multiple_of(2) {
        tcp_fastopen_disable_path(c);
        return;
    }
    c.vt.fastopen.with(&c.hdr.inp_inc, |server| {
        server.mss = mss;
        server.cookie = *cookie;
        server.disabled = None;
    });
}

/// Does without Fast Open on this path for a while: it, or the server, does not like it.
pub fn tcp_fastopen_disable_path(c: &Conn<'_>) {
    c.vt.fastopen.with(&c.hdr.inp_inc, |server| {
        server.mss = 0;
        server.cookie = TfoCookie::default();
        server.disabled = Some(c.net.now);
    });
}
