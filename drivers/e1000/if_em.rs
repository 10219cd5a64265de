//! The em driver: attach, rings, modes, interrupts, statistics.
//!
//! FreeBSD: sys/dev/e1000/if_em.c

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use sys::counter::Counter;
use sys::errno::Errno;
use sys::kprintf;
use sys::machine::atomic::{AtomicU32, AtomicU64, Ordering};
use sys::machine::bus_dma::DmaRing;
use sys::machine::pci_cfg::pci_intx;
use sys::net::iflib::{IfTxRx, Iflib, IflibRxq, IflibSharedCtx, IflibTxq, IntrCause};
use sys::net::ifnet::{IfCap, IfFlags, Ifnet, Media};
use sys::net::vnet::Vnet;
use sys::sysctl::{Procedure, ReadOnly, root};

use super::e1000_hw::{DEVICES, DeviceId, E1000Hw, HwError, INTEL_VENDOR_ID, MacType};
use super::e1000_regs::*;
use super::em_txrx::{
    EM_EXTRA_DESCRIPTORS, EM_MAX_DATA_PER_TXD, EM_MAX_SCATTER, EM_TSO_SEG_SIZE, EmRxq, EmTxq,
};
use crate::pci::{
    Bar, PCIM_CMD_BUSMASTEREN, PCIM_CMD_INTXDIS, PCIR_COMMAND, PciFunction, pci_enumerate,
};

/// Rings start at multiples of this.
const EM_DBA_ALIGN: usize = 128;
const EM_MIN_DESC: usize = 128;
const EM_DEFAULT_DESC: usize = 1024;
const EM_MAX_DESC: usize = 4096;
/// RCTL.LPE takes frames up to 16 KiB less a few; FreeBSD allows this MTU on the 8254x.
const EM_MAX_MTU: u32 = 16_110 - 18;
const EM_TSO_SIZE: usize = 65_535;
/// Causes that interrupt. TXDW is not among them: completed transmits are collected by whoever sends next.
const IMS_ENABLE_MASK: u32 = ICR_RXT0 | ICR_RXDMT0 | ICR_RXO | ICR_RXSEQ | ICR_LSC;

/// Interrupts per second to a value of ITR (units of 256 ns).
const fn itr(rate: u32) -> u32 {
    1_000_000_000 / (rate * 256)
}

/// Interrupts per second for bulk transfers.
const EM_INTS_4K: u32 = itr(4_000);
/// FreeBSD's default rate.
const EM_INTS_DEFAULT: u32 = itr(8_000);
/// For a mix.
const EM_INTS_20K: u32 = itr(20_000);

/// What adaptive moderation believes about the traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
enum Latency {
    /// Few small packets: interrupt soon.
    Lowest = 0,
    /// A mix.
    Low = 1,
    /// Many large packets.
    Bulk = 2,
}

/// Names of the statistics registers, in order from 0x4000 on; empty where there is none.
/// `mac_stats` of `dev.em.N` (8254x SDM §13.7).
const STAT_NAMES: [&str; 74] = [
    "crc_errs",
    "alignment_errs",
    "symbol_errors",
    "recv_errs",
    "missed_packets",
    "single_coll",
    "excess_coll",
    "multiple_coll",
    "late_coll",
    "",
    "collision_count",
    "",
    "defer_count",
    "tx_no_crs",
    "sequence_errors",
    "coll_ext_errs",
    "recv_length_errors",
    "",
    "xon_recvd",
    "xon_txd",
    "xoff_recvd",
    "xoff_txd",
    "unsupported_fc_recvd",
    "rx_frames_64",
    "rx_frames_65_127",
    "rx_frames_128_255",
    "rx_frames_256_511",
    "rx_frames_512_1023",
    "rx_frames_1024_1522",
    "good_pkts_recvd",
    "bcast_pkts_recvd",
    "mcast_pkts_recvd",
    "good_pkts_txd",
    "",
    "good_octets_recvd",
    "",
    "good_octets_txd",
    "",
    "",
    "",
    "recv_no_buff",
    "recv_undersize",
    "recv_fragmented",
    "recv_oversize",
    "recv_jabber",
    "mgmt_pkts_recvd",
    "mgmt_pkts_drop",
    "mgmt_pkts_txd",
    "total_octets_recvd",
    "",
    "total_octets_txd",
    "",
    "total_pkts_recvd",
    "total_pkts_txd",
    "tx_frames_64",
    "tx_frames_65_127",
    "tx_frames_128_255",
    "tx_frames_256_511",
    "tx_frames_512_1023",
    "tx_frames_1024_1522",
    "mcast_pkts_txd",
    "bcast_pkts_txd",
    "tso_txd",
    "tso_ctx_fail",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "",
];

