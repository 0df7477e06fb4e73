//! XXH64 (Yann Collet, <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>), because the hashes of the
//! redelivery window stand in logs: they must be the same in every release, which the standard library's are not.
//!
//! It is fast and not cryptographic. Who can make two payloads collide can only make their own repeat be taken for
//! what they already sent.

const PRIME_1: u64 = 0x9e37_79b1_85eb_ca87;
const PRIME_2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const PRIME_3: u64 = 0x1656_67b1_9e37_79f9;
const PRIME_4: u64 = 0x85eb_ca77_c2b2_ae63;
const PRIME_5: u64 = 0x27d4_eb2f_1656_67c5;

#[inline]
fn round(lane: u64, input: u64) -> u64 {
    lane.wrapping_add(input.wrapping_mul(PRIME_2)).rotate_left(31).wrapping_mul(PRIME_1)
}

#[inline]
fn merge(hash: u64, lane: u64) -> u64 {
    (hash ^ round(0, lane)).wrapping_mul(PRIME_1).wrapping_add(PRIME_4)
}

/// The XXH64 of `bytes`.
#[inline]
pub fn xxh64(bytes: &[u8], seed: u64) -> u64 {
    let (blocks, mut tail) = bytes.as_chunks::<32>();
    let mut hash = if blocks.is_empty() { seed.wrapping_add(PRIME_5) } else { stripes(blocks, seed) };
    hash = hash.wrapping_add(bytes.len() as u64);
    while let Some((eight, rest)) = tail.split_first_chunk::<8>() {
        hash ^= round(0, u64::from_le_bytes(*eight));
        hash = hash.rotate_left(27).wrapping_mul(PRIME_1).wrapping_add(PRIME_4);
        tail = rest;
    }
    if let Some((four, rest)) = tail.split_first_chunk::<4>() {
        hash ^= u64::from(u32::from_le_bytes(*four)).wrapping_mul(PRIME_1);
        hash = hash.rotate_left(23).wrapping_mul(PRIME_2).wrapping_add(PRIME_3);
        tail = rest;
    }
    for byte in tail {
        hash ^= u64::from(*byte).wrapping_mul(PRIME_5);
        hash = hash.rotate_left(11).wrapping_mul(PRIME_1);
    }
    avalanche(hash)
}

#[inline]
fn stripes(blocks: &[[u8; 32]], seed: u64) -> u64 {
    let mut lanes = [
        seed.wrapping_add(PRIME_1).wrapping_add(PRIME_2),
        seed.wrapping_add(PRIME_2),
        seed,
        seed.wrapping_sub(PRIME_1),
    ];
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = round(*lane, u64::from_le_bytes(*word));
        }
    }
    let [a, b, c, d] = lanes;
    let mixed = a
        .rotate_left(1)
        .wrapping_add(b.rotate_left(7))
        .wrapping_add(c.rotate_left(12))
        .wrapping_add(d.rotate_left(18));
    lanes.into_iter().fold(mixed, merge)
}

#[inline]
fn avalanche(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(PRIME_2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(PRIME_3);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the reference implementation.
    #[test]
    fn known_answers() {
        assert_eq!(xxh64(b"", 0), 0xef46_db37_51d8_e999);
        assert_eq!(xxh64(b"a", 0), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(xxh64(b"abc", 0), 0x44bc_2cf5_ad77_0999);
        assert_eq!(xxh64(b"Nobody inspects the spammish repetition", 0), 0xfbce_a83c_8a37_8bf1);
    }

    #[test]
    fn every_length_differs() {
        let bytes = [7u8; 100];
        let mut seen: Vec<u64> = (0..=100).map(|n| xxh64(&bytes[..n], 1)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 101);
    }
}
