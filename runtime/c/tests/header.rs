//! The header is what cbindgen makes of the crate. `INSTA_UPDATE=always` writes it anew.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::{env, fs};

#[test]
fn the_header_is_the_crate() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).unwrap();
    let builder = cbindgen::Builder::new().with_config(config).with_src(folder.join("src/lib.rs"));
    let mut made = vec![];
    builder.generate().unwrap().write(&mut made);
    // What only Rust reads.
    let safety = "\n//\n// # Safety\n// As the header says of every function.";
    let made = String::from_utf8(made).unwrap().replace(safety, "");
    assert!(made.contains("lapidary_open(") && !made.contains("# Safety"), "{made}");
    let path = folder.join("include/lapidary.h");
    if env::var_os("INSTA_UPDATE").is_some_and(|update| update == "always") {
        fs::write(&path, &made).unwrap();
    }
    assert_eq!(made, fs::read_to_string(&path).unwrap(), "INSTA_UPDATE=always writes the header anew");
}
