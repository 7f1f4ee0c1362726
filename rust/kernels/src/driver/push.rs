//! How a step is filled: tensors are checked, cut into chunks, and noted.

use super::alike::Likeness;
use super::chunk::Chunk;
use super::compact;
use super::rows::{ROWS_CHUNK, Rows, SparseRows};
use super::step::Step;
use super::strided;
use super::tensors::{Tensors, check_lengths, check_types, cut, in_layout, origin, skip};
use super::types::Types;
use crate::chunks::{CHUNK, MEDIUM, SMALL_CHUNK};
use crate::compact::Compact;
use crate::formats::{Refused, Slice, SliceMut};
use crate::layout::Layout;
use crate::rules::Constants;

impl<'a> Step<'a> {
    /// Adds one parameter, to be updated with the constants registered last.
    ///
    /// # Errors
    /// If the tensors do not fit together or their types are not served; nothing was added.
    #[inline]
    pub fn push<S>(&mut self, tensors: Tensors<'a, S>, grad_factor: f64) -> Result<(), Refused>
    where
        S: IntoIterator<Item = SliceMut<'a>>,
    {
        let Tensors { param, grad, states, layout } = tensors;
        let first = self.write(param, states);
        let added = self.add(first, grad, layout, grad_factor);
        self.unless_refused(first, added)
    }

    /// Adds the rows of one parameter that a sparse gradient names, to be updated with the constants registered last.
    ///
    /// Parameter and states are flat, in rows of `width` elements; so is the gradient, which holds rows named by
    /// `named`.
    ///
    /// # Errors
    /// If the tensors or rows do not fit together, or their types are not served; nothing was added.
    pub fn push_rows<S>(
        &mut self,
        tensors: Tensors<'a, S>,
        named: SparseRows<'a>,
        grad_factor: f64,
    ) -> Result<(), Refused>
    where
        S: IntoIterator<Item = SliceMut<'a>>,
    {
        let Tensors { param, grad, states, layout } = tensors;
        let first = self.write(param, states);
        let added =
            if layout.is_none() { self.add_rows(first, grad, named, grad_factor) } else { Err(Refused::Lengths) };
        self.unless_refused(first, added)
    }

    /// Adds one contiguous parameter whose rule looks at it whole, to be updated with the constants registered last.
    ///
    /// `shape` is the number of rows and columns of a matrix, or of each matrix in a batch, whose states are `row_var`
    /// and `col_var`; `None` stands for a vector or a single number, whose state is `variance`.
    ///
    /// # Errors
    /// If the tensors do not fit together, their types are not served, or the rule is of another kind; nothing was
    /// added.
    pub fn push_factored<S>(
        &mut self,
        tensors: Tensors<'a, S>,
        shape: Option<(usize, usize)>,
        grad_factor: f64,
    ) -> Result<(), Refused>
    where
        S: IntoIterator<Item = SliceMut<'a>>,
    {
        let Some(&Constants::Adafactor(constants)) = self.bodies.last_rule() else {
            return Err(Refused::States);
        };
        let Tensors { param, grad, states, layout } = tensors;
        let mut states = states.into_iter();
        let (Some(first), second, None) = (states.next(), states.next(), states.next()) else {
            return Err(Refused::States);
        };
        if layout.is_some() {
            return Err(Refused::Lengths);
        }
        let len = param.len();
        self.factored.push(constants, (param, grad), (first, second), shape, grad_factor)?;
        self.elements += len;
        Ok(())
    }

    /// Adds one parameter that is kept in fewer bytes, to be updated with what was registered last. The states are
    /// followed by what stands beside them, as [`Compact`] says; element i of each belongs together. A layout, of two
    /// streams, says where the elements of the gradient are that belong to those of the parameter, which are walked one
    /// after the other.
    ///
    /// # Errors
    /// If the tensors do not fit together, or are not of the types that they are kept in; nothing was added.
    pub fn push_compact<S>(
        &mut self,
        tensors: Tensors<'a, S>,
        compact: &'a Compact,
        grad_factor: f64,
    ) -> Result<(), Refused>
    where
        S: IntoIterator<Item = SliceMut<'a>>,
    {
        let Tensors { param, grad, states, layout } = tensors;
        let first = self.write(param, states);
        let added = self.add_compact(first, (grad, layout), compact, grad_factor);
        self.unless_refused(first, added)
    }

    /// Puts what is written of a parameter at the end of the list of streams; returns its place.
    #[inline]
    fn write(&mut self, param: SliceMut<'a>, states: impl IntoIterator<Item = SliceMut<'a>>) -> usize {
        let first = self.streams.len();
        self.streams.push(param);
        self.streams.extend(states);
        first
    }

    /// Takes streams from the list again that were refused.
    #[inline]
    fn unless_refused(&mut self, first: usize, added: Result<(), Refused>) -> Result<(), Refused> {
        if added.is_err() {
            self.streams.truncate(first);
        }
        added
    }

    /// The last streams, from the `first` on, as a chunk to be cut.
    #[inline(always)]
    fn chunk(&self, first: usize, grad: Slice<'a>, grad_factor: f64) -> Result<Chunk<'a>, Refused> {
        let written = &self.streams[first..];
        check_types(written, &grad, self.bodies.states)?;
        let types = Types::of(written, &grad);
        let (first, written) = (first as u32, written.len() as u32);
        Ok(Chunk {
            grad,
            layout: None,
            range: (0, 0),
            grad_factor,
            first,
            written,
            body: 0,
            rows: None,
            compact: None,
            types,
        })
    }

    /// Adds the last streams, from the `first` on.
    fn add(
        &mut self,
        first: usize,
        grad: Slice<'a>,
        layout: Option<&'a Layout>,
        grad_factor: f64,
    ) -> Result<(), Refused> {
        let mut chunk = self.chunk(first, grad, grad_factor)?;
        check_lengths(&self.streams[first..], &grad, layout)?;
        chunk.body = self.bodies.next(layout.map_or(grad.len(), Layout::len)).ok_or(Refused::States)?;
        match layout {
            None => self.add_flat(chunk),
            Some(layout) => self.add_strided(chunk, layout),
        }
        Ok(())
    }

    /// Adds the last streams, which lie in one piece.
    #[inline(always)]
    fn add_flat(&mut self, mut chunk: Chunk<'a>) {
        let mut len = chunk.grad.len();
        self.elements += len;
        let each = if self.elements <= MEDIUM { SMALL_CHUNK } else { CHUNK };
        if (1..=each + each / 2).contains(&len) && chunk.types.is_some() {
            self.bodies.is_one();
        }
        while len > each + each / 2 {
            cut(&mut self.streams, chunk.written as usize, |_| each);
            let (grad, rest) = chunk.grad.split_at(each);
            self.keep(Chunk { grad, range: (0, each), ..chunk });
            (chunk.grad, chunk.first) = (rest, chunk.first + chunk.written);
            len -= each;
        }
        if len > 0 {
            self.keep(Chunk { range: (0, len), ..chunk });
        } else {
            self.streams.truncate(chunk.first as usize);
        }
    }

    /// Adds the last streams, which lie as a layout says.
    fn add_strided(&mut self, mut chunk: Chunk<'a>, layout: &'a Layout) {
        let (len, n) = (layout.len(), chunk.written as usize);
        self.elements += len;
        chunk.layout = Some(layout);
        let each = strided::chunk(layout, n - 1);
        let mut start = 0;
        while len - start > each + each / 2 {
            let end = start + each;
            cut(&mut self.streams, n, |k| layout.position(in_layout(k), end) - origin(layout, in_layout(k), start));
            self.keep(Chunk { range: (start, end), ..chunk });
            (chunk.first, start) = (chunk.first + chunk.written, end);
        }
        self.keep(Chunk { range: (start, len), ..chunk });
    }

    /// Adds the last streams, which are kept in fewer bytes.
    fn add_compact(
        &mut self,
        first: usize,
        (grad, layout): (Slice<'a>, Option<&'a Layout>),
        compact: &'a Compact,
        grad_factor: f64,
    ) -> Result<(), Refused> {
        let written = &self.streams[first..];
        let mut len = compact::elements(&grad, layout)?;
        if self.bodies.states != Some(compact.states.len()) {
            return Err(Refused::States);
        }
        compact::check(written, (&grad, len), compact)?;
        let body = self.bodies.next(len).ok_or(Refused::States)?;
        let n = written.len();
        let mut chunk = Chunk {
            grad,
            layout,
            range: (0, len),
            grad_factor,
            first: first as u32,
            written: n as u32,
            body,
            rows: None,
            compact: Some(compact),
            types: None,
        };
        self.elements += len;
        let each = if self.elements <= MEDIUM { SMALL_CHUNK } else { CHUNK };
        while len > each + each / 2 {
            cut(&mut self.streams, n, |k| compact.len_of(k, each));
            // one that lies otherwise is never cut
            let (grad, rest) = if layout.is_some() { (grad, grad) } else { chunk.grad.split_at(each) };
            let start = chunk.range.0;
            self.keep(Chunk { grad, range: (start, start + each), ..chunk });
            (chunk.grad, chunk.first) = (rest, chunk.first + chunk.written);
            chunk.range.0 += each;
            len -= each;
        }
        if len > 0 {
            self.keep(chunk);
        } else {
            self.streams.truncate(chunk.first as usize);
        }
        Ok(())
    }

    /// Adds rows of the last streams, from the `first` on.
    fn add_rows(
        &mut self,
        first: usize,
        grad: Slice<'a>,
        named: SparseRows<'a>,
        grad_factor: f64,
    ) -> Result<(), Refused> {
        let mut chunk = self.chunk(first, grad, grad_factor)?;
        named.check(&self.streams[first..], &grad)?;
        chunk.body = self.bodies.next(self.streams[first].len()).ok_or(Refused::States)?;
        let n = self.streams.len() - first;
        let SparseRows { rows, width, .. } = named;
        if width > 0 {
            self.elements += rows.len() * width;
            let (place, sums) = self.rows.add(&named);
            let each = (ROWS_CHUNK / width).max(1);
            let mut start = 0; // the row that the rest begins with
            for (i, part) in rows.chunks(each).enumerate() {
                let (base, end) = (part[0] as usize, part[part.len() - 1] as usize + 1);
                skip(&mut self.streams[chunk.first as usize..], (base - start) * width);
                cut(&mut self.streams, n, |_| (end - base) * width);
                let places = (place + i * each, place + i * each + part.len());
                let rows = self.rows.add_chunk(Rows { places, base, width, sums });
                self.keep(Chunk { rows: Some(rows), range: (0, part.len() * width), ..chunk });
                (chunk.first, start) = (chunk.first + chunk.written, end);
            }
        }
        self.streams.truncate(chunk.first as usize);
        Ok(())
    }

    /// Adds a chunk to the list.
    #[inline(always)]
    fn keep(&mut self, chunk: Chunk<'a>) {
        let like = Likeness::of(&chunk, &self.bodies);
        match self.alike.last_mut() {
            Some(count) if like.is_some() && self.like == like => *count += 1,
            _ => self.alike.push(1),
        }
        self.like = like;
        self.chunks.push(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Serial;
    use crate::rule::{Precision, Rule, Scalars};
    use crate::rules::adagrad::{Adagrad, Constants as AdagradConstants};
    use crate::simd::Level;

    /// The ranges of the chunks of a step over one parameter with one state.
    fn ranges(sizes: &[usize], param: &[isize], state: &[isize]) -> Vec<(usize, usize)> {
        let strides: Vec<_> = param.iter().zip(state).flat_map(|(&p, &s)| [p, 0, s]).collect();
        let layout = Layout::new(sizes, &strides, &[0; 3]);
        let (mut p, grad) = (vec![0.0_f32; layout.extent(0).unwrap()], [1.0_f32]);
        let mut s = vec![0.0_f32; layout.extent(2).unwrap()];
        let rule = Adagrad { lr: 1.0, lr_decay: 0.0, weight_decay: 0.0, eps: 0.0 };
        let constants: AdagradConstants = rule.constants(&mut Scalars::new([0.0; 3], [Precision::F32; 3]), true);
        let mut step = Step::default();
        step.constants(Constants::Adagrad(constants));
        let states = [SliceMut::F32(&mut s)];
        let tensors = Tensors { param: SliceMut::F32(&mut p), grad: Slice::F32(&grad), states, layout: Some(&layout) };
        step.push(tensors, 1.0).unwrap();
        assert_eq!(step.elements(), layout.len());
        step.chunks.iter().map(|chunk| chunk.range).collect()
    }

    #[test]
    fn strided_tensors_are_cut_between_blocks() {
        let n = CHUNK;
        assert_eq!(ranges(&[n, 3], &[6, 2], &[3, 1]), [(0, n), (n, 2 * n), (2 * n, 3 * n)]);
        // rows of 1,000 that are laid out differently: no chunk ends within one
        let each = CHUNK / 1000 * 1000;
        assert_eq!(ranges(&[200, 10, 100], &[2000, 200, 2], &[1000, 1, 10])[..2], [(0, each), (each, 2 * each)]);
        assert_eq!(ranges(&[1000, 200], &[200, 1], &[1, 1000]), [(0, 200_000)]);
        assert_eq!(ranges(&[3, 0], &[1, 1], &[1, 1]), [(0, 0)]);
    }

    #[test]
    fn chunks_that_are_alike_are_run_together_and_others_apart() {
        let n = 70;
        let layout = Layout::new(&[n], &[1; 3], &[0; 3]);
        let rule = |lr| Adagrad { lr, lr_decay: 0.0, weight_decay: 0.0, eps: 1e-10 };
        let constants =
            |lr| Constants::Adagrad(rule(lr).constants(&mut Scalars::new([0.0; 3], [Precision::F32; 3]), true));
        let grad: Vec<f32> = (0..n).map(|i| 0.25 + i as f32).collect();
        let wide: Vec<f64> = grad.iter().map(|&g| g.into()).collect();
        // learning rate, factor on the gradient, float64, strided
        let plain = (0.5, 1.0, false, false);
        let items = [
            plain,
            plain,
            (0.5, -1.0, false, false),
            (0.5, 1.0, true, false),
            (0.5, 1.0, true, false),
            (0.5, 1.0, false, true),
            (0.5, 1.0, false, true),
            plain,
            (0.25, 1.0, false, false),
            (0.25, 1.0, false, false),
        ];
        let updated = |items: &[(f64, f64, bool, bool)]| {
            let (mut f32s, mut f64s) =
                (vec![vec![1.0_f32; 2 * n]; items.len()], vec![vec![1.0_f64; 2 * n]; items.len()]);
            let mut step = Step::default();
            let mut last = None;
            for ((&(lr, factor, double, strided), x), y) in items.iter().zip(&mut f32s).zip(&mut f64s) {
                if last != Some(lr) {
                    step.constants(constants(lr));
                    last = Some(lr);
                }
                let (x, y) = (x.split_at_mut(n), y.split_at_mut(n));
                let (param, grad, state) = if double {
                    (SliceMut::F64(y.0), Slice::F64(&wide), SliceMut::F64(y.1))
                } else {
                    (SliceMut::F32(x.0), Slice::F32(&grad), SliceMut::F32(x.1))
                };
                step.push(Tensors { param, grad, states: [state], layout: strided.then_some(&layout) }, factor)
                    .unwrap();
            }
            let alike = step.alike.clone();
            step.run(&Serial, Level::current()).unwrap();
            (alike, f32s, f64s)
        };
        let (alike, f32s, f64s) = updated(&items);
        assert_eq!(alike, [2, 1, 2, 1, 1, 1, 2]);
        for (k, item) in items.iter().enumerate() {
            let (_, f32_alone, f64_alone) = updated(&[*item]);
            assert_eq!((&f32s[k], &f64s[k]), (&f32_alone[0], &f64_alone[0]), "item {k}");
            assert!(f32s[k][0] != 1.0 || f64s[k][0] != 1.0);
        }
    }
}
