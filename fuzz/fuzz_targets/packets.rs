#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mqttconverter::endpoint::fuzzing::packets(data));
