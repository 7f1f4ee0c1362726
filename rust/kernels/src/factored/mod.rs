//! Steps that look at whole tensors before they move them (Adafactor): sums, then means of rows and columns, then the
//! update's own size, then the update.
//!
//! Nothing of a tensor's size is kept between these sweeps: what a sweep needs of the one before is a number, or two
//! states. How tensors are cut depends on their shapes alone, and partial sums are added in the order of the cuts, so
//! the bits depend on neither threads nor SIMD level.
//!
//! - A *piece* is a parameter of up to [`PIECE`] elements, or so many of a long vector or of a batch of small matrices.
//!   A whole parameter in one piece is done in one go: the later sweeps find it in the cache.
//! - A larger *matrix* is cut twice: into *tiles*, whose rows and columns are summed apart, and into *strips*, which
//!   lie in memory one after the other and can be handed out to be written.

mod narrow;
mod sweeps;

use crate::chunks::recycled;
use crate::formats::{Refused, Slice, SliceMut, Storage, bf16, f16};
use crate::pool::{Panic, Pool, for_each};
use crate::rules::adafactor;
use crate::simd::Level;
use sweeps::{
    MatrixMeans, MatrixUpdate, MoveMeans, Squares, StripUpdate, TileSums, TileUpdates, VectorMeans, VectorUpdate,
};

/// Elements of a piece or strip; a matrix with more is cut into tiles.
const PIECE: usize = 64 * 1024;
/// Rows of a tile, at least: its sums of columns are 8 bytes for so many elements.
const TILE_ROWS: usize = 128;
/// Columns of a tile, at most: their sums stay in the first-level cache.
const TILE_COLS: usize = 4096;

/// Calls `$then!(P, S)` for the storage types of gradient (and parameter) and states that match.
macro_rules! match_types {
    ($grad:expr, $state:expr, $then:ident) => {
        match ($grad, $state) {
            (Slice::F64(_), SliceMut::F64(_)) => $then!(f64, f64),
            (Slice::F32(_), SliceMut::F32(_)) => $then!(f32, f32),
            (Slice::F16(_), SliceMut::F16(_)) => $then!(f16, f16),
            (Slice::F16(_), SliceMut::F32(_)) => $then!(f16, f32),
            (Slice::Bf16(_), SliceMut::Bf16(_)) => $then!(bf16, bf16),
            (Slice::Bf16(_), SliceMut::F32(_)) => $then!(bf16, f32),
            _ => None,
        }
    };
}

/// What the sweeps over one parameter found.
#[derive(Clone, Copy, Debug)]
struct Whole {
    constants: adafactor::Constants,
    grad_factor: f64,
    len: usize,
    /// The sum of squares of the parameter before the step.
    squares: f64,
    /// The sum of squares of its update.
    updates: f64,
}

impl Whole {
    fn scale(&self) -> f64 {
        self.constants.scale(self.squares, self.updates, self.len)
    }
}

#[derive(Debug)]
struct Piece<'a> {
    whole: u32,
    /// Whether it is all of its parameter.
    alone: bool,
    theta: SliceMut<'a>,
    grad: Slice<'a>,
    /// `variance` alone for a vector, else `row_var` and `col_var`.
    states: [SliceMut<'a>; 2],
    /// Rows and columns of each matrix.
    shape: Option<(usize, usize)>,
    /// Of the rows and columns of one matrix.
    sums: Vec<f64>,
    squares: f64,
    updates: f64,
}

#[derive(Debug)]
struct Matrix<'a> {
    whole: u32,
    rows: usize,
    cols: usize,
    grad: Slice<'a>,
    row_var: SliceMut<'a>,
    col_var: SliceMut<'a>,
    /// Of `row_var`.
    mean: f64,
    /// Its tiles and strips: from, to.
    tiles: (usize, usize),
    strips: (usize, usize),
}

#[derive(Debug)]
struct Tile {
    matrix: u32,
    rows: (usize, usize),
    cols: (usize, usize),
    /// Of its rows, then of its columns.
    sums: Vec<f64>,
    squares: f64,
    updates: f64,
}

#[derive(Debug)]
struct Strip<'a> {
    matrix: u32,
    /// Place of the first element in the matrix.
    start: usize,
    theta: SliceMut<'a>,
}

