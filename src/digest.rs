//! SHA-256 over several parts.

use aws_lc_rs::digest::{Context, Digest, SHA256};

/// Over the parts in order, each behind its length in 8 bytes, big-endian, so that no two lists run together to the same bytes.
#[must_use]
pub fn of_parts<const N: usize>(parts: [&[u8]; N]) -> Digest {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.finish()
}

/// The first bytes, with zeros behind where there are fewer.
#[must_use]
pub fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    array
}
