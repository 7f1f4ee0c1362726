//! The part of DLPack that describes a tensor. Its layout is frozen by the standard's major version 1.

use std::ffi::c_void;

/// `kDLCPU`
pub(crate) const DEVICE_CPU: i32 = 1;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Device {
    pub(crate) kind: i32,
    pub(crate) id: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct DataType {
    pub(crate) code: u8,
    pub(crate) bits: u8,
    pub(crate) lanes: u16,
}

/// A borrowed description of a tensor: valid while the tensor lives and is not reshaped.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Tensor {
    pub(crate) data: *mut c_void,
    pub(crate) device: Device,
    pub(crate) ndim: i32,
    pub(crate) dtype: DataType,
    pub(crate) shape: *const i64,
    pub(crate) strides: *const i64,
    pub(crate) byte_offset: u64,
}

// What the C headers give on 64-bit platforms.
const _: () = {
    assert!(size_of::<Tensor>() == 48);
    assert!(std::mem::offset_of!(Tensor, ndim) == 16);
    assert!(std::mem::offset_of!(Tensor, shape) == 24);
    assert!(std::mem::offset_of!(Tensor, byte_offset) == 40);
};
