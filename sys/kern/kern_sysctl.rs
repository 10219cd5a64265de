//! The sysctl tree: names and the leaves behind them.
//!
//! FreeBSD: sys/kern/kern_sysctl.c, sys/kern/kern_environment.c
//! Differs from FreeBSD: one tree for the machine and one for each stack instance, instead of one tree with
//! virtualized nodes; a reader asks the instance's tree first.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::errno::Errno;
use crate::kern::kern_rmlock::RmSleepable;
use crate::kern::kern_rwlock::RwLock;
use crate::kern::lock_order;
use crate::machine_local;
use crate::sysctl::{SysctlBranch, SysctlNode};

type Leaf = Arc<dyn SysctlNode>;
type Branch = (&'static str, Arc<dyn SysctlBranch>);

/// A leaf that is set no more.
struct Sealed(Leaf);

impl SysctlNode for Sealed {
    fn get(&self) -> String {
        self.0.get()
    }

    fn set(&self, _value: &str) -> Result<(), Errno> {
        Err(Errno::EPERM)
    }

    fn description(&self) -> &str {
        self.0.description()
    }
}

/// A tree of settings and figures.
pub struct SysctlTree {
    leaves: RmSleepable<BTreeMap<String, Leaf>, lock_order::SysctlTree>,
    branches: RwLock<Vec<Branch>, lock_order::SysctlTree>,
}

impl SysctlTree {
    /// An empty tree.
    pub const fn new() -> SysctlTree {
        SysctlTree {
            leaves: RmSleepable::new_sleepable(BTreeMap::new()),
            branches: RwLock::new(Vec::new()),
        }
    }

    /// Puts a leaf at `name`, and sets it to what the kernel's command line says of it.
    #[doc(alias = "SYSCTL_ADD_OID")]
    pub fn register(&self, name: &str, leaf: Leaf) {
        if let Some(value) = kenv().get(name)
            && leaf.set(&value).is_err()
        {
            crate::kprintf!("{name}: cannot be set to '{value}'\n");
        }
        self.leaves.write().insert(name.to_string(), leaf);
    }

    /// From now on the leaf at `name` can only be read: what it says is looked at once, when the kernel starts.
    #[doc(alias = "CTLFLAG_RDTUN")]
    pub fn seal(&self, name: &str) {
        if let Some(leaf) = self.leaves.write().get_mut(name) {
            *leaf = Arc::new(Sealed(leaf.clone()));
        }
    }

    /// Lets `branch` say what there is below `name`.
    pub fn register_branch(&self, name: &'static str, branch: Arc<dyn SysctlBranch>) {
        self.branches.write().push((name, branch));
    }

    /// Names and values that branches have at and below `prefix`.
    fn walk_branches(&self, prefix: &str) -> Vec<(String, String)> {
        let branches = self.branches.read().clone();
        let mut found = Vec::new();
        for (name, branch) in branches {
            if below(name, prefix) || below(prefix, name) {
                let leaves = branch.walk().into_iter();
                let leaves = leaves.map(|(leaf, value)| (alloc::format!("{name}.{leaf}"), value));
                found.extend(leaves.filter(|(name, _)| below(name, prefix)));
            }
        }
        found
    }

    /// Takes out all leaves at and below `prefix`.
    #[doc(alias = "sysctl_ctx_free")]
    pub fn unregister(&self, prefix: &str) {
        let removed: Vec<Leaf> = {
            let mut leaves = self.leaves.write();
            let names: Vec<String> = leaves
                .keys()
                .filter(|name| below(name, prefix))
                .cloned()
                .collect();
            names
                .iter()
                .filter_map(|name| leaves.remove(name))
                .collect()
        };
        // A leaf may own what takes locks when it goes.
        drop(removed);
    }

    /// The value at `name`.
    pub fn get(&self, name: &str) -> Option<String> {
        if let Some(leaf) = self.leaf(name) {
            return Some(leaf.get());
        }
        let mut found = self.walk_branches(name).into_iter();
        found.find(|(leaf, _)| leaf == name).map(|(_, value)| value)
    }

    /// What the leaf at `name` is about.
    pub fn description(&self, name: &str) -> Option<String> {
        self.leaf(name).map(|leaf| leaf.description().to_string())
    }

    /// Sets the leaf at `name`; returns the values before and after. `ENOENT` if there is none.
    pub fn set(&self, name: &str, value: &str) -> Result<(String, String), Errno> {
        let Some(leaf) = self.leaf(name) else {
            let found = self
                .walk_branches(name)
                .iter()
                .any(|(leaf, _)| leaf == name);
            return Err(if found { Errno::EPERM } else { Errno::ENOENT });
        };
        let old = leaf.get();
        leaf.set(value)?;
        Ok((old, leaf.get()))
    }

    /// All names and values at and below `prefix`, in order of name; all of the tree for an empty prefix.
    #[doc(alias = "CTL_SYSCTL_NEXTNOSKIP")]
    pub fn walk(&self, prefix: &str) -> Vec<(String, String)> {
        self.walk_where(prefix, |_| true)
    }

    /// All names and values of the tree but those that ask to be left out of such a list, in order of name.
    #[doc(alias = "CTL_SYSCTL_NEXT")]
    pub fn walk_all(&self) -> Vec<(String, String)> {
        self.walk_where("", |leaf| !leaf.is_skipped())
    }

    fn walk_where(
        &self,
        prefix: &str,
        wanted: impl Fn(&dyn SysctlNode) -> bool,
    ) -> Vec<(String, String)> {
        // Values are read without the lock: a leaf may take locks of its own.
        let leaves: Vec<(String, Leaf)> = {
            let leaves = self.leaves.read();
            leaves
                .iter()
                .filter(|(name, leaf)| below(name, prefix) && wanted(&***leaf))
                .map(|(name, leaf)| (name.clone(), leaf.clone()))
                .collect()
        };
        let mut all: Vec<(String, String)> = leaves
            .into_iter()
            .map(|(name, leaf)| (name, leaf.get()))
            .collect();
        let listed = all.len();
        all.extend(self.walk_branches(prefix));
        if all.len() > listed {
            all.sort();
        }
        all
    }

    fn leaf(&self, name: &str) -> Option<Leaf> {
        self.leaves.read().get(name).cloned()
    }
}

impl Default for SysctlTree {
    fn default() -> SysctlTree {
        SysctlTree::new()
    }
}

/// Whether `name` is `prefix` or lies below it.
fn below(name: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('.');
    match name.strip_prefix(prefix) {
        Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('.'),
        None => false,
    }
}

machine_local! {
    static ROOT: SysctlTree = SysctlTree::new();
    static KENV: Kenv = Kenv::new();
}

/// The machine's tree: what does not belong to a stack instance.
pub fn root() -> &'static SysctlTree {
    ROOT.get()
}

