//! The processor: which SIMD level to run at, prefetching, the denormal mode.
//!
//! Loops are ordinary generic code. [`Level::run`] calls them from a function compiled for the level, into which they
//! are inlined, so the same source is vectorised once per level. Every operation in them is exact IEEE arithmetic,
//! hence every level gives the same bits.
#![allow(unsafe_code)]

mod halves;

pub use halves::{Simd, UNIT};

use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that the loops are compiled for, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// What every processor of the architecture has (x86-64: SSE2, fused multiply-add by library call).
    Baseline,
    /// AArch64, where NEON and fused multiply-add are part of the baseline.
    Neon,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL, and BMI 1 and 2.
    Avx512,
}

/// Code to run at some level. `run` must be `#[inline(always)]`, and so must all that it calls in its loops.
pub trait Vectorized {
    /// Runs it, at the level that `simd` stands for.
    fn run(self, simd: impl Simd);
}

impl Level {
    /// All levels, weakest first.
    pub const ALL: [Self; 4] = [Self::Baseline, Self::Neon, Self::Avx2, Self::Avx512];

    /// Its name, as in `OXISTEP_SIMD`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// The level called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    /// Whether this processor has it.
    pub fn available(self) -> bool {
        match self {
            Self::Baseline => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// The best level of this processor.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|level| level.available()).unwrap_or(Self::Baseline)
    }

    /// [`Level::best`], asked of the processor once.
    #[inline]
    fn best_cached() -> Self {
        match BEST.load(Ordering::Relaxed) {
            UNSET => {
                let best = Self::best();
                BEST.store(best as u8, Ordering::Relaxed);
                best
            }
            level => Self::ALL[level as usize],
        }
    }

    /// The level in force: the best, unless [`Level::force`] chose another.
    pub fn current() -> Self {
        match CURRENT.load(Ordering::Relaxed) {
            UNSET => Self::best_cached(),
            level => Self::ALL[level as usize],
        }
    }

    /// Makes this the level in force; `false`, and nothing changed, where the processor lacks it.
    pub fn force(self) -> bool {
        let available = self.available();
        if available {
            CURRENT.store(self as u8, Ordering::Relaxed);
        }
        available
    }

    /// Runs `code` compiled for this level; at the baseline if the processor lacks it.
    #[inline]
    pub fn run(self, code: impl Vectorized) {
        #[cfg(target_arch = "x86_64")]
        {
            // asking here keeps this function safe for every caller
            let best = Self::best_cached();
            if self == Self::Avx512 && best == self {
                // SAFETY: the processor has every feature that the function is compiled for; asked on the line above.
                return unsafe { run_avx512(code) };
            }
            if self >= Self::Avx2 && best >= Self::Avx2 {
                // SAFETY: as above.
                return unsafe { run_avx2(code) };
            }
        }
        code.run(halves::Plain);
    }
}

/// A function that is compiled for some levels, and called through a pointer. `run` must be `#[inline(always)]`, and so
/// must all that it calls in its loops.
pub(crate) trait Kernel {
    /// What it works on.
    type Job<'j>;
    /// Does it, at the level that `simd` stands for.
    fn run(job: Self::Job<'_>, simd: impl Simd);
}

/// A level that the processor has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Available(usize);

impl Level {
    /// Whether its vectors have 64 bytes, at this level or the best one below it that the processor has.
    #[inline]
    pub(crate) fn is_wide(self) -> bool {
        self.min(Self::best_cached()) == Self::Avx512
    }

    /// This level, or the best one below it, as one that the processor has.
    pub(crate) fn at_hand(self) -> Available {
        Available(match self.min(Self::best_cached()) {
            Self::Baseline | Self::Neon => 0,
            Self::Avx2 => 1,
            Self::Avx512 => 2,
        })
    }
}

/// A function as it was compiled for some levels, with the code of a weaker one at the others: it is given out only for
/// a level that the processor has.
#[derive(Clone, Copy)]
pub(crate) struct Compiled<F>([F; 3]);

impl<F: Copy> Compiled<F> {
    /// The function for a level.
    #[inline(always)]
    pub(crate) fn at(&self, level: Available) -> F {
        self.0[level.0]
    }
}

/// For which levels a function is compiled. (It can be called at the others, too.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compile {
    /// For each.
    All,
    /// For that with vectors of 64 bytes.
    Wide,
}

/// Compiles a function.
#[cfg(target_arch = "x86_64")]
pub(crate) const fn compiled<K: Kernel>(levels: Compile) -> Compiled<for<'j> fn(K::Job<'j>)> {
    fn baseline<K: Kernel>(job: K::Job<'_>) {
        K::run(job, halves::Plain);
    }
    fn avx2<K: Kernel>(job: K::Job<'_>) {
        // SAFETY: `Compiled` gives this function out only where the processor has the level: see `Available`.
        unsafe { kernel_avx2::<K>(job) }
    }
    fn avx512<K: Kernel>(job: K::Job<'_>) {
        // SAFETY: as above.
        unsafe { kernel_avx512::<K>(job) }
    }
    Compiled(match levels {
        Compile::All => [baseline::<K>, avx2::<K>, avx512::<K>],
        Compile::Wide => [baseline::<K>, baseline::<K>, avx512::<K>],
    })
}

