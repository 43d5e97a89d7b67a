#![no_main]

libfuzzer_sys::fuzz_target!(|data: &str| lapidary_tests::fuzz::template(data));
