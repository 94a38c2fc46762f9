// SPDX-License-Identifier: GPL-2.0

//! Sequences as files, in RON: a comment that says what they show, then an operation a line.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::op::Op;

/// A sequence of the corpus.
#[derive(Debug)]
pub struct Case {
    /// The name of its file, without the extension.
    pub name: String,
    /// What it does.
    pub ops: Vec<Op>,
}

/// All sequences of a directory, by name.
pub fn load(dir: &Path) -> io::Result<Vec<Case>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)
        .map_err(|err| io::Error::new(err.kind(), format!("{}: {err}", dir.display())))?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ron"));
    paths.sort();
    paths.iter().map(|path| load_one(path)).collect()
}

/// The sequence of a file.
pub fn load_one(path: &Path) -> io::Result<Case> {
    let invalid = |what: String| {
        let message = format!("{}: {what}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    let ops = parse(&fs::read_to_string(path)?).map_err(|err| invalid(err.to_string()))?;
    let name = path.file_stem().and_then(|name| name.to_str());
    Ok(Case {
        name: name.ok_or_else(|| invalid("not a name".into()))?.to_owned(),
        ops,
    })
}

fn parse(text: &str) -> Result<Vec<Op>, ron::error::SpannedError> {
    ron::from_str(text)
}

/// A sequence as the text of a file. `what` becomes its comment.
pub fn text(what: &str, ops: &[Op]) -> String {
    let mut text = String::from("// SPDX-License-Identifier: GPL-2.0\n");
    for line in what.lines() {
        text += &format!("// {line}\n");
    }
    text += "[\n";
    for op in ops {
        text += &format!("    {},\n", line(op));
    }
    text + "]\n"
}

/// An operation as a line.
pub fn line(op: &Op) -> String {
    let config = ron::ser::PrettyConfig::new().depth_limit(0);
    ron::ser::to_string_pretty(op, config).expect("plain data")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Source;
    use crate::generate::sequence;

    #[test]
    fn what_is_written_can_be_read() {
        for seed in 0..50 {
            let ops = sequence(&mut Source::new(seed));
            let text = text("What it shows.\nAnd how.", &ops);
            assert_eq!(parse(&text).unwrap(), ops, "{text}");
            assert_eq!(text.lines().count(), ops.len() + 5);
        }
    }

    #[test]
    fn the_corpus_can_be_read() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let cases = load(&dir).unwrap();
        assert!(!cases.is_empty());
        assert!(cases.iter().all(|case| !case.ops.is_empty()));
    }
}
