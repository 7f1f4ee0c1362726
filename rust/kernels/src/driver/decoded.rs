//! Streams that no loop is compiled for: any mix of formats whose arithmetic is in `f32`.
//!
//! A tile of each stream is read into `f32`, the tiles are updated by the loop for that, and what is written goes back
//! in its own format. Widening is exact and every number is rounded once, when it is stored: these are the bits that a
//! loop compiled for the formats would give. `f64` never comes here: where one stream is of it all are, and for that a
//! loop is compiled.

use super::body::{Body, WRITTEN};
use super::measured::Lanes;
use super::source::{Flat, Source};
use super::tensors::{in_layout, origin};
use super::types::Types;
use crate::formats::{Decode, Element, Encode, Slice, SliceMut};
use crate::layout::Layout;
use crate::simd::Level;

/// Elements of a tile: with three states 20 KiB of tiles, which stay near the processor beside the streams. A multiple
/// of the lanes, of the innermost loop's blocks, and of those of any format that keeps numbers in blocks.
const TILE: usize = 1024;

/// Updates what a source hands out, and measures that if sums are wanted.
pub(super) fn update_all(
    body: &Body<'_>,
    level: Level,
    factor: f64,
    source: &mut dyn Source,
    mut sums: Option<&mut Lanes>,
) {
    let mut tiles = Tiles::default();
    body.each(source, |written, grad| {
        tiles.update(body, level, factor, (written, grad), Lies::Together, sums.as_deref_mut());
    });
}