/// The part of a step that takes parameters whole.
#[derive(Debug, Default)]
pub(crate) struct Factored<'a> {
    wholes: Vec<Whole>,
    pieces: Vec<Piece<'a>>,
    matrices: Vec<Matrix<'a>>,
    tiles: Vec<Tile>,
    strips: Vec<Strip<'a>>,
    /// Memory of earlier steps, for pieces and for tiles.
    spare: [Vec<Vec<f64>>; 2],
}

impl<'a> Factored<'a> {
    /// Adds one contiguous parameter, with `variance` alone if it is a vector, else with `row_var` and `col_var`.
    ///
    /// # Errors
    /// If the tensors do not fit together or their types are not served; nothing was added.
    pub(crate) fn push(
        &mut self,
        constants: adafactor::Constants,
        (param, grad): (SliceMut<'a>, Slice<'a>),
        states: (SliceMut<'a>, Option<SliceMut<'a>>),
        shape: Option<(usize, usize)>,
        grad_factor: f64,
    ) -> Result<(), Refused> {
        let (first, second) = states;
        if second.is_some() != shape.is_some() {
            return Err(Refused::States);
        }
        macro_rules! known {
            ($p:ty, $s:ty) => {
                <$p>::shared(&param).map(drop)
            };
        }
        if match_types!(&grad, &first, known).is_none() || second.as_ref().is_some_and(|x| x.format() != first.format())
        {
            return Err(Refused::Types);
        }
        let second = second.unwrap_or_default();
        let len = param.len();
        let fits = match shape {
            None => first.len() == len,
            Some((rows, cols)) => match rows.checked_mul(cols) {
                None => false,
                Some(0) => len == 0,
                Some(each) => len % each == 0 && first.len() == len / cols && second.len() == len / rows,
            },
        };
        if grad.len() != len || !fits {
            return Err(Refused::Lengths);
        }
        if len > 0 {
            self.wholes.push(Whole { constants, grad_factor, len, squares: 0.0, updates: 0.0 });
            self.cut(param, grad, [first, second], shape);
        }
        Ok(())
    }