/// Compiles a function: the architecture has one level.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const fn compiled<K: Kernel>(_levels: Compile) -> Compiled<for<'j> fn(K::Job<'j>)> {
    fn baseline<K: Kernel>(job: K::Job<'_>) {
        K::run(job, halves::Plain);
    }
    Compiled([baseline::<K>, baseline::<K>, baseline::<K>])
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
fn kernel_avx512<K: Kernel>(job: K::Job<'_>) {
    K::run(job, halves::Avx512::new());
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn kernel_avx2<K: Kernel>(job: K::Job<'_>) {
    K::run(job, halves::Avx2::new());
}

const UNSET: u8 = u8::MAX;
static CURRENT: AtomicU8 = AtomicU8::new(UNSET);
static BEST: AtomicU8 = AtomicU8::new(UNSET);

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
fn run_avx512(code: impl Vectorized) {
    code.run(halves::Avx512::new());
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2(code: impl Vectorized) {
    code.run(halves::Avx2::new());
}

/// Asks for the cache line at an address to be brought near. Any address will do: nothing is read.
#[inline(always)]
pub fn prefetch_address(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and cannot fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address as *const i8) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the cache line of `slice[index]`, which may lie beyond its end, to be brought near.
#[inline(always)]
pub fn prefetch<T>(slice: &[T], index: usize) {
    prefetch_address(slice.as_ptr().wrapping_add(index) as usize);
}

/// As [`prefetch_address`], but no nearer than the second-level cache: for what is wanted later, or much at a time.
#[inline(always)]
pub fn prefetch_far_address(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and cannot fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address as *const i8) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// As [`prefetch`], but no nearer than the second-level cache.
#[inline(always)]
pub fn prefetch_far<T>(slice: &[T], index: usize) {
    prefetch_far_address(slice.as_ptr().wrapping_add(index) as usize);
}

/// The calling thread's treatment of denormal numbers (`torch.set_flush_denormal` is per thread).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenormalMode(u64);

#[cfg(target_arch = "x86_64")]
const FLUSH_BITS: u64 = 1 << 15 | 1 << 6; // MXCSR: flush to zero, denormals are zero
#[cfg(target_arch = "aarch64")]
const FLUSH_BITS: u64 = 1 << 24; // FPCR: FZ
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const FLUSH_BITS: u64 = 0;

impl DenormalMode {
    /// The mode of this thread.
    pub fn of_this_thread() -> Self {
        Self(control() & FLUSH_BITS)
    }

    /// Runs `f` in this mode and restores the thread's own, also when `f` panics.
    pub fn within<R>(self, f: impl FnOnce() -> R) -> R {
        struct Restore(u64);
        impl Drop for Restore {
            fn drop(&mut self) {
                set_control(self.0);
            }
        }
        let own = control();
        if own & FLUSH_BITS == self.0 {
            return f();
        }
        let _restore = Restore(own);
        set_control(own & !FLUSH_BITS | self.0);
        f()
    }
}

#[cfg(target_arch = "x86_64")]
fn control() -> u64 {
    let mut mxcsr = 0u32;
    // SAFETY: stores the 32-bit register into the local that the pointer names, and touches nothing else.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mxcsr, options(nostack, preserves_flags)) };
    u64::from(mxcsr)
}

#[cfg(target_arch = "x86_64")]
fn set_control(value: u64) {
    let mxcsr = value as u32;
    // SAFETY: loads a value read by `control`, changed in the two flush bits at most: rounding and exception masks,
    // which compiled code relies on, stay as they were.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack, preserves_flags)) };
}

#[cfg(target_arch = "aarch64")]
fn control() -> u64 {
    let fpcr: u64;
    // SAFETY: reads a register.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) fpcr, options(nomem, nostack, preserves_flags)) };
    fpcr
}

#[cfg(target_arch = "aarch64")]
fn set_control(value: u64) {
    // SAFETY: writes a value read by `control`, changed in the flush bit at most.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn control() -> u64 {
    0
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn set_control(_: u64) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_levels_agree() {
        for level in Level::ALL {
            assert_eq!(Level::from_name(level.name()), Some(level));
        }
        assert_eq!(Level::from_name("mmx"), None);
        assert!(Level::best().available());
    }

    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn a_denormal_mode_is_taken_and_given_back() {
        let survives = || {
            use std::hint::black_box;
            (black_box(f32::from_bits(1)) * black_box(3.0)).to_bits() != 0
        };
        let own = DenormalMode::of_this_thread();
        assert!(survives());
        assert!(!DenormalMode(FLUSH_BITS).within(survives));
        assert_eq!(DenormalMode::of_this_thread(), own);
        let panicked = std::panic::catch_unwind(|| DenormalMode(FLUSH_BITS).within(|| panic!("on purpose")));
        assert!(panicked.is_err());
        assert_eq!(DenormalMode::of_this_thread(), own);
    }
}
