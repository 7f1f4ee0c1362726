//! AddressSanitizer sees what it is there to see: `make asan` runs this, and it has to fail.
#![allow(unsafe_code)]

#[test]
#[ignore = "an access beyond a slice, on purpose: only for AddressSanitizer, which has to report it"]
fn an_access_beyond_a_slice() {
    let elements = vec![1.0_f32; 1000];
    // SAFETY: none, on purpose: the vector has no such element.
    let beyond = unsafe { *elements.as_ptr().add(std::hint::black_box(1000)) };
    println!("nobody minds {beyond}");
}
