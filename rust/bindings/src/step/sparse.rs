//! Sparse gradients: which rows of a parameter they name, in order, rows named several times summed.
//!
//! A gradient as backward leaves it names rows in any order, some of them twice. torch sorts and sums it into a new
//! tensor first; here only places are sorted, and only what is named twice is summed. The rest is read where it lies.

use oxistep_kernels::{Slice, SparseRows};
use pyo3::prelude::*;

use crate::memory::dtype::DType;
use crate::memory::stream::Described;
use crate::optimizer::group::is_fused;
use crate::step::look::{Going, Look};

/// Rows of a parameter, ascending, with where the gradient of each is: see [`SparseRows`].
pub(crate) struct NamedRows {
    rows: Vec<i64>,
    width: usize,
    sources: Option<Vec<u32>>,
    sums: Sums,
}

enum Sums {
    F32(Vec<f32>),
    F64(Vec<f64>),
}

impl NamedRows {
    pub(crate) fn named(&self) -> SparseRows<'_> {
        let sums = match &self.sums {
            Sums::F32(sums) => Slice::F32(sums),
            Sums::F64(sums) => Slice::F64(sums),
        };
        SparseRows { rows: &self.rows, width: self.width, sources: self.sources.as_deref(), sums }
    }
}

/// What a sparse gradient of `param` holds: its values, a matrix of rows, and which rows they belong to; or why that is
/// left to torch.
pub(super) fn take_rows<'py>(
    param: &Bound<'py, PyAny>,
    grad: &Bound<'py, PyAny>,
    look: &Look<'_, 'py>,
) -> Going<(Bound<'py, PyAny>, NamedRows)> {
    let py = param.py();
    if !grad.getattr(pyo3::intern!(py, "is_sparse"))?.is_truthy()? {
        return Err("the gradient has no plain memory".into());
    }
    if is_fused(look.values)? {
        return Err("the gradient is sparse, which fused=True refuses".into());
    }
    let Ok(described) = look.torch.describe(param) else {
        return Err("the gradient is sparse and the parameter no plain CPU tensor".into());
    };
    let sizes = described.shape.sizes.to_vec(); // Python runs below
    if grad.getattr("shape")?.extract::<Vec<i64>>()? != sizes {
        return Err("the gradient is sparse and of another shape".into());
    }
    let copy_indices = |sparse: &Bound<'_, PyAny>| -> PyResult<Option<(Vec<i64>, usize, usize)>> {
        let indices = sparse.call_method0("_indices")?;
        look.torch.check_inside(&indices, "an index of a sparse gradient")?;
        let indices =
            look.torch.copy_indices(&indices.call_method0("contiguous")?).filter(|&(_, dims, _)| dims <= sizes.len());
        let inside = |(indices, dims, count): &(Vec<i64>, usize, usize)| {
            (0..*dims).all(|d| indices[d * count..][..*count].iter().all(|i| (0..sizes[d]).contains(i)))
        };
        Ok(indices.filter(inside))
    };
    let elsewhere = || Err("an index of the sparse gradient lies outside the parameter".into());
    // torch's coalesce trusts the indices: they are checked before it sees them
    let Some(mut indices) = copy_indices(grad)? else { return elsewhere() };
    let values = grad.call_method0("_values")?;
    look.torch.check_inside(&values, "a sparse gradient")?;
    let described = look.torch.describe_values(&values);
    let float = described.is_ok_and(|v| matches!(v.memory.dtype, DType::F32 | DType::F64) && !v.memory.complex);
    let mut holder = grad.clone();
    let mut in_order = true;
    if !grad.call_method0(pyo3::intern!(py, "is_coalesced"))?.is_truthy()? {
        let addressable = i32::try_from(indices.2).is_ok() && u32::try_from(sizes.iter().product::<i64>()).is_ok();
        if float && addressable && !look.measuring {
            in_order = false;
        } else {
            holder = grad.call_method0(pyo3::intern!(py, "coalesce"))?;
            let Some(coalesced) = copy_indices(&holder)? else { return elsewhere() };
            indices = coalesced;
        }
    }
    let (indices, dims, count) = indices;
    if dims == 0 && count > 1 {
        return Err("the gradient is sparse and names nothing but the whole parameter".into());
    }
    let values = holder.call_method0("_values")?.call_method0("contiguous")?;
    let row = |i: usize| (0..dims).fold(0, |row, d| row * sizes[d] + indices[d * count + i]);
    let rows: Vec<i64> = (0..count).map(row).collect();
    let width = sizes[dims..].iter().product::<i64>() as usize;
    let held = look.torch.describe_values(&values).ok().filter(|held| held.memory.len == count * width);
    let Some(held) = held else {
        return Err("the sparse gradient's values are not as many as its indices".into());
    };
    let named = if in_order {
        if !rows.is_sorted_by(|a, b| a < b) {
            return Err("the indices of the sparse gradient are not coalesced as it claims".into());
        }
        NamedRows { rows, width, sources: None, sums: Sums::F32(Vec::new()) }
    } else {
        match coalesce(&rows, width, &held) {
            Some(named) => named,
            None => return Err("the sparse gradient changed while it was looked up".into()),
        }
    };
    Ok((values, named))
}

/// Puts rows in order, and sums the values of those named several times, in the order in which they are named. (torch's
/// order is that of its sort, which is not stable.) `None` for values of a type that it does not serve.
fn coalesce(rows: &[i64], width: usize, values: &Described<'_>) -> Option<NamedRows> {
    values.read(|values| match values {
        Slice::F32(values) => Some(sort_and_sum(rows, width, values, |a, b| a + b, Sums::F32)),
        Slice::F64(values) => Some(sort_and_sum(rows, width, values, |a, b| a + b, Sums::F64)),
        _ => None,
    })
}

fn sort_and_sum<T: Copy>(
    named: &[i64],
    width: usize,
    values: &[T],
    add: impl Fn(T, T) -> T,
    wrap: impl Fn(Vec<T>) -> Sums,
) -> NamedRows {
    // row and place in one number each: both were found to fit
    let mut order: Vec<u64> = named.iter().enumerate().map(|(place, &row)| (row as u64) << 32 | place as u64).collect();
    order.sort_unstable();
    let (mut rows, mut sources, mut sums) =
        (Vec::with_capacity(named.len()), Vec::with_capacity(named.len()), Vec::new());
    let mut further = named.len() as u32;
    for same in order.chunk_by(|a, b| a >> 32 == b >> 32) {
        let of = |key: u64| &values[(key as u32 as usize) * width..][..width];
        rows.push((same[0] >> 32) as i64);
        if let [only] = same {
            sources.push(*only as u32);
            continue;
        }
        sources.push(further);
        further += 1;
        let start = sums.len();
        sums.extend_from_slice(of(same[0]));
        for &next in &same[1..] {
            sums[start..].iter_mut().zip(of(next)).for_each(|(sum, &value)| *sum = add(*sum, value));
        }
    }
    NamedRows { rows, width, sources: Some(sources), sums: wrap(sums) }
}
