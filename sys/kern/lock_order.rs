//! The one order of locks.
//!
//! FreeBSD: sys/kern/subr_witness.c (`order_lists`)
//! Differs from FreeBSD: every lock belongs to a class, and the classes are fully ordered, so that a reversal that the code
//! shows (`lock_under`) does not build and any other is reported when it first happens.

/// A line of the table of locks.
pub trait LockClass: 'static {
    /// Name, as the monitor and WITNESS print it.
    const NAME: &'static str;
    /// Position; a lock is taken only while every lock held has a smaller one.
    const RANK: u32;
}

/// Proof that a lock of a class is held; every guard is one.
pub trait Held {
    /// Class of the lock.
    type Class: LockClass;
}

/// Does not build unless a lock of class `C` may be taken under the one that `H` is the proof of.
///
/// ```no_run
/// # use sys::kern::{kern_mutex::Mutex, lock_order::{App, Leaf}};
/// let (app, leaf) = (Mutex::<(), App>::new(()), Mutex::<(), Leaf>::new(()));
/// let app = app.lock();
/// let leaf = leaf.lock_under(&app);
/// ```
/// ```compile_fail,E0080
/// # use sys::kern::{kern_mutex::Mutex, lock_order::{App, Leaf}};
/// let (app, leaf) = (Mutex::<(), App>::new(()), Mutex::<(), Leaf>::new(()));
/// let leaf = leaf.lock();
/// let app = app.lock_under(&leaf);
/// ```
pub(super) const fn assert_under<H: Held, C: LockClass>() {
    assert!(
        H::Class::RANK < C::RANK,
        "lock order reversal: see sys/kern/lock_order.rs"
    );
}

/// Makes one type per line, ranked in the order of the lines.
macro_rules! lock_order {
    ($($(#[$doc:meta])* $class:ident = $name:literal;)*) => {
        /// One entry for each class, in order.
        #[derive(Clone, Copy)]
        #[repr(u32)]
        enum Position {
            $($class,)*
        }

        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub enum $class {}

            impl LockClass for $class {
                const NAME: &'static str = $name;
                const RANK: u32 = Position::$class as u32;
            }
        )*

        /// Names of all classes, outermost first.
        pub const ORDER: &[&str] = &[$($name,)*];
    };
}

lock_order! {
    /// Programs in the kernel: the shell, iperf3.
    App = "app";
    /// The console's line editor and output.
    Console = "console";
    /// A tree of sysctl names.
    SysctlTree = "sysctl";
    /// The list of stack instances.
    VnetList = "vnet_list";
    /// One stack instance's registrations.
    VnetLock = "vnet";
    /// Bus and device attachment.
    Newbus = "newbus";
    /// Changes of an instance's addresses.
    InControl = "in_control";
    /// The list of interfaces.
    IfnetList = "ifnet_list";
    /// Changes of one interface: up, down, flags, addresses.
    IfnetCtl = "ifnet_ctl";
    /// A driver's control path: up, down, flags, link.
    IflibCtx = "iflib_ctx";
    /// A driver's interrupts, while they are set up or torn down.
    IflibIntr = "iflib_intr";
    /// One program at a time writes to a socket.
    SoSndSx = "so_snd_sx";
    /// One program at a time reads from a socket.
    SoRcvSx = "so_rcv_sx";
    /// Insertion into the TCP tables.
    Tcbinfo = "tcbinfo";
    /// Insertion into the UDP tables.
    Udbinfo = "udbinfo";
    /// Insertion into the tables of raw sockets.
    Ripcbinfo = "ripcbinfo";
    /// A protocol control block.
    InpClass = "inpcb";
    /// The hash tables of control blocks.
    PcbHash = "pcbhash";
    /// A bucket of half-open connections.
    Syncache = "syncache";
    /// A bucket of remembered hosts.
    Hostcache = "hostcache";
    /// A bucket of connections in TIME_WAIT.
    Timewait = "timewait";
    /// Queues of a listening socket.
    SoListen = "accept";
    /// State of a socket that belongs to neither buffer.
    SoLock = "so";
    /// A socket's send buffer.
    SoSnd = "so_snd";
    /// A socket's receive buffer.
    SoRcv = "so_rcv";
    /// Upcalls and readiness of sockets.
    SelInfo = "selinfo";
    /// A bucket of fragments of datagrams.
    IpReass = "ip_reass";
    /// Routers and prefixes of IPv6.
    Nd6Class = "nd6";
    /// Multicast memberships.
    InMulti = "in_multi";
    /// An interface's addresses.
    IfAddr = "if_addr";
    /// Registered filters.
    Pfil = "pfil";
    /// Routes that will end.
    TmpRoutesClass = "tmproutes";
    /// The routing table.
    RibClass = "rib";
    /// The table of link-layer addresses.
    LltableClass = "lltable";
    /// One link-layer entry and the packets it holds.
    LleClass = "lle";
    /// Packet taps.
    Bpf = "bpf";
    /// A transmit ring.
    IflibTx = "iflib_tx";
    /// A receive ring.
    IflibRx = "iflib_rx";
    /// A simulated or emulated wire.
    Wire = "wire";
    /// A device's registers that are used in sequences.
    Hardware = "hw";
    /// A queue of packets for another CPU.
    NetisrWs = "netisr";
    /// A queue of deferred work.
    TaskqueueClass = "taskqueue";
    /// Lists of interrupt handlers (blocking and spin).
    IntrEvent = "intr event";
    /// Deferred calls of epochs.
    EpochClass = "epoch";
    /// The list of threads.
    Allproc = "allproc";
    /// Small things that nothing is locked under.
    Leaf = "leaf";
    /// The list of zones.
    UmaZones = "UMA zones";
    /// A zone.
    UmaZone = "UMA zone";
    /// A keg: the slabs behind zones.
    UmaKeg = "UMA keg";
    /// The page allocator.
    VmPage = "vm page";
    /// Mappings of the kernel (spin).
    Pmap = "pmap";
    /// A rendezvous of CPUs (spin).
    SmpIpi = "smp rendezvous";
    /// Interrupt controllers and vectors (spin).
    Icu = "icu";
    /// Per-CPU memory of counters (spin).
    CounterClass = "counter";
    /// Packets or work handed to an interrupt handler (spin).
    IntrQueue = "intr queue";
    /// Read-mostly locks and other lists of trackers (spin).
    RmSpin = "rm_spinlock";
    /// A chain of sleep queues (spin).
    Sleepq = "sleepq chain";
    /// A chain of turnstiles (spin).
    TurnstileChain = "turnstile chain";
    /// The lists of contested locks (spin).
    TdContested = "td_contested";
    /// A run queue (spin).
    RunQueue = "sched lock";
    /// A callout wheel (spin).
    CalloutClass = "callout";
    /// The general heap (spin).
    KernelHeap = "malloc";
    /// The message buffer (spin).
    Msgbuf = "msgbuf";
    /// The serial line (spin).
    Uart = "uart";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_rank_in_the_order_of_the_table() {
        const { assert!(InpClass::RANK < SoSnd::RANK) };
        const { assert!(SoSnd::RANK < LleClass::RANK) };
        const { assert!(UmaZone::RANK < UmaKeg::RANK) };
        assert_eq!(ORDER[RunQueue::RANK as usize], RunQueue::NAME);
    }
}
