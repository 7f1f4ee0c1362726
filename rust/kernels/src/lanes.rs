//! Sums over fixed lanes: element i is always added to lane i modulo their number, and the lanes are added pairwise.
//!
//! So the same bits come out whatever the SIMD level, and the additions need not wait for each other.

use crate::simd::prefetch;

/// Lanes of a chunk, and elements between two rounds of prefetching. With fewer the compiler unrolls the loop over them
/// before it could vectorise it, and what it then finds is three times slower.
pub(crate) const LANES: usize = 64;
/// How many blocks ahead memory is prefetched: the hardware sees the stream too, and further ahead stands in its way.
pub(crate) const AHEAD: usize = 1;

/// Adds the lanes, a power of two of them, halving their number each time.
#[inline(always)]
pub(crate) fn pairwise<const N: usize>(mut lanes: [f64; N]) -> f64 {
    let mut width = N / 2;
    while width > 0 {
        for k in 0..width {
            lanes[k] += lanes[k + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Takes every element into the lane of its place.
#[inline(always)]
pub(crate) fn sweep<E: Copy, L: Copy>(x: &[E], lanes: &mut [L; LANES], take: impl Fn(L, E) -> L) {
    let (rows, tail) = x.as_chunks::<LANES>();
    for (r, row) in rows.iter().enumerate() {
        let per_line = 64 / size_of::<E>();
        for line in 0..LANES / per_line {
            prefetch(x, (r + AHEAD) * LANES + line * per_line);
        }
        for l in 0..LANES {
            lanes[l] = take(lanes[l], row[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = take(*lane, x);
    }
}
