#![no_main]
//! See `pixfleet_fuzz_targets::letter`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| pixfleet_fuzz_targets::letter(data));
