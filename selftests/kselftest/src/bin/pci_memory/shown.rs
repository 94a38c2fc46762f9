// SPDX-License-Identifier: GPL-2.0

//! The demo on igb, as far as the guest has to do with it.

use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::process;
use std::process::Command;

use devmem::Extent;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::bar::Bar;
use devmem_testlib::skip;
use devmem_testlib::traffic;

/// From the top of the source tree, where guests start.
const SCRIPT: &str = "selftests/guest/demo-igb.sh";
/// What the script has.
const PORT: u16 = 5001;
const QUEUE: u32 = 1;

/// A file from an ordinary sender is in the device where the demo says, and stays there when its programs have gone.
pub fn by_the_demo() -> Outcome {
    const LEN: u64 = 4 << 20;
    const CHUNK: usize = 1 << 20;
    if !Path::new(SCRIPT).exists() {
        return skip("this is for the guests of make test");
    }
    // Puts back what the demo changes on both NICs; also the key that flows are spread by, once it has one of its own.
    let pair = Pair::new()?;
    pair.steer(PORT, QUEUE)?;
    let folder = env::temp_dir().join(format!("demo-{}", process::id()));
    fs::create_dir(&folder)?;
    let (file, pieces) = (folder.join("file"), folder.join("pieces"));
    let stream: Vec<_> = (0..LEN)
        .step_by(CHUNK)
        .flat_map(|at| traffic::bytes(at, CHUNK))
        .copied()
        .collect();
    fs::write(&file, stream)?;
    let shown = Command::new(SCRIPT).args([&file, &pieces]).output()?;
    assert!(shown.status.success(), "{shown:?}");
    let pieces = fs::read_to_string(&pieces)?;
    fs::remove_dir_all(&folder)?;
    drop(pair);

    let all = Extent {
        offset: 0,
        len: 64 << 20,
    };
    let map = Bar::open()?.part(all)?.map()?;
    let cpu = map.begin_read()?;
    let mut position = 0;
    for piece in pieces.lines().map(parsed) {
        let Extent { offset, len } = piece?;
        for at in (0..len).step_by(CHUNK) {
            let mut seen = vec![0; CHUNK.min((len - at) as usize)];
            cpu.copy_out(offset + at, &mut seen)?;
            traffic::compare(position, &seen);
            position += seen.len() as u64;
        }
    }
    assert_eq!(position, LEN, "{pieces}");
    Ok(())
}

/// A line of what tells where it is.
fn parsed(line: &str) -> io::Result<Extent> {
    let extent = line.split_once(' ').and_then(|(offset, len)| {
        Some(Extent {
            offset: offset.parse().ok()?,
            len: len.parse().ok()?,
        })
    });
    extent.ok_or_else(|| io::Error::other(format!("{line:?} is no piece")))
}
