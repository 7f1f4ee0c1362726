//! How a step is filled: tensors are checked, cut into chunks, and noted.

use super::alike::Likeness;
use super::chunk::{Chunk, Place};
use super::rows::{ROWS_CHUNK, Rows, SparseRows};
use super::step::Step;
use super::strided;
use super::tensors::Tensors;
use crate::chunks::{CHUNK, MEDIUM, SMALL_CHUNK};
use crate::formats::{Refused, SliceMut};
use crate::rules::Constants;

impl<'a> Step<'a> {
    /// Adds one parameter, to be updated with the constants registered last.
    ///
    /// # Errors
    /// If the tensors do not fit together or their types are not served; nothing was added.
    #[inline]
    pub fn push(&mut self, tensors: Tensors<'a>, grad_factor: f64) -> Result<(), Refused> {
        let constants = self.constants.len().checked_sub(1).ok_or(Refused::States)?;
        let states = self.states;
        tensors.check_kinds(states)?;
        tensors.check_lengths(states)?;
        let chunk = |tensors, range| Chunk { tensors, constants: constants as u32, range, rows: None, grad_factor };
        if let Some(layout) = tensors.layout {
            let len = layout.len();
            self.elements += len;
            let each = strided::chunk(layout, states);
            let (mut rest, mut start) = (tensors, 0);
            while len - start > each + each / 2 {
                let (first, tail) = rest.cut(layout, start, start + each);
                self.add(chunk(first, (start, start + each)), None);
                (rest, start) = (tail, start + each);
            }
            self.add(chunk(rest, (start, len)), None);
            return Ok(());
        }
        self.elements += tensors.param.len();
        let like = Some(Likeness::of(&tensors, constants, grad_factor));
        let mut rest = tensors;
        let each = if self.elements <= MEDIUM { SMALL_CHUNK } else { CHUNK };
        while rest.param.len() > each + each / 2 {
            let (first, tail) = rest.split_at(each, each);
            self.add(chunk(first, (0, each)), like);
            rest = tail;
        }
        let len = rest.param.len();
        if len > 0 {
            self.add(chunk(rest, (0, len)), like);
        }
        Ok(())
    }

    /// Adds the rows of one parameter that a sparse gradient names, to be updated with the constants registered last.
    ///
    /// Parameter and states are flat, in rows of `width` elements; so is the gradient, which holds rows named by
    /// `named`.
    ///
    /// # Errors
    /// If the tensors or rows do not fit together, or their types are not served; nothing was added.
    pub fn push_rows(&mut self, tensors: Tensors<'a>, named: SparseRows<'a>, grad_factor: f64) -> Result<(), Refused> {
        let constants = self.constants.len().checked_sub(1).ok_or(Refused::States)?;
        tensors.check_kinds(self.states)?;
        named.check(&tensors, self.states)?;
        let SparseRows { rows, width, .. } = named;
        if width == 0 {
            return Ok(()); // rows of nothing
        }
        self.elements += rows.len() * width;
        let (first, sums) = self.rows.add(&named);
        let each = (ROWS_CHUNK / width).max(1);
        let grad = tensors.grad;
        let (mut rest, mut start) = (tensors, 0); // the row that the rest begins with
        for (i, part) in rows.chunks(each).enumerate() {
            let (base, end) = (part[0] as usize, part[part.len() - 1] as usize + 1);
            let (_, from_base) = rest.split_at((base - start) * width, 0);
            let (tensors, tail) = from_base.split_at((end - base) * width, 0);
            let places = (first + i * each, first + i * each + part.len());
            let rows = Some(Rows { places, base, width, sums });
            let (tensors, range) = (Tensors { grad, ..tensors }, (0, part.len() * width));
            self.chunks.push(Chunk { tensors, constants: constants as u32, range, rows, grad_factor });
            self.places.push(Place::NOWHERE);
            self.note(None);
            (rest, start) = (tail, end);
        }
        Ok(())
    }

    /// Adds one contiguous parameter whose rule looks at it whole, to be updated with the constants registered last.
    ///
    /// `shape` is the number of rows and columns of a matrix, or of each matrix in a batch, whose states are `row_var`
    /// and `col_var`; `None` stands for a vector or a single number, whose state is `variance`.
    ///
    /// # Errors
    /// If the tensors do not fit together, their types are not served, or the rule is of another kind; nothing was
    /// added.
    pub fn push_factored(
        &mut self,
        tensors: Tensors<'a>,
        shape: Option<(usize, usize)>,
        grad_factor: f64,
    ) -> Result<(), Refused> {
        let Some(&Constants::Adafactor(constants)) = self.constants.last() else { return Err(Refused::States) };
        let Tensors { param, grad, states: [first, second, third], layout } = tensors;
        if !matches!(third, SliceMut::Absent) {
            return Err(Refused::States);
        }
        if layout.is_some() {
            return Err(Refused::Lengths);
        }
        let len = param.len();
        self.factored.push(constants, (param, grad), [first, second], shape, grad_factor)?;
        self.elements += len;
        Ok(())
    }

    #[inline]
    fn add(&mut self, chunk: Chunk<'a>, like: Option<Likeness>) {
        self.places.push(Place::of(&chunk.tensors));
        self.note(like);
        self.chunks.push(chunk);
    }

    /// Notes what the next chunk has in common with others; `None`: nothing.
    #[inline]
    fn note(&mut self, like: Option<Likeness>) {
        match self.alike.last_mut() {
            Some(count) if like.is_some() && self.like == like => *count += 1,
            _ => self.alike.push(1),
        }
        self.like = like;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Slice;
    use crate::layout::{Layout, STREAMS};
    use crate::pool::Serial;
    use crate::rule::{Precision, Rule, Scalars};
    use crate::rules::adagrad::{Adagrad, Constants as AdagradConstants};
    use crate::simd::Level;

    /// The ranges of the chunks of a step over one parameter with one state.
    fn ranges(sizes: &[usize], param: &[isize], state: &[isize]) -> Vec<(usize, usize)> {
        let strides: Vec<_> = param.iter().zip(state).map(|(&p, &s)| [p, 0, s, 0, 0]).collect();
        let layout = Layout::new(sizes, &strides, [0; STREAMS]);
        let (mut p, grad) = (vec![0.0_f32; layout.extent(0).unwrap()], [1.0_f32]);
        let mut s = vec![0.0_f32; layout.extent(2).unwrap()];
        let rule = Adagrad { lr: 1.0, lr_decay: 0.0, weight_decay: 0.0, eps: 0.0 };
        let constants: AdagradConstants = rule.constants(&mut Scalars::new([0.0; 3], [Precision::F32; 3]), true);
        let mut step = Step::default();
        step.constants(Constants::Adagrad(constants));
        let states = [SliceMut::F32(&mut s), SliceMut::Absent, SliceMut::Absent];
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
        let layout = Layout::new(&[n], &[[1, 1, 1, 0, 0]], [0; STREAMS]);
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
                let states = [state, SliceMut::Absent, SliceMut::Absent];
                step.push(Tensors { param, grad, states, layout: strided.then_some(&layout) }, factor).unwrap();
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
