// SPDX-License-Identifier: GPL-2.0

//! Makes copies of the plain logic with narrow numbers, for tests that go through all inputs.
//!
//! `u64` becomes `u16`, `u32` becomes `u8`, and limits that would not fit shrink with them: all
//! have a quarter of their bits. The code stays the same to the letter.

use std::{env, fs, path::Path};

/// A file of the module, and which of its limits to change.
const FILES: [(&str, &[(&str, &str)]); 6] = [
    ("area.rs", &[]),
    (
        "extent.rs",
        &[
            ("MAX_LEN: u64 = 1 << 31;", "MAX_LEN: u64 = 1 << 7;"),
            ("MAX_BYTES: u64 = 1 << 50;", "MAX_BYTES: u64 = 1 << 12;"),
        ],
    ),
    ("free_list.rs", &[]),
    ("run.rs", &[]),
    ("share.rs", &[]),
    (
        "token.rs",
        &[
            ("BASE: u32 = 1 << 30;", "BASE: u32 = 1 << 6;"),
            ("FRAGS: u32 = 1024;", "FRAGS: u32 = 200;"),
        ],
    ),
];

/// Not each file has both.
const NARROW: &str = "#[allow(dead_code, non_camel_case_types)]\ntype u64 = u16;\n\
                      #[allow(dead_code, non_camel_case_types)]\ntype u32 = u8;\n";

fn main() {
    let from = Path::new("../../rust/sys");
    let to = env::var("OUT_DIR").expect("cargo sets it");

    for (name, changes) in FILES {
        let path = from.join(name);
        println!("cargo::rerun-if-changed={}", path.display());

        let text = fs::read_to_string(&path).expect("the module's files are there");
        fs::write(Path::new(&to).join(name), narrow(&text, changes)).expect("it can be written");
    }
}

fn narrow(text: &str, changes: &[(&str, &str)]) -> String {
    // What applies to a whole file cannot be included.
    let body = text
        .lines()
        .filter(|line| !line.starts_with("//!") && !line.starts_with("#!["))
        .collect::<Vec<_>>()
        .join("\n");

    changes
        .iter()
        .fold(format!("{NARROW}{body}\n"), |text, (old, new)| {
            assert_eq!(text.matches(old).count(), 1, "not there once: {old}");
            text.replace(old, new)
        })
}
