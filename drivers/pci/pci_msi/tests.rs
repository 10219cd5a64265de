//! A card that interrupts by messages as its registers say.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::Mutex as StdMutex;

use sys::kern::kern_intr::{FilterStatus, IntrCookie, bus_setup_intr};
use sys::kern::kern_synch::pause;
use sys::machine::hosted::{self, Machine};
use sys::machine::pci_cfg::{PciAddr, PciModel, pci_add_model};
use sys::machine::{self, ncpus};

use super::*;
use crate::pci::pci_enumerate;

const MSI_CAP: u16 = 0x50;
const MSIX_CAP: u16 = 0x70;
const TABLE_BAR: u16 = 4;
const TABLE: usize = 0x100;
const MESSAGES: usize = 3;

/// What is behind the BAR.
#[repr(align(4096))]
struct Page([AtomicU32; 1024]);

struct Card {
    config: [AtomicU32; 64],
    page: &'static Page,
    written: StdMutex<Vec<(u16, u32)>>,
    /// Messages of MSI-X to be sent when they are no longer masked.
    pending: [AtomicBool; MESSAGES],
}

impl Card {
    /// Puts a card on the bus, whose MSI has these bits in its message control.
    fn plug(msi_control: u32) -> (Arc<Card>, PciFunction) {
        let page: &'static Page = Box::leak(Box::new(Page([const { AtomicU32::new(0) }; 1024])));
        let base = core::ptr::from_ref(page).expose_provenance() as u64;
        let card = Arc::new(Card {
            config: [const { AtomicU32::new(0) }; 64],
            page,
            written: StdMutex::default(),
            pending: [const { AtomicBool::new(false) }; MESSAGES],
        });
        let bar = PCIR_BAR0 + 4 * TABLE_BAR;
        for (reg, value) in [
            (PCIR_DEVVENDOR, 0x10c9_8086),
            (PCIR_COMMAND, PCIM_STATUS_CAPPRESENT),
            (bar, base as u32 | PCIM_BAR_MEM_64),
            (bar + 4, (base >> 32) as u32),
            (PCIR_CAP_PTR, u32::from(MSI_CAP)),
            (
                MSI_CAP,
                u32::from(MSIX_CAP) << 8 | u32::from(PCIY_MSI) | msi_control,
            ),
            (MSIX_CAP, (MESSAGES as u32 - 1) << 16 | u32::from(PCIY_MSIX)),
            (MSIX_CAP + 4, TABLE as u32 | u32::from(TABLE_BAR)),
        ] {
            card.set(reg, value);
        }
        let addr = PciAddr {
            bus: 0,
            slot: 0,
            func: 0,
        };
        pci_add_model(addr, card.clone());
        let [function] = pci_enumerate()[..] else {
            panic!("one function was put on the bus");
        };
        (card, function)
    }

    fn get(&self, reg: u16) -> u32 {
        self.config[usize::from(reg / 4)].load(Ordering::Relaxed)
    }

    fn set(&self, reg: u16, value: u32) {
        self.config[usize::from(reg / 4)].store(value, Ordering::Relaxed);
    }

    fn uses_its_line(&self) -> bool {
        self.get(PCIR_COMMAND) & PCIM_CMD_INTXDIS == 0
    }

    /// Sends the message of MSI.
    fn msi(&self) {
        let control = self.get(MSI_CAP);
        let wide = control & PCIM_MSICTRL_64BIT != 0;
        let (high, data) = match wide {
            true => (
                self.get(MSI_CAP + PCIR_MSI_ADDR_HIGH),
                MSI_CAP + PCIR_MSI_DATA_64BIT,
            ),
            false => (0, MSI_CAP + PCIR_MSI_DATA),
        };
        let masked =
            control & PCIM_MSICTRL_VECTOR != 0 && self.get(data + PCIR_MSI_MASK_FROM_DATA) & 1 != 0;
        if control & PCIM_MSICTRL_MSI_ENABLE != 0 && !masked {
            let addr = u64::from(high) << 32 | u64::from(self.get(MSI_CAP + PCIR_MSI_ADDR));
            hosted::message(addr, self.get(data));
        }
    }

    fn entry(&self, index: usize) -> &[AtomicU32] {
        &self.page.0[TABLE / 4 + 4 * index..][..4]
    }

    /// Has a message of MSI-X to send.
    fn msix(&self, index: usize) {
        self.pending[index].store(true, Ordering::Relaxed);
        self.send();
    }

    /// Sends what is pending and may be sent.
    fn send(&self) {
        if self.get(MSIX_CAP) & PCIM_MSIXCTRL_MSIX_ENABLE == 0 {
            return;
        }
        for index in 0..MESSAGES {
            let [low, high, data, control] = self.entry(index) else {
                unreachable!("an entry has four words");
            };
            let masked = control.load(Ordering::Relaxed) & PCIM_MSIX_VCTRL_MASK != 0;
            if !masked && self.pending[index].swap(false, Ordering::Relaxed) {
                let high = u64::from(high.load(Ordering::Relaxed)) << 32;
                let addr = high | u64::from(low.load(Ordering::Relaxed));
                hosted::message(addr, data.load(Ordering::Relaxed));
            }
        }
    }
}

impl PciModel for Card {
    fn read(&self, reg: u16) -> u32 {
        self.get(reg)
    }

    fn write(&self, reg: u16, value: u32) {
        self.written
            .lock()
            .expect("never poisoned")
            .push((reg, value));
        let writable = match reg {
            PCIR_COMMAND => 0xffff,
            reg if reg == PCIR_BAR0 + 4 * TABLE_BAR => !0xfff,
            PCIR_DEVVENDOR | PCIR_CAP_PTR => 0,
            // Of a message control, the bits that turn it on.
            MSI_CAP => 0x0071_0000,
            MSIX_CAP => 0xc000_0000,
            _ => !0,
        };
        self.set(reg, self.get(reg) & !writable | value & writable);
    }
}