/// Registers that are the lower half of a 64-bit count: reading the upper half clears both.
const WIDE_STATS: [usize; 4] = [34, 36, 48, 50];

const STAT_CRCERRS: usize = 0;
const STAT_ALGNERRC: usize = 1;
const STAT_RXERRC: usize = 3;
const STAT_MPC: usize = 4;
const STAT_ECOL: usize = 6;
const STAT_LATECOL: usize = 8;
const STAT_COLC: usize = 10;
const STAT_CEXTERR: usize = 15;
const STAT_RUC: usize = 41;
const STAT_ROC: usize = 43;

/// One em.
struct Em {
    hw: Arc<E1000Hw>,
    mac: [u8; 6],
    itr: AtomicU32,
    latency: AtomicU32,
    stats: [AtomicU64; 74],
    rx_overruns: Counter,
    link_irq: Counter,
    enable_aim: AtomicU32,
}

/// Looks for ems on the bus and attaches each to `vnet`: em0, em1, ... in bus order.
#[doc(alias = "em_probe")]
pub fn em_probe_attach(vnet: &Arc<Vnet>) -> Vec<Arc<Ifnet>> {
    em_functions()
        .into_iter()
        .enumerate()
        .filter_map(|(unit, (function, id))| em_attach(vnet, &function, id, unit as u32).ok())
        .collect()
}

/// The functions on the bus that this driver knows, in bus order.
pub fn em_functions() -> Vec<(PciFunction, DeviceId)> {
    let known = |f: PciFunction| {
        let id = DEVICES
            .iter()
            .find(|id| f.vendor == INTEL_VENDOR_ID && f.device == id.device)?;
        Some((f, *id))
    };
    pci_enumerate().into_iter().filter_map(known).collect()
}

/// Attaches one controller as `em<unit>`.
#[doc(alias = "em_if_attach_pre")]
pub fn em_attach(
    vnet: &Arc<Vnet>,
    function: &PciFunction,
    id: DeviceId,
    unit: u32,
) -> Result<Arc<Ifnet>, Errno> {
    announce(function, id, unit);
    let mmio = function.map(0).inspect_err(|_| {
        kprintf!("em{unit}: Unable to allocate bus resource: memory\n");
    })?;
    // INTx must be able to reach the I/O APIC, and the controller to reach memory.
    let command = function.read_config(PCIR_COMMAND) & 0xffff & !PCIM_CMD_INTXDIS;
    function.write_config(PCIR_COMMAND, command | PCIM_CMD_BUSMASTEREN);
    let hw = Arc::new(E1000Hw::new(mmio, id.mac_type));
    hw.reset_hw();
    let mac = hw.read_mac_addr().map_err(|error| {
        kprintf!("em{unit}: Hardware Initialization Failed: {error:?}\n");
        Errno::EIO
    })?;
    let em = Arc::new(Em::new(hw, mac));
    let sctx = em.shared_ctx(unit, id.description);
    // The family has no message-signalled interrupts.
    let intx = pci_intx(function.addr).ok_or(Errno::ENXIO)?;
    Iflib::attach(vnet, sctx, em, &[intx.into()])
}

fn announce(function: &PciFunction, id: DeviceId, unit: u32) {
    let resources = resources(&function.bars());
    let addr = function.addr;
    kprintf!(
        "em{unit}: <{}>{resources} irq {} at device {}.{} on pci{}\n",
        id.description,
        function.intline().0,
        addr.slot,
        addr.func,
        addr.bus
    );
}

/// The registers' ranges as FreeBSD prints them: ports, then memory.
#[doc(alias = "resource_list_print_type")]
fn resources(bars: &[Bar]) -> String {
    let (mut ports, mut memory) = (String::new(), String::new());
    for bar in bars {
        let (text, word, base, size) = match *bar {
            Bar::Io { base, size } => (&mut ports, " port ", u64::from(base), u64::from(size)),
            Bar::Memory { base, size } => (&mut memory, " mem ", base, size),
        };
        text.push_str(if text.is_empty() { word } else { "," });
        text.push_str(&format!("{base:#x}-{:#x}", base + (size - 1)));
    }
    ports + &memory
}

