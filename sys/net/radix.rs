//! A path-compressed binary trie of prefixes: the order in which routes are kept.
//!
//! FreeBSD: sys/net/radix.c
//! Differs from FreeBSD: keys are prefixes of one number instead of byte strings with masks, so that there is no mask tree and
//! no duplicate chain; nodes live in one vector and name each other by index. Lookups of packets do not come here
//! but to the compiled table in `route.rs`.

use alloc::vec::Vec;
use core::ops::{BitAnd, BitOr, BitXor, Not};
use core::{fmt, mem};

/// An address as a number: 32 bits of IPv4, 128 of IPv6.
pub trait Bits:
    Copy
    + Ord
    + fmt::Debug
    + Send
    + Sync
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + BitXor<Output = Self>
    + Not<Output = Self>
    + 'static
{
    /// How many bits.
    const LEN: u8;
    /// No bit set.
    const ZERO: Self;
    /// Ones in the upper `len` bits.
    fn mask(len: u8) -> Self;
    /// How many zeros it begins with.
    fn leading_zeros(self) -> u8;
    /// Bit `at`, counted from the highest.
    fn bit(self, at: u8) -> usize;
    /// One more, unless that is too large.
    fn successor(self) -> Option<Self>;
    /// The lower eight bits.
    fn lower(self) -> u8;
    /// The upper 16 bits.
    fn upper(self) -> u16;
    /// `upper` above zeros.
    fn from_upper(upper: u16) -> Self;
}

macro_rules! bits {
    ($number:ty) => {
        impl Bits for $number {
            const LEN: u8 = <$number>::BITS as u8;
            const ZERO: Self = 0;

            fn mask(len: u8) -> Self {
                <$number>::MAX
                    .checked_shl(Self::BITS - u32::from(len.min(Self::LEN)))
                    .unwrap_or(0)
            }

            fn leading_zeros(self) -> u8 {
                <$number>::leading_zeros(self) as u8
            }

            #[inline]
            fn bit(self, at: u8) -> usize {
                (self >> (Self::LEN - 1 - at.min(Self::LEN - 1)) & 1) as usize
            }

            fn successor(self) -> Option<Self> {
                self.checked_add(1)
            }

            #[inline]
            fn lower(self) -> u8 {
                self as u8
            }

            #[inline]
            fn upper(self) -> u16 {
                (self >> (Self::LEN - 16)) as u16
            }

            fn from_upper(upper: u16) -> Self {
                <$number>::from(upper) << (Self::LEN - 16)
            }
        }
    };
}

bits!(u32);
bits!(u128);

/// A prefix: bits beyond its length are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Prefix<B = u32> {
    addr: B,
    len: u8,
}

impl<B: Bits> Prefix<B> {
    /// The prefix of `addr` with `len` bits (at most all); lower bits are cut off.
    pub fn new(addr: B, len: u8) -> Self {
        let len = len.min(B::LEN);
        Prefix {
            addr: addr & B::mask(len),
            len,
        }
    }

    /// Its first address.
    pub fn first(self) -> B {
        self.addr
    }

    /// Its last address.
    pub fn last(self) -> B {
        self.addr | !B::mask(self.len)
    }

    /// Its length in bits.
    pub fn bits(self) -> u8 {
        self.len
    }

    /// Whether `addr` is inside.
    pub fn covers(self, addr: B) -> bool {
        addr & B::mask(self.len) == self.addr
    }

    fn contains(self, other: Self) -> bool {
        self.len <= other.len && self.covers(other.addr)
    }

    /// The bit of `addr` after this prefix; only asked of prefixes shorter than an address.
    fn branch(self, addr: B) -> usize {
        addr.bit(self.len)
    }

    fn common(self, other: Self) -> Self {
        let same = (self.addr ^ other.addr).leading_zeros();
        Prefix::new(self.addr, same.min(self.len).min(other.len))
    }
}

struct Node<V, B> {
    prefix: Prefix<B>,
    /// None: only a place where two branches meet.
    value: Option<V>,
    child: [Option<u32>; 2],
}

/// A map from prefixes to `V`.
pub struct RadixTree<V, B = u32> {
    nodes: Vec<Node<V, B>>,
    unused: Vec<u32>,
    root: Option<u32>,
    len: usize,
}