    /// Cuts a parameter into pieces, or each matrix of it into tiles and strips.
    fn cut(
        &mut self,
        mut theta: SliceMut<'a>,
        mut grad: Slice<'a>,
        mut states: [SliceMut<'a>; 2],
        shape: Option<(usize, usize)>,
    ) {
        let whole = self.wholes.len() as u32 - 1;
        let matrix = shape.map_or(1, |(rows, cols)| rows * cols);
        let len = if matrix > PIECE { matrix } else { PIECE / matrix * matrix };
        let alone = theta.len() <= len && matrix <= PIECE;
        while !theta.is_empty() {
            let n = len.min(theta.len());
            let of_states = shape.map_or([n, 0], |(rows, cols)| [n / cols, n / rows]);
            let (this_theta, this_grad, [first, second]);
            let [first_rest, second_rest] = states;
            (this_theta, theta) = theta.split_at(n);
            (this_grad, grad) = grad.split_at(n);
            let ((this_first, first_rest), (this_second, second_rest)) =
                (first_rest.split_at(of_states[0]), second_rest.split_at(of_states[1]));
            [first, second] = [this_first, this_second];
            states = [first_rest, second_rest];
            match shape {
                Some(shape) if matrix > PIECE => self.cut_matrix(whole, this_theta, this_grad, first, second, shape),
                _ => self.pieces.push(Piece {
                    whole,
                    alone,
                    theta: this_theta,
                    grad: this_grad,
                    states: [first, second],
                    shape,
                    sums: self.spare[0].pop().unwrap_or_default(),
                    squares: 0.0,
                    updates: 0.0,
                }),
            }
        }
    }

    fn cut_matrix(
        &mut self,
        whole: u32,
        mut theta: SliceMut<'a>,
        grad: Slice<'a>,
        row_var: SliceMut<'a>,
        col_var: SliceMut<'a>,
        (rows, cols): (usize, usize),
    ) {
        let matrix = self.matrices.len() as u32;
        let first_tile = self.tiles.len();
        let tile_cols = cols.min(TILE_COLS);
        let tile_rows = TILE_ROWS.max(PIECE / tile_cols);
        for row in (0..rows).step_by(tile_rows) {
            for col in (0..cols).step_by(tile_cols) {
                self.tiles.push(Tile {
                    matrix,
                    rows: (row, rows.min(row + tile_rows)),
                    cols: (col, cols.min(col + tile_cols)),
                    sums: self.spare[1].pop().unwrap_or_default(),
                    squares: 0.0,
                    updates: 0.0,
                });
            }
        }
        let tiles = (first_tile, self.tiles.len());
        // whole rows where there is room for one
        let strip_len = if cols > PIECE { PIECE } else { PIECE / cols * cols };
        let strips = (self.strips.len(), self.strips.len() + theta.len().div_ceil(strip_len));
        self.matrices.push(Matrix { whole, rows, cols, grad, row_var, col_var, mean: 0.0, tiles, strips });
        let mut start = 0;
        while !theta.is_empty() {
            let n = strip_len.min(theta.len());
            let strip;
            (strip, theta) = theta.split_at(n);
            self.strips.push(Strip { matrix, start, theta: strip });
            start += n;
        }
    }

    /// Updates every tensor.
    pub(crate) fn run(&mut self, pool: &dyn Pool, level: Level) -> Result<(), Panic> {
        let Self { wholes, pieces, matrices, tiles, strips, spare: _ } = self;
        // a fixed share stands for what it costs to take one up
        let of_piece = |piece: &Piece<'_>| piece.theta.len() + 64;
        let of_tile = |tile: &Tile| (tile.rows.1 - tile.rows.0) * (tile.cols.1 - tile.cols.0);
        let of_strip = |strip: &Strip<'_>| strip.theta.len();

        for_each(pool, pieces, of_piece, |_, piece| {
            let mut whole = wholes[piece.whole as usize];
            piece.measure(&whole, level);
            if piece.alone {
                (whole.squares, whole.updates) = (piece.squares, piece.updates);
                piece.update(&whole, level);
            }
        })?;
        for_each(pool, tiles, of_tile, |i, tile| {
            let matrix = &matrices[tile.matrix as usize];
            tile.add_up(&wholes[matrix.whole as usize], matrix, level);
            // each tile of a matrix also sums theta's squares over some of its strips
            let strips = &strips[matrix.strips.0..matrix.strips.1];
            let of_tile = strips.iter().skip(i - matrix.tiles.0).step_by(matrix.tiles.1 - matrix.tiles.0);
            tile.squares = of_tile.map(|strip| strip.squares(level)).sum();
        })?;
        for matrix in &mut *matrices {
            matrix.move_means(&wholes[matrix.whole as usize], &mut tiles[matrix.tiles.0..matrix.tiles.1], level);
        }
        for_each(pool, tiles, of_tile, |_, tile| {
            let matrix = &matrices[tile.matrix as usize];
            tile.measure(&wholes[matrix.whole as usize], matrix, level);
        })?;

        for piece in &*pieces {
            let whole = &mut wholes[piece.whole as usize];
            (whole.squares, whole.updates) = (whole.squares + piece.squares, whole.updates + piece.updates);
        }
        for tile in &*tiles {
            let whole = &mut wholes[matrices[tile.matrix as usize].whole as usize];
            (whole.squares, whole.updates) = (whole.squares + tile.squares, whole.updates + tile.updates);
        }

        if pieces.iter().any(|piece| !piece.alone) {
            for_each(pool, pieces, of_piece, |_, piece| {
                if !piece.alone {
                    piece.update(&wholes[piece.whole as usize], level);
                }
            })?;
        }
        for_each(pool, strips, of_strip, |_, strip| {
            let matrix = &matrices[strip.matrix as usize];
            strip.update(&wholes[matrix.whole as usize], matrix, level);
        })
    }

    /// Empties it, keeping its memory.
    pub(crate) fn clear(&mut self) {
        // last first, so that what takes from the end gets what it had
        self.spare[0].extend(self.pieces.drain(..).rev().map(|piece| piece.sums));
        self.spare[1].extend(self.tiles.drain(..).rev().map(|tile| tile.sums));
        self.wholes.clear();
        self.matrices.clear();
        self.strips.clear();
    }

    /// Empties it, keeping its memory for tensors of any lifetime.
    pub(crate) fn recycle<'b>(mut self) -> Factored<'b> {
        self.clear();
        Factored {
            wholes: self.wholes,
            pieces: recycled(self.pieces),
            matrices: recycled(self.matrices),
            tiles: self.tiles,
            strips: recycled(self.strips),
            spare: self.spare,
        }
    }
}

// Types were checked when the tensors were pushed, so that each `?` below finds what it asks for.

impl Piece<'_> {
    /// Moves the states and sums squares.
    fn measure(&mut self, whole: &Whole, level: Level) {
        let Self { theta, grad, states: [first, second], shape, sums, squares, updates, .. } = self;
        (*squares, *updates) = (0.0, 0.0);
        macro_rules! measure {
            ($p:ty, $s:ty) => {
                || -> Option<()> {
                    let (x, grad) = (<$p>::shared(theta)?, <$p>::slice(grad)?);
                    level.run(Squares { x, sum: squares });
                    let rounded = whole.constants.round(whole.grad_factor);
                    let Some((rows, cols)) = *shape else {
                        let variance = <$s>::slice_mut(first)?;
                        level.run(VectorMeans { rounded, grad, variance, updates });
                        return Some(());
                    };
                    sums.resize(rows + cols, 0.0);
                    let (row_var, col_var) = (<$s>::slice_mut(first)?, <$s>::slice_mut(second)?);
                    level.run(MatrixMeans { rounded, cols, rows, grad, row_var, col_var, sums, updates });
                    Some(())
                }()
            };
        }
        let done = match_types!(&*grad, &*first, measure);
        debug_assert!(done.is_some());
    }

