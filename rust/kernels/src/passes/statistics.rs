//! What can be told of the elements of each of many tensors in one pass over memory: mean, variance, norm, magnitudes,
//! zeros, NaN and infinity.
//!
//! A tensor is read in tiles that stay in the first-level cache while they are looked at three times: the bits of the
//! magnitudes (smallest, largest, zeros), the sum, and then the squared distances from the tile's own mean. So the
//! variance never is a difference of large numbers. Tiles, and then chunks, are merged in order by the formula of Chan,
//! Golub and LeVeque ("Algorithms for computing the sample variance", 1983). The sum of squares follows from the
//! moments without cancellation: `sum x^2 = sum (x - mean)^2 + n mean^2`.
//!
//! Mean, variance, norm and magnitudes are those of the finite elements. A tile in which not all are finite is taken
//! apart element by element; that is rare, and costs what it costs.
//!
//! The same bits come out whatever the threads and the SIMD level: all arithmetic is in f64, how tensors are cut
//! depends on their sizes alone, element i of a tile is always added to lane i mod 64, and the lanes are added
//! pairwise.

use super::reading::{Part, Reading};
use crate::formats::{Element, Slice, bf16, f16};
use crate::lanes::{AHEAD, LANES, pairwise};
use crate::layout::Layout;
use crate::pool::{Panic, Pool};
use crate::simd::{Level, Simd, Vectorized, prefetch};

/// Elements of a tile; a multiple of the lanes.
const TILE: usize = 2048;

/// What is known of some elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many elements are finite.
    pub finite: u64,
    /// The mean of the finite ones; zero if there are none.
    pub mean: f64,
    /// The sum of squared distances from the mean.
    pub squares: f64,
    /// The smallest magnitude that is not zero; infinite if there is none.
    pub smallest: f64,
    /// The largest finite magnitude.
    pub largest: f64,
    /// How many elements are zero.
    pub zeros: u64,
    /// How many are NaN.
    pub nans: u64,
    /// How many are infinite.
    pub infinities: u64,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            finite: 0,
            mean: 0.0,
            squares: 0.0,
            smallest: f64::INFINITY,
            largest: 0.0,
            zeros: 0,
            nans: 0,
            infinities: 0,
        }
    }
}

impl Summary {
    /// The variance of the finite elements, over their number; NaN if there are none.
    pub fn variance(&self) -> f64 {
        if self.finite == 0 { f64::NAN } else { self.squares / self.finite as f64 }
    }

    /// The root of the sum of squares of the finite elements.
    pub fn norm(&self) -> f64 {
        (self.squares + self.finite as f64 * (self.mean * self.mean)).sqrt()
    }

    /// Takes in what is known of the elements that follow.
    fn merge(&mut self, next: &Self) {
        if self.finite == 0 {
            (self.finite, self.mean, self.squares) = (next.finite, next.mean, next.squares);
        } else if next.finite > 0 {
            let (own, other) = (self.finite as f64, next.finite as f64);
            let share = other / (own + other);
            let apart = next.mean - self.mean;
            self.mean += apart * share;
            self.squares += next.squares + apart * apart * own * share;
            self.finite += next.finite;
            if self.mean.is_nan() {
                // float64 elements near the end of its range: sums beyond it have met
                (self.mean, self.squares) = (f64::INFINITY, f64::INFINITY);
            }
        }
        self.smallest = self.smallest.min(next.smallest);
        self.largest = self.largest.max(next.largest);
        self.zeros += next.zeros;
        self.nans += next.nans;
        self.infinities += next.infinities;
    }
}

/// Statistics of many tensors: filled, computed once, read, and emptied for reuse without giving memory back.
#[derive(Debug, Default)]
pub struct Statistics<'a> {
    reading: Reading<'a, Summary>,
    /// For each tensor, one past its last part.
    ends: Vec<usize>,
}

impl<'a> Statistics<'a> {
    /// How many elements there are.
    pub fn elements(&self) -> usize {
        self.reading.elements
    }

    /// Adds a tensor; with a layout, the elements that its first stream walks over.
    ///
    /// # Panics
    /// If the slice is too short for the layout.
    pub fn push(&mut self, elements: Slice<'a>, layout: Option<&'a Layout>) {
        self.reading.push(elements, layout);
        self.ends.push(self.reading.parts.len());
    }

    /// Looks at all tensors.
    ///
    /// # Errors
    /// The payload of a panic in a kernel, which would be a defect of this crate.
    pub fn compute(&mut self, pool: &dyn Pool, level: Level) -> Result<(), Panic> {
        self.reading.run(pool, |part| found_in(part, level))
    }