impl Em {
    fn new(hw: Arc<E1000Hw>, mac: [u8; 6]) -> Self {
        Self {
            hw,
            mac,
            itr: AtomicU32::new(0),
            latency: AtomicU32::new(Latency::Low as u32),
            stats: [const { AtomicU64::new(0) }; 74],
            rx_overruns: Counter::new(),
            link_irq: Counter::new(),
            enable_aim: AtomicU32::new(1),
        }
    }

    fn shared_ctx(&self, unit: u32, desc: &'static str) -> IflibSharedCtx {
        let mut capabilities = IfCap::RXCSUM
            | IfCap::TXCSUM
            | IfCap::VLAN_MTU
            | IfCap::VLAN_HWTAGGING
            | IfCap::VLAN_HWCSUM
            | IfCap::JUMBO_MTU
            | IfCap::TSO4
            | IfCap::VLAN_HWTSO
            | IfCap::HWSTATS;
        if self.hw.mac_type == MacType::E82544 {
            // The 82544 cannot segment (8254x SDM, 82544 specifics).
            capabilities.remove(IfCap::TSO4 | IfCap::VLAN_HWTSO);
        }
        IflibSharedCtx {
            name: "em",
            desc,
            unit,
            mac: self.mac,
            ntxd: (EM_MIN_DESC, EM_DEFAULT_DESC, EM_MAX_DESC),
            nrxd: (EM_MIN_DESC, EM_DEFAULT_DESC, EM_MAX_DESC),
            nrxqs: 1,
            ntxqs: 1,
            tx_nsegments: EM_MAX_SCATTER,
            tx_maxsegsize: EM_MAX_DATA_PER_TXD,
            tx_extra_descriptors: EM_EXTRA_DESCRIPTORS,
            tx_tso_segments_max: EM_MAX_SCATTER,
            tx_tso_size_max: EM_TSO_SIZE,
            tx_tso_segsize_max: EM_TSO_SEG_SIZE,
            capabilities,
            capenable: capabilities,
            min_frame: 60,
            max_mtu: EM_MAX_MTU,
        }
    }

    /// Folds the registers, which clear when read, into the totals.
    #[doc(alias = "e1000_update_stats")]
    fn update_stats(&self) {
        for (i, name) in STAT_NAMES.iter().enumerate() {
            if name.is_empty() {
                continue;
            }
            let mut value = u64::from(self.hw.read(STATS.get(i)));
            if WIDE_STATS.contains(&i) {
                value |= u64::from(self.hw.read(STATS.get(i + 1))) << 32;
            }
            if value != 0 {
                self.stats[i].fetch_add(value, Ordering::Relaxed);
            }
        }
    }

    fn stat(&self, i: usize) -> u64 {
        self.stats[i].load(Ordering::Relaxed)
    }

    fn rctl_for(&self, ifp: &Ifnet) -> u32 {
        let flags = ifp.flags();
        let mut rctl = RCTL_EN | RCTL_BAM | RCTL_SECRC;
        if ifp.mtu() > sys::net::if_ethersubr::ETHERMTU {
            rctl |= RCTL_LPE | RCTL_BSEX | RCTL_SZ_4096;
        } else {
            rctl |= RCTL_SZ_2048;
        }
        if flags.contains(IfFlags::PROMISC) {
            rctl |= RCTL_UPE | RCTL_MPE;
        } else if flags.contains(IfFlags::ALLMULTI) {
            rctl |= RCTL_MPE;
        }
        rctl
    }

    fn interrupt_rate(&self) -> u64 {
        match self.itr.load(Ordering::Relaxed) {
            0 => 0,
            itr => 1_000_000_000 / (u64::from(itr) * 256),
        }
    }

    fn write_itr(&self, value: u32) {
        if self.itr.swap(value, Ordering::Relaxed) != value {
            self.hw.write(ITR, value);
        }
    }
}

impl IfTxRx for Em {
    fn tx_queue_alloc(&self, _q: usize, ndesc: usize) -> Result<Box<dyn IflibTxq>, Errno> {
        let ring = DmaRing::alloc(ndesc, EM_DBA_ALIGN).ok_or(Errno::ENOMEM)?;
        Ok(Box::new(EmTxq::new(self.hw.clone(), ring)))
    }

    fn rx_queue_alloc(&self, _q: usize, ndesc: usize) -> Result<Box<dyn IflibRxq>, Errno> {
        let ring = DmaRing::alloc(ndesc, EM_DBA_ALIGN).ok_or(Errno::ENOMEM)?;
        Ok(Box::new(EmRxq::new(self.hw.clone(), ring)))
    }

