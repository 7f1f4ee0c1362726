//! How the elements of tensors lie in memory when not simply one after the other.

pub(crate) mod grid;

/// The streams of a step: parameter, gradient and up to three states.
pub const STREAMS: usize = 2 + crate::rule::MAX_STATES;

/// The positions of the elements of all streams of one parameter, walked in one common order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The size of each dimension, slowest first. No dimension is empty.
    sizes: Vec<usize>,
    /// Per dimension, each stream's distance in elements between neighbours.
    strides: Vec<[isize; STREAMS]>,
    /// Where in its slice each stream's first element lies.
    starts: [usize; STREAMS],
}

impl Layout {
    /// A layout of `sizes` whose streams have the given strides and start at the given places of their slices.
    ///
    /// Dimensions are walked with the parameter's largest stride slowest, or the gradient's where the first state is
    /// laid out as that is (SGD's buffer): then two streams are walked in their order, and one across it. Neighbours
    /// that every stream crosses evenly become one.
    ///
    /// # Panics
    /// If `sizes` and `strides` differ in length.
    pub fn new(sizes: &[usize], strides: &[[isize; STREAMS]], starts: [usize; STREAMS]) -> Self {
        assert_eq!(sizes.len(), strides.len());
        let mut order: Vec<usize> = (0..sizes.len()).filter(|&d| sizes[d] != 1).collect();
        let together = strides.iter().all(|stride| stride[1] == stride[2]) && strides.iter().any(|s| s[1] != 0);
        let leading = usize::from(together);
        order.sort_by_key(|&d| std::cmp::Reverse(strides[d][leading].unsigned_abs()));
        let mut layout = Self { sizes: Vec::new(), strides: Vec::new(), starts };
        for d in order {
            let (size, stride) = (sizes[d], strides[d]);
            match (layout.sizes.last_mut(), layout.strides.last_mut()) {
                (Some(outer), Some(outer_stride))
                    if (0..STREAMS).all(|s| outer_stride[s] == stride[s] * size as isize) =>
                {
                    *outer *= size;
                    *outer_stride = stride;
                }
                _ => {
                    layout.sizes.push(size);
                    layout.strides.push(stride);
                }
            }
        }
        layout
    }

