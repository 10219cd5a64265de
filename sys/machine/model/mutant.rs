//! Mutants: what of the order of memory, the wakeups and the interrupts the code asks for can be left out, one place at a time.
//!
//! They are written nowhere. Whoever asks says from where (`#[track_caller]`), and in the execution that stands for a mutant
//! what is asked for at one place is not done.

use core::cell::{Cell, RefCell};
use core::fmt;
use core::panic::Location;
use std::collections::{BTreeSet, HashMap};
use std::string::String;
use std::vec::Vec;

/// What can be left out at a place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SiteKind {
    /// The acquire half of an atomic access.
    Acquire,
    /// The release half.
    Release,
    /// The store itself.
    Store,
    /// The fence; of a sequentially consistent one an acquire and release fence is left.
    Fence,
    /// That the thread is woken.
    Wakeup,
    /// That the CPU is interrupted.
    Interrupt,
}

impl SiteKind {
    const ALL: [(SiteKind, &'static str); 6] = [
        (SiteKind::Acquire, "acquire"),
        (SiteKind::Release, "release"),
        (SiteKind::Store, "store"),
        (SiteKind::Fence, "fence"),
        (SiteKind::Wakeup, "wakeup"),
        (SiteKind::Interrupt, "interrupt"),
    ];
}

/// A place in the source, and what can be left out there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Site {
    /// The file, from the root of the repository.
    pub file: String,
    /// Its line.
    pub line: u32,
    /// Its column.
    pub column: u32,
    /// What is left out.
    pub kind: SiteKind,
}

impl fmt::Display for SiteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SiteKind::ALL.iter().find(|(kind, _)| kind == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}:{}",
            self.file, self.line, self.column, self.kind
        )
    }
}

impl Site {
    /// Reads what `Display` wrote.
    pub fn parse(text: &str) -> Option<Site> {
        let mut parts = text.rsplitn(4, ':');
        let name = parts.next()?;
        let column = parts.next()?.parse().ok()?;
        let line = parts.next()?.parse().ok()?;
        let (kind, _) = *SiteKind::ALL.iter().find(|(_, known)| *known == name)?;
        Some(Site {
            file: parts.next()?.into(),
            line,
            column,
            kind,
        })
    }
}

std::thread_local! {
    static MUTANT: RefCell<Option<Site>> = const { RefCell::new(None) };
    static MET: RefCell<HashMap<(usize, SiteKind), &'static Location<'static>>> = RefCell::default();
    static STEPS: RefCell<Vec<(usize, &'static Location<'static>)>> = const { RefCell::new(Vec::new()) };
    static MUTATED: Cell<bool> = const { Cell::new(false) };
}

/// Chooses the mutant of this host thread's executions.
pub(super) fn choose(mutant: Option<Site>) {
    MUTATED.set(mutant.is_some());
    MUTANT.set(mutant);
    MET.take();
}

/// Notes a step of the running CPU.
pub(super) fn note_step(cpu: usize, site: &'static Location<'static>) {
    STEPS.with_borrow_mut(|steps| steps.push((cpu, site)));
}

/// Begins the notes of another execution.
pub(super) fn forget_steps() {
    STEPS.with_borrow_mut(Vec::clear);
}

/// The last steps of the execution, one on a line: for the report of a failure.
pub fn last_steps(count: usize) -> String {
    let mut text = String::new();
    STEPS.with_borrow(|steps| {
        for (cpu, site) in &steps[steps.len().saturating_sub(count)..] {
            text += &std::format!("  cpu {cpu}: {}:{}\n", site.file(), site.line());
        }
    });
    text
}

/// Tells whether what is asked for at `site` is left out.
pub(super) fn is_taken(site: &'static Location<'static>, kind: SiteKind) -> bool {
    if !MUTATED.get() {
        let address = site as *const Location<'_> as usize;
        MET.with_borrow_mut(|met| met.insert((address, kind), site));
        return false;
    }
    MUTANT.with_borrow(|mutant| {
        mutant.as_ref().is_some_and(|mutant| {
            mutant.line == site.line()
                && mutant.column == site.column()
                && mutant.kind == kind
                && mutant.file == site.file()
        })
    })
}

/// The places met, without a mutant.
pub(super) fn met() -> BTreeSet<Site> {
    let met = MET.take();
    let site = |((_, kind), at): ((usize, SiteKind), &Location<'_>)| Site {
        file: at.file().into(),
        line: at.line(),
        column: at.column(),
        kind,
    };
    met.into_iter().map(site).collect()
}