    fn init(&self, ifp: &Ifnet, _rx_buf_size: usize) -> Result<(), Errno> {
        let hw = &self.hw;
        hw.init_hw(ifp.lladdr()).map_err(|error| match error {
            HwError::Nvm | HwError::Phy | HwError::MacAddress => Errno::EIO,
        })?;
        // Strip tags on receive and insert them on transmit (descriptors ask one by one).
        hw.write(VET, 0x8100);
        let ctrl = hw.read(CTRL);
        let vme = if ifp.capenable().contains(IfCap::VLAN_HWTAGGING) {
            CTRL_VME
        } else {
            0
        };
        hw.write(CTRL, ctrl & !CTRL_VME | vme);
        hw.write(TXDCTL, TXDCTL_EM);
        hw.write(TIPG, TIPG_COPPER);
        // No delay timers: ITR moderates.
        for reg in [TIDV, TADV, RDTR, RADV] {
            hw.write(reg, 0);
        }
        hw.write(TCTL, TCTL_EN | TCTL_PSP | TCTL_RTLC | TCTL_CT | TCTL_COLD);
        self.latency.store(Latency::Low as u32, Ordering::Relaxed);
        self.itr.store(EM_INTS_DEFAULT, Ordering::Relaxed);
        hw.write(ITR, EM_INTS_DEFAULT);
        self.set_cap(ifp);
        hw.update_mc_addr_list(&ifp.multiaddrs());
        self.update_stats();
        Ok(())
    }

    fn rx_enable(&self, ifp: &Ifnet) {
        self.hw.write_rctl(self.rctl_for(ifp));
    }

    fn stop(&self) {
        self.hw.reset_hw();
    }

    fn intr_enable(&self) {
        self.hw.write(IMS, IMS_ENABLE_MASK);
    }

    fn intr_disable(&self) {
        self.hw.write(IMC, u32::MAX);
        self.hw.read(ICR);
    }

    fn intr_filter(&self, _v: usize) -> Option<IntrCause> {
        // One read: it says why, clears the causes and lets go of the line.
        let icr = self.hw.read(ICR);
        if icr == 0 || icr == u32::MAX {
            return None;
        }
        if icr & ICR_RXO != 0 {
            self.rx_overruns.inc();
        }
        let admin = icr & (ICR_LSC | ICR_RXSEQ) != 0;
        if admin {
            self.link_irq.inc();
        }
        Some(IntrCause {
            queue: icr & (ICR_RXT0 | ICR_RXDMT0 | ICR_RXO | ICR_TXDW) != 0,
            admin,
        })
    }

    fn tx_intr_want(&self, _q: usize, want: bool) {
        if want {
            self.hw.write(IMS, ICR_TXDW);
        } else {
            self.hw.write(IMC, ICR_TXDW);
        }
    }

    fn update_admin_status(&self) -> Media {
        self.hw.link_status()
    }

    fn set_rxmode(&self, ifp: &Ifnet) {
        self.hw.update_mc_addr_list(&ifp.multiaddrs());
        self.hw.write_rctl(self.rctl_for(ifp));
    }

    fn set_cap(&self, ifp: &Ifnet) {
        let rxcsum = if ifp.capenable().contains(IfCap::RXCSUM) {
            RXCSUM_IPOFL | RXCSUM_TUOFL
        } else {
            0
        };
        self.hw.write(RXCSUM, rxcsum);
    }

    fn timer(&self, ifp: &Ifnet) {
        self.update_stats();
        let errors = [
            STAT_CRCERRS,
            STAT_ALGNERRC,
            STAT_RXERRC,
            STAT_MPC,
            STAT_CEXTERR,
            STAT_RUC,
            STAT_ROC,
        ];
        let ierrors = errors.iter().map(|&i| self.stat(i)).sum();
        ifp.set_hwstats(
            ierrors,
            self.stat(STAT_ECOL) + self.stat(STAT_LATECOL),
            self.stat(STAT_COLC),
        );
    }