    /// Moves theta.
    fn update(&mut self, whole: &Whole, level: Level) {
        let Self { theta, grad, states: [first, second], shape, .. } = self;
        let scale = whole.scale();
        macro_rules! update {
            ($p:ty, $s:ty) => {
                || -> Option<()> {
                    let (theta, grad) = (<$p>::slice_mut(theta)?, <$p>::slice(grad)?);
                    let rounded = whole.constants.round(whole.grad_factor);
                    let Some((rows, cols)) = *shape else {
                        let variance = <$s>::shared(first)?;
                        level.run(VectorUpdate { rounded, scale, theta, grad, variance });
                        return Some(());
                    };
                    let (row_var, col_var) = (<$s>::shared(first)?, <$s>::shared(second)?);
                    level.run(MatrixUpdate { rounded, scale, cols, rows, theta, grad, row_var, col_var });
                    Some(())
                }()
            };
        }
        let done = match_types!(&*grad, &*first, update);
        debug_assert!(done.is_some());
    }
}

impl Matrix<'_> {
    /// Moves the means of rows and columns towards those that the tiles have found.
    fn move_means(&mut self, whole: &Whole, tiles: &mut [Tile], level: Level) {
        let Self { rows, cols, grad, row_var, col_var, mean, .. } = self;
        // tiles lie in bands of equal rows; all sums are gathered in those of the first band and column
        let bands = cols.div_ceil(TILE_COLS);
        for band in tiles.chunks_mut(bands) {
            let (left, others) = band.split_at_mut(1);
            let n = left[0].height();
            others.iter().for_each(|tile| add(&mut left[0].sums[..n], &tile.sums[..n]));
        }
        let (top, others) = tiles.split_at_mut(bands);
        for (k, tile) in others.iter().enumerate() {
            let into = &mut top[k % bands];
            let n = into.height();
            add(&mut into.sums[n..], &tile.sums[tile.height()..]);
        }
        macro_rules! move_means {
            ($p:ty, $s:ty) => {
                || -> Option<()> {
                    let (row_var, col_var) = (<$s>::slice_mut(row_var)?, <$s>::slice_mut(col_var)?);
                    let weight = whole.constants.round(whole.grad_factor).weight;
                    for left in tiles.iter().step_by(bands) {
                        let means = &mut row_var[left.rows.0..left.rows.1];
                        level.run(MoveMeans { weight, n: *cols, means, sums: &left.sums });
                    }
                    for top in &tiles[..bands] {
                        let means = &mut col_var[top.cols.0..top.cols.1];
                        level.run(MoveMeans { weight, n: *rows, means, sums: &top.sums[top.height()..] });
                    }
                    *mean = sweeps::mean(row_var);
                    Some(())
                }()
            };
        }
        let done = match_types!(&*grad, &*row_var, move_means);
        debug_assert!(done.is_some());
    }
}