/// The words of the kernel's command line.
pub fn kenv() -> &'static Kenv {
    KENV.get()
}

/// Names and values that the machine was booted with (kenv(1)).
pub struct Kenv {
    values: RwLock<BTreeMap<String, String>, lock_order::Leaf>,
}

impl Kenv {
    const fn new() -> Kenv {
        Kenv {
            values: RwLock::new(BTreeMap::new()),
        }
    }

    /// The value of `name`.
    #[doc(alias = "kern_getenv")]
    pub fn get(&self, name: &str) -> Option<String> {
        self.values.read().get(name).cloned()
    }

    /// Sets `name`, before anything reads it.
    #[doc(alias = "kern_setenv")]
    pub fn set(&self, name: &str, value: &str) {
        self.values
            .write()
            .insert(name.to_string(), value.to_string());
    }

    /// All names and values.
    pub fn all(&self) -> Vec<(String, String)> {
        let values = self.values.read();
        values
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::hosted::Machine;
    use crate::sysctl::{ReadOnly, Tunable};

    #[test]
    fn a_prefix_ends_at_a_dot() {
        assert!(below("net.inet.tcp.msl", "net.inet"));
        assert!(below("net.inet.tcp.msl", "net.inet.tcp.msl"));
        assert!(below("net.inet.tcp.msl", ""));
        assert!(!below("net.inet6.ip6.hlim", "net.inet"));
    }

    #[test]
    fn the_command_line_sets_what_is_registered_later() {
        Machine::builder().run(|| {
            kenv().set("test.depth", "7");
            root().register("test.depth", Arc::new(Tunable::new(1u32, 0, 9, "Depth")));
            assert_eq!(root().get("test.depth").as_deref(), Some("7"));
        });
    }

    #[test]
    fn what_is_skipped_is_shown_only_to_who_asks_for_it() {
        Machine::builder().run(|| {
            let tree = SysctlTree::new();
            let long = ReadOnly::new("Table", || "a\nb".to_string()).skipped();
            tree.register("test.list", Arc::new(long));
            tree.register(
                "test.seen",
                Arc::new(ReadOnly::new("Seen", || "3".to_string())),
            );
            let names = |found: Vec<(String, String)>| -> Vec<String> {
                found.into_iter().map(|(name, _)| name).collect()
            };
            assert_eq!(names(tree.walk_all()), ["test.seen"]);
            assert_eq!(names(tree.walk("test")), ["test.list", "test.seen"]);
            assert_eq!(tree.get("test.list").as_deref(), Some("a\nb"));
        });
    }

    #[test]
    fn what_cannot_be_written_or_found_says_so() {
        Machine::builder().run(|| {
            let tree = SysctlTree::new();
            tree.register(
                "test.seen",
                Arc::new(ReadOnly::new("Seen", || "3".to_string())),
            );
            assert_eq!(tree.set("test.seen", "4"), Err(Errno::EPERM));
            assert_eq!(tree.set("test.unseen", "4"), Err(Errno::ENOENT));
            assert_eq!(
                tree.walk("test"),
                [("test.seen".to_string(), "3".to_string())]
            );
            tree.unregister("test");
            assert_eq!(tree.get("test.seen"), None);
        });
    }
}