    /// The summaries, tensor by tensor, once they are computed.
    pub fn summaries(&self) -> impl Iterator<Item = Summary> {
        self.ends.iter().scan(0, |start, &end| {
            let mut all = Summary::default();
            self.reading.parts[std::mem::replace(start, end)..end].iter().for_each(|part| all.merge(&part.found));
            Some(all)
        })
    }

    /// Empties it, keeping its memory for tensors of any lifetime.
    pub fn recycle<'b>(mut self) -> Statistics<'b> {
        self.ends.clear();
        Statistics { reading: self.reading.recycle(), ends: self.ends }
    }
}

fn found_in(part: &Part<'_, Summary>, level: Level) -> Summary {
    macro_rules! each {
        ($($Variant:ident),*) => {
            match part.elements {
                $(Slice::$Variant(x) => summary_of(part, x, level),)*
                Slice::U8(_) | Slice::I16(_) => unreachable!("codes are no numbers"),
            }
        };
    }
    each!(F64, F32, F16, Bf16)
}

fn summary_of<E: Magnitude>(part: &Part<'_, Summary>, x: &[E], level: Level) -> Summary {
    let mut all = Summary::default();
    part.each::<E, TILE>(x, |x| x.chunks(TILE).for_each(|tile| all.merge(&summary_of_tile(tile, level))));
    all
}

fn summary_of_tile<E: Magnitude>(x: &[E], level: Level) -> Summary {
    let mut bits = Bits::default();
    level.run(Magnitudes(x, &mut bits));
    if bits.largest >= E::INFINITY {
        return summary_of_strange_tile(x, level);
    }
    let (mean, squares) = moments(x, level);
    Summary {
        finite: x.len() as u64,
        mean,
        squares,
        smallest: smallest::<E>(bits.smallest_less_one),
        largest: E::from_bits(bits.largest),
        zeros: bits.zeros,
        nans: 0,
        infinities: 0,
    }
}

/// A tile in which something is not finite.
#[cold]
fn summary_of_strange_tile<E: Magnitude>(x: &[E], level: Level) -> Summary {
    let mut finite = [0.0_f64; TILE];
    let mut all = Summary::default();
    for &x in x {
        let bits = x.bits();
        if bits > E::INFINITY {
            all.nans += 1;
        } else if bits == E::INFINITY {
            all.infinities += 1;
        } else {
            finite[all.finite as usize] = x.load().into();
            all.finite += 1;
        }
    }
    let rest = summary_of_finite(&finite[..all.finite as usize], level);
    Summary { nans: all.nans, infinities: all.infinities, ..rest }
}

fn summary_of_finite(x: &[f64], level: Level) -> Summary {
    if x.is_empty() { Summary::default() } else { summary_of_tile(x, level) }
}

/// The mean of finite elements and the sum of squared distances from it.
fn moments<E: Magnitude>(x: &[E], level: Level) -> (f64, f64) {
    let mut lanes = [0.0; LANES];
    level.run(Sum(x, &mut lanes));
    let sum = pairwise(lanes);
    // float64 elements near the end of its range: infinities of both signs may have met
    let mean = if sum.is_nan() { f64::INFINITY } else { sum / x.len() as f64 };
    let mut lanes = [0.0; LANES];
    level.run(SquaredDistances(x, mean, &mut lanes));
    (mean, pairwise(lanes))
}

fn smallest<E: Magnitude>(less_one: E::Bits) -> f64 {
    if less_one == E::NONE { f64::INFINITY } else { E::from_bits(E::next(less_one)) }
}

/// What the bits of a tile's magnitudes tell.
struct Bits<E: Magnitude> {
    largest: E::Bits,
    /// The smallest of (bits - 1), where zero wraps round to be larger than all others.
    smallest_less_one: E::Bits,
    zeros: u64,
}

impl<E: Magnitude> Default for Bits<E> {
    fn default() -> Self {
        Self { largest: E::Bits::default(), smallest_less_one: E::NONE, zeros: 0 }
    }
}