fn add(sums: &mut [f64], others: &[f64]) {
    sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
}

impl Tile {
    fn height(&self) -> usize {
        self.rows.1 - self.rows.0
    }

    /// Its part of the matrix, with what lies between its rows.
    fn part<'g, T>(&self, grad: &'g [T], stride: usize) -> &'g [T] {
        &grad[self.rows.0 * stride + self.cols.0..(self.rows.1 - 1) * stride + self.cols.1]
    }

    /// Sums the squares of rows and columns.
    fn add_up(&mut self, whole: &Whole, matrix: &Matrix<'_>, level: Level) {
        let height = self.height();
        let mut sums = std::mem::take(&mut self.sums);
        sums.resize(height + self.cols.1 - self.cols.0, 0.0);
        let (row_sums, column_sums) = sums.split_at_mut(height);
        macro_rules! add_up {
            ($p:ty, $s:ty) => {
                <$p>::slice(&matrix.grad).map(|grad| {
                    let (grad, stride) = (self.part(grad, matrix.cols), matrix.cols);
                    let factor = whole.constants.round(whole.grad_factor).factor;
                    level.run(TileSums { factor, grad, stride, row_sums, column_sums });
                })
            };
        }
        let done = match_types!(&matrix.grad, &matrix.row_var, add_up);
        debug_assert!(done.is_some());
        self.sums = sums;
    }

    /// Sums the squares of the update.
    fn measure(&mut self, whole: &Whole, matrix: &Matrix<'_>, level: Level) {
        let mut updates = 0.0;
        macro_rules! measure {
            ($p:ty, $s:ty) => {
                || -> Option<()> {
                    level.run(TileUpdates {
                        rounded: whole.constants.round(whole.grad_factor),
                        mean: matrix.mean,
                        grad: self.part(<$p>::slice(&matrix.grad)?, matrix.cols),
                        stride: matrix.cols,
                        row_var: &<$s>::shared(&matrix.row_var)?[self.rows.0..self.rows.1],
                        col_var: &<$s>::shared(&matrix.col_var)?[self.cols.0..self.cols.1],
                        updates: &mut updates,
                    });
                    Some(())
                }()
            };
        }
        let done = match_types!(&matrix.grad, &matrix.row_var, measure);
        debug_assert!(done.is_some());
        self.updates = updates;
    }
}

impl Strip<'_> {
    /// The sum of squares of theta.
    fn squares(&self, level: Level) -> f64 {
        let mut squares = 0.0;
        let sum = &mut squares;
        match &self.theta {
            SliceMut::F64(x) => level.run(Squares { x, sum }),
            SliceMut::F32(x) => level.run(Squares { x, sum }),
            SliceMut::F16(x) => level.run(Squares { x, sum }),
            SliceMut::Bf16(x) => level.run(Squares { x, sum }),
            SliceMut::U8(_) | SliceMut::I16(_) => unreachable!("refused when pushed"),
        }
        squares
    }

    /// Moves theta.
    fn update(&mut self, whole: &Whole, matrix: &Matrix<'_>, level: Level) {
        let Self { theta, start, .. } = self;
        macro_rules! update {
            ($p:ty, $s:ty) => {
                || -> Option<()> {
                    let (theta, start) = (<$p>::slice_mut(theta)?, *start);
                    level.run(StripUpdate {
                        rounded: whole.constants.round(whole.grad_factor),
                        scale: whole.scale(),
                        mean: matrix.mean,
                        start,
                        grad: &<$p>::slice(&matrix.grad)?[start..start + theta.len()],
                        row_var: <$s>::shared(&matrix.row_var)?,
                        col_var: <$s>::shared(&matrix.col_var)?,
                        theta,
                    });
                    Some(())
                }()
            };
        }
        let done = match_types!(&matrix.grad, &matrix.row_var, update);
        debug_assert!(done.is_some());
    }
}