impl<V, B: Bits> RadixTree<V, B> {
    /// An empty tree.
    pub const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            unused: Vec::new(),
            root: None,
            len: 0,
        }
    }

    /// Number of prefixes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of exactly this prefix.
    #[doc(alias = "rn_lookup")]
    pub fn get(&self, key: Prefix<B>) -> Option<&V> {
        let node = self.node(self.find(key)?);
        node.value.as_ref()
    }

    /// The value of exactly this prefix, to change.
    pub fn get_mut(&mut self, key: Prefix<B>) -> Option<&mut V> {
        let at = self.find(key)?;
        self.nodes[at as usize].value.as_mut()
    }

    /// The longest prefix that covers `addr`.
    #[doc(alias = "rn_match")]
    pub fn longest(&self, addr: B) -> Option<(Prefix<B>, &V)> {
        let mut best = None;
        let mut at = self.root;
        while let Some(i) = at {
            let node = self.node(i);
            if !node.prefix.covers(addr) {
                break;
            }
            if let Some(value) = &node.value {
                best = Some((node.prefix, value));
            }
            at = match node.prefix.len {
                full if full == B::LEN => None,
                _ => node.child[node.prefix.branch(addr)],
            };
        }
        best
    }

    /// Adds or replaces; returns what was there.
    #[doc(alias = "rn_addroute")]
    pub fn insert(&mut self, key: Prefix<B>, value: V) -> Option<V> {
        let mut parent: Option<(u32, usize)> = None;
        let mut at = self.root;
        loop {
            let Some(i) = at else {
                let leaf = self.make(key, Some(value));
                self.link(parent, Some(leaf));
                self.len += 1;
                return None;
            };
            let here = self.node(i).prefix;
            if here == key {
                let old = self.nodes[i as usize].value.replace(value);
                self.len += usize::from(old.is_none());
                return old;
            }
            if here.contains(key) {
                let branch = here.branch(key.addr);
                parent = Some((i, branch));
                at = self.node(i).child[branch];
                continue;
            }
            // `key` leaves the tree above node `i`: either it contains `i`, or both hang under what they have in common.
            let meet = here.common(key);
            let top = if meet == key {
                self.make(key, Some(value))
            } else {
                let leaf = self.make(key, Some(value));
                let glue = self.make(meet, None);
                self.nodes[glue as usize].child[meet.branch(key.addr)] = Some(leaf);
                glue
            };
            self.nodes[top as usize].child[meet.branch(here.addr)] = Some(i);
            self.link(parent, Some(top));
            self.len += 1;
            return None;
        }
    }

    /// Takes a prefix out.
    #[doc(alias = "rn_delete")]
    pub fn remove(&mut self, key: Prefix<B>) -> Option<V> {
        let mut path: Vec<(u32, usize)> = Vec::new();
        let mut at = self.root;
        let found = loop {
            let i = at?;
            let here = self.node(i).prefix;
            if here == key {
                break i;
            }
            if !here.contains(key) {
                return None;
            }
            let branch = here.branch(key.addr);
            path.push((i, branch));
            at = self.node(i).child[branch];
        };
        let value = self.nodes[found as usize].value.take()?;
        self.len -= 1;
        // Nodes without value must join two branches, or go.
        let mut i = found;
        loop {
            let node = self.node(i);
            let replacement = match (&node.value, node.child) {
                (None, [None, None]) => None,
                (None, [Some(only), None] | [None, Some(only)]) => Some(only),
                _ => break,
            };
            self.unused.push(i);
            let parent = path.pop();
            self.link(parent, replacement);
            match parent {
                Some((above, _)) => i = above,
                None => break,
            }
        }
        Some(value)
    }

    /// All prefixes in order: by address, shorter first.
    #[doc(alias = "rn_walktree")]
    pub fn iter(&self) -> Iter<'_, V, B> {
        Iter {
            tree: self,
            stack: self.root.into_iter().collect(),
        }
    }

    fn node(&self, i: u32) -> &Node<V, B> {
        &self.nodes[i as usize]
    }

    fn find(&self, key: Prefix<B>) -> Option<u32> {
        let mut at = self.root;
        loop {
            let i = at?;
            let node = self.node(i);
            if node.prefix == key {
                return Some(i);
            }
            if !node.prefix.contains(key) {
                return None;
            }
            at = node.child[node.prefix.branch(key.addr)];
        }
    }

    fn make(&mut self, prefix: Prefix<B>, value: Option<V>) -> u32 {
        let node = Node {
            prefix,
            value,
            child: [None, None],
        };
        match self.unused.pop() {
            Some(i) => {
                drop(mem::replace(&mut self.nodes[i as usize], node));
                i
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        }
    }

    fn link(&mut self, parent: Option<(u32, usize)>, child: Option<u32>) {
        match parent {
            Some((i, branch)) => self.nodes[i as usize].child[branch] = child,
            None => self.root = child,
        }
    }
}

impl<V, B: Bits> Default for RadixTree<V, B> {
    fn default() -> Self {
        Self::new()
    }
}

/// Walks a tree in order.
pub struct Iter<'a, V, B> {
    tree: &'a RadixTree<V, B>,
    stack: Vec<u32>,
}

impl<'a, V, B: Bits> Iterator for Iter<'a, V, B> {
    type Item = (Prefix<B>, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(i) = self.stack.pop() {
            let node = self.tree.node(i);
            let [low, high] = node.child;
            self.stack.extend(high);
            self.stack.extend(low);
            if let Some(value) = &node.value {
                return Some((node.prefix, value));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn the_longest_prefix_wins() {
        let mut tree = RadixTree::new();
        tree.insert(Prefix::new(0_u32, 0), "default");
        tree.insert(Prefix::new(0x0a00_0000, 8), "ten");
        tree.insert(Prefix::new(0x0a00_0200, 24), "net");
        tree.insert(Prefix::new(0x0a00_020f, 32), "host");
        let at = |a| tree.longest(a).map(|(_, v)| *v);
        assert_eq!(at(0x0a00_020f), Some("host"));
        assert_eq!(at(0x0a00_0210), Some("net"));
        assert_eq!(at(0x0a01_0000), Some("ten"));
        assert_eq!(at(0xc000_0001), Some("default"));
    }

    #[test]
    fn the_walk_is_in_order_and_removal_leaves_no_trace() {
        let mut tree = RadixTree::new();
        let prefixes = [
            (0u32, 0u8),
            (0x0a00_0000, 8),
            (0x0a00_0000, 24),
            (0x8000_0000, 1),
            (0xffff_ffff, 32),
        ];
        for (n, &(addr, len)) in prefixes.iter().enumerate() {
            assert_eq!(tree.insert(Prefix::new(addr, len), n), None);
        }
        let walked: Vec<_> = tree.iter().map(|(_, v)| *v).collect();
        assert_eq!(walked, vec![0, 1, 2, 3, 4]);
        for (n, &(addr, len)) in prefixes.iter().enumerate() {
            assert_eq!(tree.remove(Prefix::new(addr, len)), Some(n));
            assert_eq!(tree.remove(Prefix::new(addr, len)), None);
        }
        assert!(tree.is_empty() && tree.root.is_none());
    }
}
