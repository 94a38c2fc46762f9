// SPDX-License-Identifier: GPL-2.0 OR MIT

//! That the header is that of the functions, and that a program in C can use it.

use std::env;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What cbindgen makes, as the kernel wants C to look.
fn header() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let parsed = cbindgen::Builder::new()
        .with_src(root().join("src/lib.rs"))
        .with_config(config)
        .generate()
        .unwrap();
    let mut made = Vec::new();
    parsed.write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let mut header = String::new();
    let mut paragraph_of_safety = false;
    for line in made.lines() {
        // What Rust wants to be said, and C does not know.
        paragraph_of_safety |= line.trim_start_matches([' ', '*']).starts_with("# Safety");
        if line.contains("*/") {
            paragraph_of_safety = false;
        }
        if paragraph_of_safety {
            continue;
        }
        let rest = line.trim_start_matches(' ');
        let indent = line.len() - rest.len();
        header.extend(["\t".repeat(indent / 8), " ".repeat(indent % 8)]);
        // These are not the kernel's documentation.
        header.push_str(if rest == "/**" { "/*" } else { rest });
        header.push('\n');
    }
    // Nothing is left of those paragraphs.
    header
        .replace(" *\n */\n", " */\n")
        .replace("#endif  /*", "#endif /*")
}

#[test]
fn the_header_is_current() {
    let path = root().join("include/devmem_bulk.h");
    let made = header();
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap();
    assert!(
        there == made,
        "UPDATE=1 cargo test -p devmem-bulk-c makes it anew"
    );
}

/// What was built of the library last.
fn library(profile: &Path) -> PathBuf {
    let there = [profile.to_owned(), profile.join("deps")];
    there
        .iter()
        .flat_map(|dir| fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "a"))
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("libdevmem_bulk_c")
        })
        .max_by_key(|path| path.metadata().unwrap().modified().unwrap())
        .expect("the library")
}

#[test]
fn the_example_compiles_and_links() {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    // Where this program is: beside what cargo has made of the library.
    let profile = env::current_exe().unwrap();
    let profile = profile.ancestors().nth(2).unwrap();
    let example = target.join("bulk");
    let status = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-o"])
        .arg(&example)
        .arg(root().join("examples/bulk.c"))
        .arg(library(profile))
        .args(["-lpthread", "-ldl", "-lm"])
        .status()
        .unwrap();
    assert!(status.success());
    let status = Command::new(&example).status().unwrap();
    assert_eq!(status.code(), Some(2), "it says how it is used");
}