/// Counts where it was interrupted.
#[derive(Default)]
struct Seen([AtomicUsize; 4]);

impl Seen {
    fn listen(self: &Arc<Self>, irq: &IrqResource, cpu: usize) -> IntrCookie {
        let seen = self.clone();
        let filter = move || {
            seen.0[machine::curcpu()].fetch_add(1, Ordering::Relaxed);
            FilterStatus::Handled
        };
        let cookie = bus_setup_intr(irq.clone(), "card", cpu, Box::new(filter), Box::new(|| {}));
        cookie.expect("a vector is free")
    }

    fn take(&self) -> Vec<usize> {
        pause("deliver", 1);
        let counts = self.0.iter().take(ncpus());
        counts
            .map(|count| count.swap(0, Ordering::Relaxed))
            .collect()
    }
}

#[test]
fn each_message_of_msi_x_goes_where_it_is_bound() {
    Machine::builder().cpus(3).run(|| {
        let (card, function) = Card::plug(0);
        assert_eq!(function.msix_count(), MESSAGES);
        let irqs = function.alloc_msix(2).expect("there are three");
        assert!(!card.uses_its_line());
        let seen = [Arc::new(Seen::default()), Arc::new(Seen::default())];
        let cookies = [seen[0].listen(&irqs[0], 0), seen[1].listen(&irqs[1], 1)];
        let both = || {
            card.msix(0);
            card.msix(1);
            [seen[0].take(), seen[1].take()]
        };
        assert_eq!(both(), [[1, 0, 0], [0, 1, 0]]);
        cookies[0].bind(Some(2)).expect("CPU 2 exists");
        assert_eq!(both(), [[0, 0, 1], [0, 1, 0]]);
        cookies[1].bind(Some(0)).expect("CPU 0 exists");
        assert_eq!(both(), [[0, 0, 1], [1, 0, 0]]);
        // A third that nobody set up stays silent.
        card.msix(2);
        assert_eq!([seen[0].take(), seen[1].take()], [[0; 3]; 2]);
    });
}

#[test]
fn what_a_function_wants_to_say_while_it_is_masked_it_says_later() {
    Machine::builder().cpus(2).run(|| {
        let (card, function) = Card::plug(0);
        let irqs = function.alloc_msix(1).expect("there are three");
        card.msix(0);
        let seen = Arc::new(Seen::default());
        let cookie = seen.listen(&irqs[0], 1);
        card.send();
        assert_eq!(seen.take(), [0, 1]);
        drop(cookie);
        card.msix(0);
        assert_eq!(seen.take(), [0, 0]);
        let _cookie = seen.listen(&irqs[0], 0);
        card.send();
        assert_eq!(seen.take(), [1, 0]);
    });
}

#[test]
fn the_message_of_msi_goes_elsewhere_by_one_write() {
    for control in [
        0,
        PCIM_MSICTRL_64BIT,
        PCIM_MSICTRL_VECTOR,
        PCIM_MSICTRL_64BIT | PCIM_MSICTRL_VECTOR,
    ] {
        Machine::builder().cpus(2).run(move || {
            let (card, function) = Card::plug(control);
            let irq = function.alloc_msi().expect("it has MSI");
            assert!(!card.uses_its_line());
            let seen = Arc::new(Seen::default());
            let cookie = seen.listen(&irq, 0);
            card.msi();
            assert_eq!(seen.take(), [1, 0]);
            card.written.lock().expect("never poisoned").clear();
            cookie.bind(Some(1)).expect("CPU 1 exists");
            let written = card.written.lock().expect("never poisoned").clone();
            assert!(matches!(written[..], [(reg, _)] if reg == MSI_CAP + PCIR_MSI_ADDR));
            card.msi();
            assert_eq!(seen.take(), [0, 1]);
            drop(cookie);
            card.msi();
            assert_eq!(seen.take(), [0, 0]);
        });
    }
}

#[test]
fn a_function_uses_its_line_again_when_its_messages_are_gone() {
    Machine::builder().run(|| {
        let (card, function) = Card::plug(0);
        let mut irqs = function.alloc_msix(2).expect("there are three");
        let cookie = Arc::new(Seen::default()).listen(&irqs[0], 0);
        irqs.clear();
        assert!(!card.uses_its_line());
        drop(cookie);
        assert!(card.uses_its_line());
        assert_eq!(card.get(MSIX_CAP) & PCIM_MSIXCTRL_MSIX_ENABLE, 0);
        let irq = function.alloc_msi().expect("it has MSI");
        assert!(!card.uses_its_line());
        drop(irq);
        assert!(card.uses_its_line());
    });
}

#[test]
fn messages_that_a_function_does_not_have_are_refused() {
    Machine::builder().run(|| {
        let (card, function) = Card::plug(0);
        let refused = |count| function.alloc_msix(count).err();
        assert_eq!(refused(0), Some(Errno::EINVAL));
        assert_eq!(refused(MESSAGES + 1), Some(Errno::EINVAL));
        // The table would reach beyond what is mapped, or is in ports, or nowhere.
        for place in [0xff0 | u32::from(TABLE_BAR), 0x0, 0x7] {
            card.set(MSIX_CAP + 4, place);
            assert_eq!(refused(2), Some(Errno::ENXIO), "{place:#x}");
        }
        assert!(card.uses_its_line());
        card.set(PCIR_CAP_PTR, 0);
        assert_eq!(refused(1), Some(Errno::ENODEV));
        assert_eq!(function.alloc_msi().err(), Some(Errno::ENODEV));
        assert_eq!(function.msix_count(), 0);
    });
}