/// An element type's magnitude as an unsigned integer of its own width: the order is the same, NaN comes last.
trait Magnitude: Element<Arith: Into<f64>> {
    type Bits: Copy + Ord + Default + std::fmt::Debug;
    const INFINITY: Self::Bits;
    /// Zero less one.
    const NONE: Self::Bits;
    fn bits(self) -> Self::Bits;
    fn previous(bits: Self::Bits) -> Self::Bits;
    fn next(bits: Self::Bits) -> Self::Bits;
    /// One if the bits are those of zero.
    fn is_zero(bits: Self::Bits) -> Self::Bits;
    fn add(a: Self::Bits, b: Self::Bits) -> Self::Bits;
    fn count(bits: Self::Bits) -> u64;
    fn from_bits(bits: Self::Bits) -> f64;
}

macro_rules! magnitude {
    ($t:ty, $bits:ty) => {
        impl Magnitude for $t {
            type Bits = $bits;
            const INFINITY: $bits = <$t>::INFINITY.to_bits();
            const NONE: $bits = <$bits>::MAX;
            #[inline(always)]
            fn bits(self) -> $bits {
                self.to_bits() & (<$bits>::MAX >> 1)
            }
            #[inline(always)]
            fn previous(bits: $bits) -> $bits {
                bits.wrapping_sub(1)
            }
            fn next(bits: $bits) -> $bits {
                bits.wrapping_add(1)
            }
            #[inline(always)]
            fn is_zero(bits: $bits) -> $bits {
                <$bits>::from(bits == 0)
            }
            #[inline(always)]
            fn add(a: $bits, b: $bits) -> $bits {
                a + b
            }
            fn count(bits: $bits) -> u64 {
                u64::from(bits)
            }
            fn from_bits(bits: $bits) -> f64 {
                <$t>::from_bits(bits).load().into()
            }
        }
    };
}
magnitude!(f64, u64);
magnitude!(f32, u32);
magnitude!(f16, u16);
magnitude!(bf16, u16);

struct Magnitudes<'a, E: Magnitude>(&'a [E], &'a mut Bits<E>);

impl<E: Magnitude> Vectorized for Magnitudes<'_, E> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let Self(x, found) = self;
        // a lane counts at most a tile's share of zeros: 32 fit any of the integers
        let (mut largest, mut smallest, mut zeros) =
            ([E::Bits::default(); LANES], [E::NONE; LANES], [E::Bits::default(); LANES]);
        let (rows, tail) = x.as_chunks::<LANES>();
        for (r, row) in rows.iter().enumerate() {
            // this sweep is the one that waits for memory
            let per_line = 64 / size_of::<E>();
            for line in 0..LANES / per_line {
                prefetch(x, (r + AHEAD) * LANES + line * per_line);
            }
            for l in 0..LANES {
                take_magnitude(row[l], &mut largest[l], &mut smallest[l], &mut zeros[l]);
            }
        }
        for (l, &x) in tail.iter().enumerate() {
            take_magnitude(x, &mut largest[l], &mut smallest[l], &mut zeros[l]);
        }
        found.largest = largest.into_iter().max().unwrap_or_default();
        found.smallest_less_one = smallest.into_iter().min().unwrap_or(E::NONE);
        found.zeros = zeros.into_iter().map(E::count).sum();
    }
}

#[inline(always)]
fn take_magnitude<E: Magnitude>(x: E, largest: &mut E::Bits, smallest: &mut E::Bits, zeros: &mut E::Bits) {
    let bits = x.bits();
    *largest = (*largest).max(bits);
    *smallest = (*smallest).min(E::previous(bits));
    *zeros = E::add(*zeros, E::is_zero(bits));
}

struct Sum<'a, E>(&'a [E], &'a mut [f64; LANES]);

impl<E: Magnitude> Vectorized for Sum<'_, E> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        sweep(self.0, self.1, |lane: f64, x: E| lane + x.load().into());
    }
}

struct SquaredDistances<'a, E>(&'a [E], f64, &'a mut [f64; LANES]);

impl<E: Magnitude> Vectorized for SquaredDistances<'_, E> {
    #[inline(always)]
    fn run(self, _: impl Simd) {
        let mean = self.1;
        // not fused, so that every level rounds alike
        sweep(self.0, self.2, |lane: f64, x: E| {
            let distance = x.load().into() - mean;
            lane + distance * distance
        });
    }
}

/// Takes every element into the lane of its place; of a tile, which is near already.
#[inline(always)]
fn sweep<E: Copy>(x: &[E], lanes: &mut [f64; LANES], take: impl Fn(f64, E) -> f64) {
    let (rows, tail) = x.as_chunks::<LANES>();
    for row in rows {
        for l in 0..LANES {
            lanes[l] = take(lanes[l], row[l]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = take(*lane, x);
    }
}
