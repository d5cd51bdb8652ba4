//! What else asks the processor for more than every one has, for the rest of the program to call safely.

/// Asks for a cache line that is needed soon; a hint that may point anywhere.
#[inline]
pub fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program could see and never faults; SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Plain arithmetic over arrays, worth compiling for wider registers as well. `run` and what it calls are `#[inline(always)]`:
/// what is not inlined is compiled for every processor.
pub trait Arithmetic {
    /// What it comes to.
    type Output;

    /// Does it.
    fn run(self) -> Self::Output;
}

/// Does arithmetic with AVX2 where the processor has it. The result is the same: nothing is reordered or fused.
#[inline]
pub fn widely<A: Arithmetic>(work: A) -> A::Output {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor was just asked whether it has AVX2.
        return unsafe { with_avx2(work) };
    }
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<A: Arithmetic>(work: A) -> A::Output {
    work.run()
}
