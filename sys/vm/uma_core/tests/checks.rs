//! Each mistake with an item is found, and said with the zone's name and the item.

#![cfg(debug_assertions)]

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;

/// What the machine says when `mistake` is made with an item of the zone "victim".
fn said(mistake: impl FnOnce(&'static Zone, NonNull<u8>)) -> (String, String) {
    let item_text = Cell::new(String::new());
    let run = || {
        Machine::builder().quiet().run(|| {
            let zone = find_or_create("victim", 128, 8);
            let item = zone.alloc(How::NoWait).unwrap();
            item_text.set(std::format!("{item:p}"));
            mistake(zone, item);
        });
    };
    let payload = catch_unwind(AssertUnwindSafe(run)).expect_err("the mistake is found");
    let text = payload.downcast_ref::<String>().expect("a message");
    (text.clone(), item_text.into_inner())
}

fn assert_found(what: &str, mistake: impl FnOnce(&'static Zone, NonNull<u8>)) {
    let (text, item) = said(mistake);
    for part in [what, "zone victim", &item] {
        assert!(text.contains(part), "\"{part}\" is not in: {text}");
    }
}

#[test]
fn an_item_freed_twice() {
    assert_found("Duplicate free of", |zone, item| give(zone, [item, item]));
}

#[test]
fn a_write_to_a_freed_item_at_its_next_allocation() {
    assert_found("Memory modified after free", |zone, item| {
        give(zone, [item]);
        // SAFETY: still memory of the arena; this is the mistake to be found.
        unsafe { item.add(32).write(1) };
        zone.alloc(How::NoWait);
    });
}

#[test]
fn a_write_to_a_freed_item_when_its_slab_goes() {
    assert_found("Memory modified after free", |zone, item| {
        give(zone, [item]);
        // SAFETY: still memory of the arena; this is the mistake to be found.
        unsafe { item.add(8).write(1) };
        reclaim(Reclaim::DrainCpu);
    });
}

#[test]
fn a_write_past_the_end() {
    assert_found("2 bytes corrupted", |zone, item| {
        // SAFETY: still memory of the slab; this is the mistake to be found.
        unsafe { item.add(128).write_bytes(0, 2) };
        give(zone, [item]);
    });
}

#[test]
fn a_free_to_the_wrong_zone() {
    let (text, item) = said(|_, item| {
        let other = find_or_create("other", 64, 8);
        give(other, take(other, 1));
        give(other, [item]);
    });
    let expected = std::format!("Freed item {item} did not belong to zone other, but to victim");
    assert_eq!(text, expected);
}

#[test]
fn a_free_of_the_middle_of_an_item() {
    let (text, _) = said(|zone, item| {
        // SAFETY: within the item.
        give(zone, [unsafe { item.add(16) }]);
    });
    assert!(text.contains("Unaligned free of"), "{text}");
}

#[test]
fn what_is_not_of_any_zone() {
    let (text, _) = said(|zone, _| give(zone, [NonNull::dangling()]));
    assert!(text.contains("did not belong to zone victim"), "{text}");
}

#[test]
fn nothing_if_the_command_line_says_so() {
    use crate::kern::kern_sysctl::root;
    Machine::builder().tunables("vm.debug.divisor=0").run(|| {
        let zone = find_or_create("victim", 128, 8);
        let item = zone.alloc(How::NoWait).unwrap();
        give(zone, [item]);
        // SAFETY: still memory of the arena.
        unsafe { item.add(64).write(1) };
        give(zone, zone.alloc(How::NoWait));
        assert_eq!(root().get("vm.debug.divisor").as_deref(), Some("0"));
        assert_eq!(root().get("vm.debug.trashed").as_deref(), Some("0"));
    });
}

#[test]
fn every_other_item_with_a_divisor_of_two() {
    use crate::kern::kern_sysctl::root;
    Machine::builder().tunables("vm.debug.divisor=2").run(|| {
        let count = |name| root().get(name).unwrap().parse::<u64>().unwrap();
        let before = (count("vm.debug.trashed"), count("vm.debug.skipped"));
        let zone = zcreate(Zone::new("victim", 128, 64).with_flags(ZoneFlags::NOBUCKET));
        let items = take(zone, 40);
        let trashed = count("vm.debug.trashed") - before.0;
        let skipped = count("vm.debug.skipped") - before.1;
        assert!(trashed > 15 && skipped > 15, "{trashed} and {skipped}");
        give(zone, items);
    });
}
