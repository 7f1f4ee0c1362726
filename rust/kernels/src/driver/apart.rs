//! Light rules on tensors whose elements lie apart: one element after the other, where they lie.
//!
//! Such a rule is a few multiply-adds. To gather its operands into tiles, and to scatter the results, would be the
//! larger part of the work.

use super::gather::Place;
use crate::arithmetic::Real;
use crate::formats::Element;
use crate::layout::Layout;
use crate::layout::grid::{Grid, SHORT_COLUMN, Tile};
use crate::rule::{Formula, States, Visitor};
use crate::rules::Constants;
use crate::simd::{Level, Simd, Vectorized};

/// A range of a parameter, its gradient and the one state that it may have.
pub(super) struct Apart<'c, P, G, S> {
    pub(super) layout: &'c Layout,
    pub(super) grid: Grid<'c>,
    pub(super) range: (usize, usize),
    pub(super) param: &'c mut [P],
    pub(super) grad: &'c [G],
    /// Empty: there is none.
    pub(super) state: &'c mut [S],
    /// Where each stream's memory begins in the slice that the layout speaks of.
    pub(super) origins: [usize; 3],
}

impl<P, G, S> Apart<'_, P, G, S>
where
    P: Element,
    G: Element<Arith = P::Arith>,
    S: Element<Arith = P::Arith>,
{
    /// Whether elements may be walked one by one. Half types are converted many at a time; cache lines that long rows
    /// cross have gone when the next row wants them again; and what two of three streams cross is better gathered.
    pub(super) fn serves(&self) -> bool {
        let Grid { row, column, rows, columns, crossed, .. } = self.grid;
        let streams = if self.state.is_empty() { 2 } else { 3 };
        let forward = (0..streams).all(|s| column[s] > 0);
        let crossing = (0..streams).filter(|&s| row[s].unsigned_abs() < column[s].unsigned_abs()).count();
        let near = !crossed || (crossing < 2 && rows < SHORT_COLUMN) || columns <= SHORT_COLUMN;
        forward && near && !P::HALF && !G::HALF && !S::HALF
    }

    /// Updates the range, if the rule is light.
    pub(super) fn update(&mut self, constants: &Constants, level: Level, factor: f64) -> bool {
        constants.visit_light(Run { range: self, level, factor })
    }

    #[inline(always)]
    fn place(&self, s: usize, tile: Tile) -> Place {
        let first = self.layout.position(s, tile.first) - self.origins[s];
        Place { first, row: self.grid.row[s], column: self.grid.column[s] }
    }
}

struct Run<'r, 'c, P, G, S> {
    range: &'r mut Apart<'c, P, G, S>,
    level: Level,
    factor: f64,
}

impl<P, G, S> Visitor for Run<'_, '_, P, G, S>
where
    P: Element,
    G: Element<Arith = P::Arith>,
    S: Element<Arith = P::Arith>,
{
    #[inline(always)]
    fn visit<F: Formula>(self, formula: F) {
        self.level.run(OneByOne { formula, range: self.range, factor: self.factor });
    }
}

struct OneByOne<'r, 'c, F, P, G, S> {
    formula: F,
    range: &'r mut Apart<'c, P, G, S>,
    factor: f64,
}

impl<F, P, G, S> Vectorized for OneByOne<'_, '_, F, P, G, S>
where
    F: Formula,
    P: Element,
    G: Element<Arith = P::Arith>,
    S: Element<Arith = P::Arith>,
{
    #[inline(always)]
    fn run(self, _: impl Simd) {
        const { assert!(F::STATES <= 1) };
        let Self { formula, range, factor } = self;
        let update = formula.formula::<P::Arith>();
        let factor = P::Arith::of(factor);
        for tile in range.grid.tiles(range.range, usize::MAX) {
            let (p, g) = (range.place(0, tile), range.place(1, tile));
            let s = if F::STATES == 0 { Place::default() } else { range.place(2, tile) };
            for row in 0..tile.rows {
                let line = |place: Place| place.at(row, 0)..=place.at(row, tile.columns - 1);
                let (param, grad) = (&mut range.param[line(p)], &range.grad[line(g)]);
                let strides = [p.column as usize, g.column as usize, s.column as usize];
                if F::STATES == 0 {
                    walk0(&update, factor, param, grad, strides);
                } else {
                    walk1(&update, factor, param, grad, &mut range.state[line(s)], strides);
                }
            }
        }
    }
}

/// A row of a parameter and its gradient. The slices are arguments because the compiler then knows that they do not
/// overlap.
#[inline(always)]
fn walk0<P, G, A>(
    update: &impl Fn(A, A, States<A>) -> (A, States<A>),
    factor: A,
    param: &mut [P],
    grad: &[G],
    [p, g, _]: [usize; 3],
) where
    P: Element<Arith = A>,
    G: Element<Arith = A>,
    A: Real,
{
    let (mut i, mut j) = (0, 0);
    while i < param.len() && j < grad.len() {
        let (theta, _) = update(param[i].load(), factor * grad[j].load(), [A::ZERO; _]);
        param[i] = P::store(theta);
        (i, j) = (i + p, j + g);
    }
}

/// A row of a parameter, its gradient and its state.
#[inline(always)]
fn walk1<P, G, S, A>(
    update: &impl Fn(A, A, States<A>) -> (A, States<A>),
    factor: A,
    param: &mut [P],
    grad: &[G],
    state: &mut [S],
    [p, g, s]: [usize; 3],
) where
    P: Element<Arith = A>,
    G: Element<Arith = A>,
    S: Element<Arith = A>,
    A: Real,
{
    let (mut i, mut j, mut k) = (0, 0, 0);
    while i < param.len() && j < grad.len() && k < state.len() {
        let mut states = [A::ZERO; _];
        states[0] = state[k].load();
        let (theta, states) = update(param[i].load(), factor * grad[j].load(), states);
        (param[i], state[k]) = (P::store(theta), S::store(states[0]));
        (i, j, k) = (i + p, j + g, k + s);
    }
}
