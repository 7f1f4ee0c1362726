//! How the elements of tensors lie in memory when not simply one after the other.

pub(crate) mod grid;

/// The positions of the elements of all streams of one parameter, walked in one common order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The size of each dimension, slowest first. There is at least one, and none is empty.
    sizes: Vec<usize>,
    /// Dimension by dimension, each stream's distance in elements between neighbours.
    strides: Vec<isize>,
    /// Where in its slice each stream's first element lies.
    starts: Vec<usize>,
}

impl Layout {
    /// A layout of `sizes` whose streams start at the given places of their slices, and have the given strides: those
    /// of all streams in one dimension after those in another.
    ///
    /// Dimensions are walked with the parameter's largest stride slowest, or the gradient's where the first state is
    /// laid out as that is (SGD's buffer): then two streams are walked in their order, and one across it. Neighbours
    /// that every stream crosses evenly become one.
    ///
    /// # Panics
    /// If there is no stream, or not one stride for each dimension of each.
    pub fn new(sizes: &[usize], strides: &[isize], starts: &[usize]) -> Self {
        let streams = starts.len();
        assert!(streams > 0 && strides.len() == sizes.len() * streams, "not a stride for each dimension and stream");
        let of = |d: usize| &strides[d * streams..][..streams];
        let mut order: Vec<usize> = (0..sizes.len()).filter(|&d| sizes[d] != 1).collect();
        let together = streams > 2 && {
            let mut dims = (0..sizes.len()).map(of);
            dims.clone().all(|stride| stride[1] == stride[2]) && dims.any(|stride| stride[1] != 0)
        };
        let leading = usize::from(together);
        order.sort_by_key(|&d| std::cmp::Reverse(of(d)[leading].unsigned_abs()));
        let mut layout = Self { sizes: Vec::new(), strides: Vec::new(), starts: starts.to_vec() };
        for d in order {
            let (size, stride) = (sizes[d], of(d));
            let last = layout.strides.len().saturating_sub(streams);
            let evenly = layout.strides[last..].iter().zip(stride).all(|(&outer, &own)| outer == own * size as isize);
            match layout.sizes.last_mut() {
                Some(outer) if evenly => {
                    *outer *= size;
                    layout.strides.truncate(last);
                }
                _ => layout.sizes.push(size),
            }
            layout.strides.extend_from_slice(stride);
        }
        if layout.sizes.is_empty() {
            // a single element is a row of one
            layout.sizes.push(1);
            layout.strides.resize(streams, 1);
        }
        layout
    }

    /// How many streams it speaks of.
    pub fn streams(&self) -> usize {
        self.starts.len()
    }

    /// The distance between neighbours of stream `s` in dimension `d`.
    #[inline(always)]
    fn stride(&self, d: usize, s: usize) -> isize {
        self.strides[d * self.starts.len() + s]
    }

    /// Those of all streams.
    fn strides(&self, d: usize) -> &[isize] {
        &self.strides[d * self.starts.len()..][..self.starts.len()]
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
        for (d, &size) in self.sizes.iter().enumerate() {
            let reach = self.stride(d, s).checked_mul(isize::try_from(size - 1).ok()?)?;
            if reach < 0 { low = low.checked_add(reach)? } else { high = high.checked_add(reach)? }
        }
        if low < 0 { None } else { usize::try_from(high).ok()?.checked_add(1) }
    }

    /// Whether the elements of stream `s` are walked in the order of its slice, from the first on, without gaps.
    pub(crate) fn is_in_order(&self, s: usize) -> bool {
        let mut inner = 1;
        let next = |d: usize| {
            let is_next = self.stride(d, s) == inner;
            inner *= self.sizes[d] as isize;
            is_next
        };
        self.is_empty() || self.starts[s] == 0 && (0..self.sizes.len()).rev().all(next)
    }