/// Updates a range of elements that lie apart, and measures that if sums are wanted.
pub(super) fn update_apart(
    body: &Body<'_>,
    level: Level,
    factor: f64,
    streams: (&mut [SliceMut<'_>], Slice<'_>),
    (layout, range): (&Layout, (usize, usize)),
    sums: Option<&mut Lanes>,
) {
    Tiles::default().update(body, level, factor, streams, Lies::Apart(layout, range), sums);
}

/// Where the elements of streams lie.
#[derive(Clone, Copy)]
enum Lies<'l> {
    /// One after the other.
    Together,
    /// As a layout says: a range in walking order. Written streams begin with the first of it.
    Apart(&'l Layout, (usize, usize)),
}

/// Room for a tile of each stream.
struct Tiles {
    written: [[f32; TILE]; WRITTEN],
    grad: [f32; TILE],
    /// The parameter before the update, where that is measured.
    old: [f32; TILE],
}

impl Default for Tiles {
    fn default() -> Self {
        Self { written: [[0.0; TILE]; WRITTEN], grad: [0.0; TILE], old: [0.0; TILE] }
    }
}

impl Tiles {
    fn update(
        &mut self,
        body: &Body<'_>,
        level: Level,
        factor: f64,
        (written, grad): (&mut [SliceMut<'_>], Slice<'_>),
        lies: Lies<'_>,
        mut sums: Option<&mut Lanes>,
    ) {
        let elements = match lies {
            Lies::Together => grad.len(),
            Lies::Apart(_, (first, end)) => end - first,
        };
        for start in (0..elements).step_by(TILE) {
            let n = TILE.min(elements - start);
            let part = |stream| Part { lies, stream, start, level };
            for (k, (stream, tile)) in written.iter().zip(&mut self.written).enumerate() {
                part(in_layout(k)).read(stream.as_slice(), &mut tile[..n]);
            }
            part(1).read(grad, &mut self.grad[..n]);
            if sums.is_some() {
                self.old = self.written[0];
            }
            let mut slots = self.written.each_mut().map(|tile| SliceMut::F32(tile));
            let mut tile = Flat::new(&mut slots[..written.len()], Slice::F32(&self.grad), 0, n);
            body.run(level, factor, Types::F32, &mut tile);
            for (k, (stream, tile)) in written.iter_mut().zip(&self.written).enumerate() {
                part(in_layout(k)).write(stream, &tile[..n]);
            }
            if let Some(sums) = &mut sums {
                // the parameter as it was stored
                part(0).read(written[0].as_slice(), &mut self.written[0][..n]);
                sums.add(level, &self.old[..n], &self.written[0][..n], &self.grad[..n]);
            }
        }
    }
}

/// Some elements of a stream.
struct Part<'l> {
    lies: Lies<'l>,
    /// The stream's number in the layout: the gradient comes second there.
    stream: usize,
    start: usize,
    level: Level,
}

impl Part<'_> {
    /// Reads them into a tile. (A format that keeps several states in one stream would fill as many tiles.)
    fn read(&self, from: Slice<'_>, tile: &mut [f32]) {
        match from {
            Slice::F32(x) => self.read_from(x, tile),
            Slice::F16(x) => self.read_from(x, tile),
            Slice::Bf16(x) => self.read_from(x, tile),
            Slice::F64(_) | Slice::U8(_) | Slice::I16(_) => unreachable!("checked when pushed"),
        }
    }

    fn read_from<E: Element<Arith = f32>>(&self, x: &[E], tile: &mut [f32]) {
        match self.lies {
            Lies::Together => self.level.run(Decode(&x[self.start..][..tile.len()], tile)),
            Lies::Apart(layout, (first, _)) => {
                let origin = self.origin(layout, first);
                layout.walk(self.stream, first + self.start, tile.len(), |i, at| tile[i] = x[at - origin].load());
            }
        }
    }

    /// Writes a tile where they lie.
    fn write(&self, to: &mut SliceMut<'_>, tile: &[f32]) {
        match to {
            SliceMut::F32(x) => self.write_to(x, tile),
            SliceMut::F16(x) => self.write_to(x, tile),
            SliceMut::Bf16(x) => self.write_to(x, tile),
            SliceMut::F64(_) | SliceMut::U8(_) | SliceMut::I16(_) => unreachable!("checked when pushed"),
        }
    }

    fn write_to<E: Element<Arith = f32>>(&self, x: &mut [E], tile: &[f32]) {
        match self.lies {
            Lies::Together => self.level.run(Encode(tile, &mut x[self.start..][..tile.len()])),
            Lies::Apart(layout, (first, _)) => {
                let origin = self.origin(layout, first);
                layout.walk(self.stream, first + self.start, tile.len(), |i, at| x[at - origin] = E::store(tile[i]));
            }
        }
    }

    /// Where the stream's slice begins: the gradient, which is only read, is never cut.
    fn origin(&self, layout: &Layout, first: usize) -> usize {
        if self.stream == 1 { 0 } else { origin(layout, self.stream, first) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::measured::Measured;
    use crate::driver::rows::SparseRows;
    use crate::driver::step::Step;
    use crate::driver::tensors::Tensors;
    use crate::formats::{Storage, bf16, f16};
    use crate::pool::Serial;
    use crate::rule::{Hyperparameters, Precision, Scalars};
    use crate::rules::{AnyRule, Kind};

    /// Hyperparameters of any rule, with all flags set or none.
    struct Usual {
        flags: bool,
    }

    impl Hyperparameters for Usual {
        type Error = ();
        fn number(&mut self, key: &'static str) -> Result<f64, ()> {
            Ok(match key {
                "lr" => 0.1,
                "momentum" if !self.flags => 0.0,
                "alpha" | "momentum" | "rho" => 0.9,
                "dampening" => 0.0,
                "t0" if !self.flags => 1e6,
                "t0" => 0.0,
                _ => 0.004,
            })
        }
        fn pair(&mut self, key: &'static str) -> Result<(f64, f64), ()> {
            Ok(match key {
                "etas" => (0.5, 1.2),
                "step_sizes" => (1e-6, 50.0),
                _ => (0.9, 0.999),
            })
        }
        fn flag(&mut self, _: &'static str) -> Result<bool, ()> {
            Ok(self.flags)
        }
    }

    /// Rows and columns; enough elements for several chunks and tiles.
    const ROWS: usize = 100;
    const COLUMNS: usize = 130;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Way {
        Flat,
        SomeRows,
        Apart,
    }

    /// Numbers between 0.01 and 1.01, some of them negative if wanted.
    fn numbers<E: Element<Arith = f32>>(len: usize, seed: usize, signed: bool) -> Vec<E> {
        let number = |i: usize| (i * 7919 + seed * 104_729) % 1009;
        let sign = |n: usize| if signed && n.is_multiple_of(3) { -1.0 } else { 1.0 };
        (0..len).map(|i| E::store(sign(number(i)) * (0.01 + number(i) as f32 / 1009.0))).collect()
    }

    /// The bits of numbers, all NaNs alike: their payloads are not promised.
    fn bits<E: Element<Arith = f32>>(x: &[E]) -> Vec<u32> {
        x.iter().map(|x| x.load()).map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
    }

    /// One step.
    fn stepped<P, G, S>(rule: &AnyRule, way: Way, measure: bool, decoded: bool, level: Level) -> Outcome
    where
        P: Storage<Arith = f32>,
        G: Storage<Arith = f32>,
        S: Storage<Arith = f32>,
    {
        let (rows, columns) = (ROWS as isize, COLUMNS as isize);
        let states = rule.states().len();
        let streams = 2 + states;
        let mut strides = vec![0; 2 * streams];
        for s in 0..streams {
            // the parameter has gaps, the gradient is transposed, states lie in rows
            [strides[s], strides[streams + s]] = [[2 * columns + 1, 2], [1, rows], [columns + 3, 1]][s.min(2)];
        }
        let layout = Layout::new(&[ROWS, COLUMNS], &strides, &vec![0; streams]);
        let len = if way == Way::Apart { 2 * (ROWS + 1) * (COLUMNS + 3) } else { ROWS * COLUMNS };
        let mut param: Vec<P> = numbers(len, 1, true);
        let grad: Vec<G> = numbers(len, 2, true);
        let mut kept: Vec<Vec<S>> = (0..states).map(|k| numbers(len, 3 + k, false)).collect();
        let named: Vec<i64> = (0..ROWS as i64).filter(|row| row % 3 != 1).collect();

        let mut scalars = Scalars::new([4.0, 0.5, 0.5], [Precision::F32; 3]);
        let (mut step, mut measured) = (Step::default(), Measured::default());
        step.constants(rule.constants(&mut scalars, false));
        let tensors = Tensors {
            param: P::wrap_mut(&mut param),
            grad: G::wrap(if way == Way::SomeRows { &grad[..named.len() * COLUMNS] } else { &grad }),
            states: kept.iter_mut().map(|state| S::wrap_mut(state)),
            layout: (way == Way::Apart).then_some(&layout),
        };
        let rows = SparseRows { rows: &named, width: COLUMNS, sources: None, sums: Slice::F32(&[]) };
        let pushed = if way == Way::SomeRows { step.push_rows(tensors, rows, -0.5) } else { step.push(tensors, -0.5) };
        assert_eq!(pushed, Ok(()));
        measured.pushed(&step);
        assert!(way != Way::Flat || step.chunks.len() > 1);
        if decoded {
            step.chunks.iter_mut().for_each(|chunk| chunk.types = None);
            step.alike = vec![1; step.chunks.len()];
        }
        let ran = if measure { step.run_measured(&mut measured, &Serial, level) } else { step.run(&Serial, level) };
        assert!(ran.is_ok());
        drop(step);
        // between rows that lie apart, sums begin anew
        let exact = measure && way != Way::Apart;
        let moved = exact.then(|| measured.moved().map(|m| [m.update, m.param, m.grad].map(f64::to_bits)).collect());
        Outcome { param: bits(&param), states: kept.iter().map(|state| bits(state)).collect(), moved }
    }

    /// The bits of what was written, and of what was measured.
    #[derive(PartialEq)]
    struct Outcome {
        param: Vec<u32>,
        states: Vec<Vec<u32>>,
        moved: Option<Vec<[u64; 3]>>,
    }

    /// Both ways to update streams of types that a loop is compiled for give the same bits.
    fn compare<P, G, S>(rule: &AnyRule)
    where
        P: Storage<Arith = f32>,
        G: Storage<Arith = f32>,
        S: Storage<Arith = f32>,
    {
        for way in [Way::Flat, Way::SomeRows, Way::Apart] {
            for measure in [false, true] {
                for level in [Level::Baseline, Level::best()] {
                    let compiled = stepped::<P, G, S>(rule, way, measure, false, level);
                    let decoded = stepped::<P, G, S>(rule, way, measure, true, level);
                    // (not `assert_eq`, which would print every element)
                    assert!(compiled == decoded, "{rule:?} {way:?} {measure} {level:?}");
                }
            }
        }
    }

    #[test]
    fn decoded_streams_have_the_bits_of_compiled_loops() {
        for name in Kind::NAMES {
            for flags in [false, true] {
                let Some(Ok(rule)) = Kind::from_name(name).map(|kind| kind.read(&mut Usual { flags })) else {
                    panic!("{name}")
                };
                if matches!(rule, AnyRule::Adafactor(_)) {
                    continue; // looks at tensors whole
                }
                compare::<f32, f32, f32>(&rule);
                compare::<f32, bf16, f32>(&rule);
                compare::<f32, f16, f32>(&rule);
                compare::<bf16, bf16, bf16>(&rule);
                compare::<bf16, bf16, f32>(&rule);
                compare::<f16, f16, f16>(&rule);
                compare::<f16, f16, f32>(&rule);
            }
        }
    }
}
