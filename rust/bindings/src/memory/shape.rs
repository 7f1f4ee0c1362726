//! Sizes and strides.

/// The dimensions of a tensor: sizes and strides, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape<'a> {
    pub(crate) sizes: &'a [i64],
    pub(crate) strides: &'a [i64],
}

impl Shape<'_> {
    /// Whether both have the same sizes. (Shapes are short: comparing them as bytes would cost a call.)
    #[inline]
    pub(crate) fn same_sizes(&self, other: &Shape<'_>) -> bool {
        self.sizes.len() == other.sizes.len() && self.sizes.iter().zip(other.sizes).all(|(a, b)| a == b)
    }

    /// Whether both place equal indices at equal offsets. The strides of dimensions of size one mean nothing.
    #[inline]
    pub(crate) fn same_order(&self, other: &Shape<'_>) -> bool {
        self.sizes.iter().zip(self.strides).zip(other.strides).all(|((&n, a), b)| n == 1 || a == b)
    }

    /// Whether the elements lie one after the other in the order of their indices.
    #[inline]
    pub(crate) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.sizes.iter().zip(self.strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == expected;
            expected = expected.saturating_mul(n.max(1)); // torch's strides around an empty dimension
            fits
        })
    }

    /// Whether the elements fill their memory without gaps or overlap, in any order of dimensions.
    #[inline]
    pub(crate) fn is_dense(&self) -> bool {
        self.is_contiguous() || self.nested(|stride, covered| stride == covered)
    }

    /// Whether no two indices can name the same element: each stride steps over all that smaller strides reach.
    #[inline]
    pub(crate) fn is_free_of_overlap(&self) -> bool {
        self.nested(|stride, covered| stride >= covered)
    }

    #[inline]
    fn nested(&self, steps_over: impl Fn(i64, i64) -> bool) -> bool {
        const MOST: usize = 16;
        if self.sizes.len() > MOST || self.sizes.contains(&0) {
            return self.sizes.contains(&0);
        }
        let mut dims = [(0, 0); MOST];
        let mut count = 0;
        for (&n, &stride) in self.sizes.iter().zip(self.strides).filter(|(n, _)| **n != 1) {
            dims[count] = (stride, n);
            count += 1;
        }
        dims[..count].sort_unstable();
        let mut covered = 1;
        dims[..count].iter().all(|&(stride, n)| {
            let fits = stride > 0 && steps_over(stride, covered);
            covered = stride.saturating_mul(n - 1).saturating_add(covered);
            fits
        })
    }

    /// One past the largest offset, counted from the first element.
    #[inline]
    pub(crate) fn extent(&self) -> usize {
        if self.sizes.contains(&0) {
            return 0;
        }
        let reach: i64 = self.sizes.iter().zip(self.strides).map(|(&n, &stride)| (n - 1) * stride).sum();
        reach as usize + 1
    }
}