    /// Where in its slice element `i`, in the order of walking, of stream `s` lies.
    pub(crate) fn position(&self, s: usize, mut i: usize) -> usize {
        let mut position = self.starts[s] as isize;
        for (d, &size) in self.sizes.iter().enumerate().rev() {
            position += (i % size) as isize * self.stride(d, s);
            i /= size;
        }
        position as usize
    }

    /// The number of elements at whose multiples the order of walking can be cut, for slices to be cut there too: in
    /// the parameter and its `states`, whatever is walked before such a cut lies below whatever is walked after it.
    /// Where they are laid out differently, or backwards, that may be all of them.
    pub(crate) fn block(&self, states: usize) -> usize {
        let written = std::iter::once(0).chain(2..2 + states);
        let backwards = |s: usize| (0..self.sizes.len()).any(|d| self.stride(d, s) < 0);
        let mut block = self.len();
        if written.clone().any(backwards) {
            return block;
        }
        for (d, &size) in self.sizes.iter().enumerate() {
            let reach = |s: usize| move |inner: usize| (self.sizes[inner] as isize - 1) * self.stride(inner, s);
            let steps_over = |s: usize| self.stride(d, s) > (d + 1..self.sizes.len()).map(reach(s)).sum::<isize>();
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
        let Some((&inner, outer)) = self.sizes.split_last() else { return };
        let inner_stride = self.stride(outer.len(), s);
        let mut done = 0;
        while done < count {
            // the row that the next element lies in, and where that row starts
            let (mut row, column) = ((first + done) / inner, (first + done) % inner);
            let mut position = self.starts[s] as isize + column as isize * inner_stride;
            for (d, &size) in outer.iter().enumerate().rev() {
                position += (row % size) as isize * self.stride(d, s);
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

    /// Two streams that lie alike.
    fn same(sizes: &[usize], strides: &[isize], start: usize) -> Layout {
        let strides: Vec<_> = strides.iter().flat_map(|&stride| [stride; 2]).collect();
        Layout::new(sizes, &strides, &[start; 2])
    }

    fn positions(layout: &Layout, first: usize, count: usize) -> Vec<usize> {
        let mut seen = vec![usize::MAX; count];
        layout.walk(0, first, count, |i, position| seen[i] = position);
        seen
    }

    #[test]
    fn dense_dimensions_become_one() {
        let layout = same(&[2, 3, 4], &[12, 4, 1], 0);
        assert_eq!((layout.sizes.as_slice(), layout.len(), layout.extent(0)), (&[24][..], 24, Some(24)));
        let transposed = same(&[4, 3, 2], &[1, 4, 12], 0);
        assert_eq!(transposed, layout);
    }

    #[test]
    fn rows_with_gaps_are_walked_from_anywhere() {
        let layout = same(&[2, 3], &[8, 2], 1);
        assert_eq!(positions(&layout, 0, 6), [1, 3, 5, 9, 11, 13]);
        assert_eq!(positions(&layout, 2, 3), [5, 9, 11]);
        assert_eq!(layout.extent(0), Some(14));
    }

    #[test]
    fn negative_strides_start_at_the_far_end() {
        let layout = same(&[3], &[-2], 4);
        assert_eq!(positions(&layout, 0, 3), [4, 2, 0]);
        assert_eq!(layout.extent(0), Some(5));
        assert_eq!(same(&[3], &[-2], 3).extent(0), None);
    }

    #[test]
    fn blocks_end_where_streams_do_not_interleave() {
        let block = |sizes: &[usize], strides: &[[isize; 2]]| {
            let strides: Vec<_> = strides.iter().flat_map(|&[p, s]| [p, 0, s]).collect();
            Layout::new(sizes, &strides, &[0; 3]).block(1)
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
        assert_eq!(same(&[3, 0], &[1, 1], 0).extent(0), Some(0));
        let scalar = same(&[], &[], 2);
        assert_eq!((positions(&scalar, 0, 1), scalar.extent(0)), (vec![2], Some(3)));
    }
}
