//! Receive-side scaling: the Toeplitz hash.
//!
//! FreeBSD: sys/net/toeplitz.c, rss_config.c

/// Bytes of a key.
pub const RSS_KEYSIZE: usize = 40;

/// The verification key.
pub const RSS_KEY: [u8; RSS_KEYSIZE] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// The Toeplitz hash of `data` under `key`.
pub fn toeplitz_hash(key: &[u8; RSS_KEYSIZE], data: &[u8]) -> u32 {
    let mut hash = 0u32;
    let mut window = u32::from_be_bytes([key[0], key[1], key[2], key[3]]);
    // The key's bytes that come into the window after its first 32 bits.
    let incoming = key[4..].iter().copied().chain(core::iter::repeat(0));
    for (&byte, incoming) in data.iter().zip(incoming) {
        for bit in (0..8).rev() {
            if byte >> bit & 1 != 0 {
                hash ^= window;
            }
            window = window << 1 | u32::from(incoming >> bit & 1);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toeplitz_gives_the_published_hashes() {
        let mut tuple = [0u8; 12];
        tuple[..4].copy_from_slice(&[66, 9, 149, 187]);
        tuple[4..8].copy_from_slice(&[161, 142, 100, 80]);
        tuple[8..10].copy_from_slice(&2794u16.to_be_bytes());
        tuple[10..].copy_from_slice(&1766u16.to_be_bytes());
        assert_eq!(toeplitz_hash(&RSS_KEY, &tuple[..8]), 0x323e_8fc2);
        assert_eq!(toeplitz_hash(&RSS_KEY, &tuple), 0x51cc_c178);
    }
}