    /// How many elements each stream has.
    pub fn len(&self) -> usize {
        self.sizes.iter().product()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The length that the slice of stream `s` must have at least; `None` if a position would be negative.
    pub fn extent(&self, s: usize) -> Option<usize> {
        if self.is_empty() {
            return Some(0);
        }
        let (mut low, mut high) = (self.starts[s] as isize, self.starts[s] as isize);
        for (&size, stride) in self.sizes.iter().zip(&self.strides) {
            let reach = stride[s].checked_mul(isize::try_from(size - 1).ok()?)?;
            if reach < 0 { low = low.checked_add(reach)? } else { high = high.checked_add(reach)? }
        }
        if low < 0 { None } else { usize::try_from(high).ok()?.checked_add(1) }
    }

    /// Where in its slice element `i`, in the order of walking, of stream `s` lies.
    pub(crate) fn position(&self, s: usize, mut i: usize) -> usize {
        let mut position = self.starts[s] as isize;
        for (&size, stride) in self.sizes.iter().zip(&self.strides).rev() {
            position += (i % size) as isize * stride[s];
            i /= size;
        }
        position as usize
    }

    /// The number of elements at whose multiples the order of walking can be cut, for slices to be cut there too: in
    /// the parameter and its `states`, whatever is walked before such a cut lies below whatever is walked after it.
    /// Where they are laid out differently, or backwards, that may be all of them.
    pub(crate) fn block(&self, states: usize) -> usize {
        let written = std::iter::once(0).chain(2..2 + states);
        let backwards = |s: usize| self.strides.iter().any(|stride| stride[s] < 0);
        let mut block = self.len();
        if written.clone().any(backwards) {
            return block;
        }
        for (d, &size) in self.sizes.iter().enumerate() {
            let inner = || self.sizes[d + 1..].iter().zip(&self.strides[d + 1..]);
            let steps_over = |s: usize| {
                self.strides[d][s] > inner().map(|(&size, stride)| (size as isize - 1) * stride[s]).sum::<isize>()
            };
            if size == 0 || !written.clone().all(steps_over) {
                break;
            }
            block /= size;
        }
        block
    }

    /// Calls `f(position in the order of walking, position in the slice)` for `count` elements of stream `s`, from
    /// the `first`-th on.
    #[inline(always)]
    pub(crate) fn walk(&self, s: usize, first: usize, count: usize, mut f: impl FnMut(usize, usize)) {
        let Some((&inner, outer)) = self.sizes.split_last() else {
            (0..count).for_each(|i| f(i, self.starts[s]));
            return;
        };
        let inner_stride = self.strides[outer.len()][s];
        let mut done = 0;
        while done < count {
            // the row that the next element lies in, and where that row starts
            let (mut row, column) = ((first + done) / inner, (first + done) % inner);
            let mut position = self.starts[s] as isize + column as isize * inner_stride;
            for (&size, stride) in outer.iter().zip(&self.strides).rev() {
                position += (row % size) as isize * stride[s];
                row /= size;
            }
            let run = (inner - column).min(count - done);
            for i in 0..run {
                f(done + i, (position + i as isize * inner_stride) as usize);
            }
            done += run;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(strides: &[isize]) -> Vec<[isize; STREAMS]> {
        strides.iter().map(|&stride| [stride; STREAMS]).collect()
    }

    fn positions(layout: &Layout, first: usize, count: usize) -> Vec<usize> {
        let mut seen = vec![usize::MAX; count];
        layout.walk(0, first, count, |i, position| seen[i] = position);
        seen
    }

    #[test]
    fn dense_dimensions_become_one() {
        let layout = Layout::new(&[2, 3, 4], &same(&[12, 4, 1]), [0; STREAMS]);
        assert_eq!((layout.sizes.as_slice(), layout.len(), layout.extent(0)), (&[24][..], 24, Some(24)));
        let transposed = Layout::new(&[4, 3, 2], &same(&[1, 4, 12]), [0; STREAMS]);
        assert_eq!(transposed, layout);
    }

    #[test]
    fn rows_with_gaps_are_walked_from_anywhere() {
        let layout = Layout::new(&[2, 3], &same(&[8, 2]), [1; STREAMS]);
        assert_eq!(positions(&layout, 0, 6), [1, 3, 5, 9, 11, 13]);
        assert_eq!(positions(&layout, 2, 3), [5, 9, 11]);
        assert_eq!(layout.extent(0), Some(14));
    }

    #[test]
    fn negative_strides_start_at_the_far_end() {
        let layout = Layout::new(&[3], &same(&[-2]), [4; STREAMS]);
        assert_eq!(positions(&layout, 0, 3), [4, 2, 0]);
        assert_eq!(layout.extent(0), Some(5));
        assert_eq!(Layout::new(&[3], &same(&[-2]), [3; STREAMS]).extent(0), None);
    }

    #[test]
    fn blocks_end_where_streams_do_not_interleave() {
        let block = |sizes: &[usize], strides: &[[isize; 2]]| {
            let strides: Vec<_> = strides.iter().map(|&[p, s]| [p, 0, s, s, s]).collect();
            Layout::new(sizes, &strides, [0; STREAMS]).block(1)
        };
        assert_eq!(block(&[4, 6], &[[20, 20], [2, 2]]), 1);
        assert_eq!(block(&[4, 6], &[[6, 1], [1, 4]]), 24, "one is the other, transposed");
        assert_eq!(block(&[4, 6, 5], &[[30, 30], [5, 1], [1, 6]]), 30, "transposed within rows");
        assert_eq!(block(&[4, 6], &[[20, 20], [2, -2]]), 24, "backwards");
        assert_eq!(block(&[4, 6], &[[3, 3], [2, 2]]), 24, "rows that interleave");
        assert_eq!(block(&[], &[]), 1);
    }

    #[test]
    fn nothing_and_a_single_element() {
        assert_eq!(Layout::new(&[3, 0], &same(&[1, 1]), [0; STREAMS]).extent(0), Some(0));
        let scalar = Layout::new(&[], &[], [2; STREAMS]);
        assert_eq!((positions(&scalar, 0, 1), scalar.extent(0)), (vec![2], Some(3)));
    }
}