    fn register_sysctls(self: Arc<Self>, prefix: &str) {
        let tree = root();
        let leaf = |name: &str, description, read: Box<dyn Fn(&Em) -> u64 + Send + Sync>| {
            let em = self.clone();
            let node = ReadOnly::new(description, move || read(&em).to_string());
            tree.register(&format!("{prefix}.{name}"), Arc::new(node));
        };
        for (i, name) in STAT_NAMES
            .iter()
            .enumerate()
            .filter(|(_, name)| !name.is_empty())
        {
            leaf(
                &format!("mac_stats.{name}"),
                "hardware statistics",
                Box::new(move |em| em.stat(i)),
            );
        }
        leaf(
            "rx_overruns",
            "RX overruns",
            Box::new(|em| em.rx_overruns.fetch()),
        );
        leaf(
            "link_irq",
            "Link MSI-X IRQ Handled",
            Box::new(|em| em.link_irq.fetch()),
        );
        leaf(
            "queue_rx_0.interrupt_rate",
            "Interrupt Rate",
            Box::new(|em| em.interrupt_rate()),
        );
        leaf(
            "device_control",
            "Device Control Register",
            Box::new(|em| u64::from(em.hw.read(CTRL))),
        );
        leaf(
            "rx_control",
            "Receiver Control Register",
            Box::new(|em| u64::from(em.hw.rctl())),
        );
        for (name, reg) in [
            ("queue_tx_0.txd_head", TDH),
            ("queue_tx_0.txd_tail", TDT),
            ("queue_rx_0.rxd_head", RDH),
            ("queue_rx_0.rxd_tail", RDT),
        ] {
            leaf(
                name,
                "Descriptor index",
                Box::new(move |em| u64::from(em.hw.read(reg))),
            );
        }
        let (read, write) = (self.clone(), self.clone());
        let aim = Procedure::new(
            "Interrupt Moderation (1=normal, 2=lowlatency)",
            move || read.enable_aim.load(Ordering::Relaxed).to_string(),
            move |value: &str| {
                let new: u32 = value.parse().map_err(|_| Errno::EINVAL)?;
                if new > 2 {
                    return Err(Errno::EINVAL);
                }
                write.enable_aim.store(new, Ordering::Relaxed);
                if new == 0 {
                    write.write_itr(EM_INTS_DEFAULT);
                }
                Ok(())
            },
        );
        tree.register(&format!("{prefix}.enable_aim"), Arc::new(aim));
    }

    fn adapt_moderation(&self, _q: usize, bytes: usize, packets: usize) {
        if self.enable_aim.load(Ordering::Relaxed) == 0 || packets == 0 {
            return;
        }
        let old = match self.latency.load(Ordering::Relaxed) {
            0 => Latency::Lowest,
            1 => Latency::Low,
            _ => Latency::Bulk,
        };
        let new = next_latency(old, bytes, packets);
        if new != old {
            self.latency.store(new as u32, Ordering::Relaxed);
        }
        // enable_aim = 1 forbids the 70,000 per second of the lowest latency.
        self.write_itr(match new {
            Latency::Lowest | Latency::Low => EM_INTS_20K,
            Latency::Bulk => EM_INTS_4K,
        });
    }
}

/// FreeBSD: em_newitr.
fn next_latency(old: Latency, bytes: usize, packets: usize) -> Latency {
    let average = bytes / packets;
    match old {
        Latency::Lowest if average > 8000 => Latency::Bulk,
        Latency::Lowest if packets < 5 && bytes > 512 => Latency::Low,
        Latency::Low if bytes > 10_000 && (average > 8000 || packets < 10 || average > 1200) => {
            Latency::Bulk
        }
        Latency::Low if bytes > 10_000 && packets > 35 => Latency::Lowest,
        Latency::Low if average > 2000 => Latency::Bulk,
        Latency::Low if packets < 3 && bytes < 512 => Latency::Lowest,
        Latency::Bulk if bytes > 25_000 => {
            if packets > 35 {
                Latency::Low
            } else {
                Latency::Bulk
            }
        }
        Latency::Bulk if bytes < 1500 => Latency::Low,
        same => same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_of_a_device_is_announced_once() {
        let memory = |base, size| Bar::Memory { base, size };
        let ports = Bar::Io {
            base: 0xc040,
            size: 32,
        };
        let bars = [
            memory(0xfeb8_0000, 0x2_0000),
            ports,
            memory(1 << 35, 0x4000),
        ];
        assert_eq!(
            resources(&bars),
            " port 0xc040-0xc05f mem 0xfeb80000-0xfeb9ffff,0x800000000-0x800003fff"
        );
        assert_eq!(resources(&[]), "");
    }

    #[test]
    fn bulk_transfers_are_interrupted_less_often() {
        assert_eq!(next_latency(Latency::Low, 20 * 1500, 20), Latency::Bulk);
        assert_eq!(next_latency(Latency::Bulk, 60, 1), Latency::Low);
        assert_eq!(next_latency(Latency::Low, 60, 1), Latency::Lowest);
    }

    #[test]
    fn the_default_rate_is_the_register_value_freebsd_writes() {
        assert_eq!(EM_INTS_DEFAULT, 488);
    }
}
