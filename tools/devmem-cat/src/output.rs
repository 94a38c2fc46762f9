// SPDX-License-Identifier: GPL-2.0

//! Where what was received goes.
//!
//! A file is opened at the start, so that one that cannot be written is told of before there is a
//! connection, but it stays as it is until there is something to put there: the first byte, or the orderly
//! end of a transfer of none. It is written in place and not by way of another file that is renamed: so it
//! keeps its owner, mode and links, nobody needs the right to write to its folder, and pipes, devices and
//! `/dev/stdout` are no special case.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;

/// Files that were made, and have nothing in them yet.
static EMPTY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the files that were made and have got nothing, for when the process ends at once.
pub fn remove_what_is_empty() {
    for path in std::mem::take(&mut *EMPTY.lock().unwrap_or_else(PoisonError::into_inner)) {
        // Somebody else may have removed it.
        let _ = fs::remove_file(path);
    }
}

/// Where it goes.
pub enum Output {
    /// Nowhere.
    Discard,
    /// To standard output.
    Stdout(io::Stdout),
    /// To a file.
    File(Replaced),
    /// Nowhere, but where it is goes to a file.
    Pieces(Pieces),
}

/// Where in the dma-buf what was received is.
pub struct Pieces {
    file: Replaced,
    lines: String,
}

/// A file whose content is replaced once there is something to put there.
pub struct Replaced {
    file: File,
    path: PathBuf,
    /// Whether the content that it had is gone.
    begun: bool,
}

impl Output {
    /// Opens a file. There is an empty one from now on if there was none; if nothing comes it goes again.
    pub fn file(path: &Path) -> io::Result<Self> {
        Replaced::open(path).map(Self::File)
    }

    /// The same, of a file that tells where what was received is.
    pub fn pieces(path: &Path) -> io::Result<Self> {
        let file = Replaced::open(path)?;
        let lines = String::new();
        Ok(Self::Pieces(Pieces { file, lines }))
    }

    /// Whether the bytes are wanted at all.
    pub fn wants_data(&self) -> bool {
        matches!(self, Self::Stdout(_) | Self::File(_))
    }

    /// Whether they are to stay where they are.
    pub fn keeps(&self) -> bool {
        matches!(self, Self::Pieces(_))
    }

    /// Puts the next bytes of the stream there.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Discard | Self::Pieces(_) => Ok(()),
            Self::Stdout(stdout) => stdout.write_all(bytes),
            Self::File(replaced) => replaced.put(bytes),
        }
    }

    /// The next bytes of the stream are there in the dma-buf.
    pub fn found(&mut self, offset: u64, len: u32) {
        if let Self::Pieces(pieces) = self {
            pieces.lines.push_str(&format!("{offset} {len}\n"));
        }
    }

    /// All was put there, even if that is nothing.
    pub fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Discard => Ok(()),
            Self::Stdout(stdout) => stdout.flush(),
            Self::File(replaced) => replaced.begin(),
            Self::Pieces(Pieces { file, lines }) => file.put(lines.as_bytes()),
        }
    }
}

impl Replaced {
    fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.write(true);
        let file = match options.clone().create_new(true).open(path) {
            Ok(file) => {
                let mut empty = EMPTY.lock().unwrap_or_else(PoisonError::into_inner);
                empty.push(path.to_owned());
                file
            }
            // There is something; or a link that leads nowhere, the end of which is made.
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
                options.create(true).truncate(false).open(path)?
            }
            Err(err) => return Err(err),
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            begun: false,
        })
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.begin()?;
        self.file.write_all(bytes)
    }

    fn begin(&mut self) -> io::Result<()> {
        if self.begun {
            return Ok(());
        }
        self.is_made();
        // Only a regular file has a content that can be taken away.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.begun = true;
        Ok(())
    }

    /// Whether there was none before, and nothing has come there yet; nobody is told so a second time.
    fn is_made(&self) -> bool {
        let mut empty = EMPTY.lock().unwrap_or_else(PoisonError::into_inner);
        let at = empty.iter().position(|path| *path == self.path);
        at.map(|at| empty.swap_remove(at)).is_some()
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        if self.is_made() {
            // Somebody else may have removed it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::fs::symlink;
    use std::process;
    use std::thread;

    /// A folder of a test's own, until this is dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("devmem-cat-{name}-{}", process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_stays_until_there_is_something() {
        let folder = Folder::new("stays");
        let path = folder.path("file");
        fs::write(&path, "what was there, and is longer").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        let link = folder.path("link");
        symlink(&path, &link).unwrap();
        for to in [&path, &link] {
            drop(Output::file(to).unwrap());
            assert_eq!(fs::read(&path).unwrap(), b"what was there, and is longer");
        }
        let mut output = Output::file(&link).unwrap();
        output.put(b"some").unwrap();
        output.put(b"thing").unwrap();
        output.finish().unwrap();
        drop(output);
        assert_eq!(fs::read(&path).unwrap(), b"something");
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

        // What was cut is there as far as it came.
        let mut output = Output::file(&path).unwrap();
        output.put(b"so").unwrap();
        drop(output);
        assert_eq!(fs::read(&path).unwrap(), b"so");

        // A transfer of nothing is one, too.
        Output::file(&path).unwrap().finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn where_it_is_is_told_at_the_end() {
        let folder = Folder::new("pieces");
        let path = folder.path("file");
        fs::write(&path, "what was there, and is longer").unwrap();
        let tells = |ends: bool| {
            let mut output = Output::pieces(&path).unwrap();
            assert!(output.keeps() && !output.wants_data());
            output.found(8192, 4096);
            output.put(b"something").unwrap();
            output.found(0, 100);
            if ends {
                output.finish().unwrap();
            }
            drop(output);
            fs::read_to_string(&path).unwrap()
        };
        assert_eq!(tells(false), "what was there, and is longer");
        assert_eq!(tells(true), "8192 4096\n0 100\n");
    }

    #[test]
    fn a_file_that_was_not_there() {
        let folder = Folder::new("new");
        let path = folder.path("file");
        drop(Output::file(&path).unwrap());
        assert!(!path.exists());
        let mut output = Output::file(&path).unwrap();
        output.put(b"something").unwrap();
        drop(output);
        assert_eq!(fs::read(&path).unwrap(), b"something");

        let link = folder.path("link");
        symlink(folder.path("nowhere"), &link).unwrap();
        Output::file(&link).unwrap().put(b"there").unwrap();
        assert_eq!(fs::read(folder.path("nowhere")).unwrap(), b"there");

        assert!(Output::file(&folder.path("no/file")).is_err());
        assert!(Output::file(&folder.0).is_err());
    }

    #[test]
    fn pipes_and_devices() {
        let folder = Folder::new("pipes");
        let path = folder.path("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = thread::spawn({
            let path = path.clone();
            move || {
                let mut read = Vec::new();
                File::open(path).unwrap().read_to_end(&mut read).unwrap();
                read
            }
        });
        let mut output = Output::file(&path).unwrap();
        output.put(b"something").unwrap();
        output.finish().unwrap();
        drop(output);
        assert_eq!(reader.join().unwrap(), b"something");
        assert!(path.exists());

        let mut output = Output::file(Path::new("/dev/null")).unwrap();
        output.put(b"something").unwrap();
        output.finish().unwrap();
    }
}
