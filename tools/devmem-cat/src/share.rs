// SPDX-License-Identifier: GPL-2.0

//! Passing the dma-buf to a receiver on the same machine.

use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use devmem::DmaBuf;
use devmem::TxBinding;
use devmem::local::Share;

use crate::connection::unwatch;
use crate::connection::watch;
use crate::error::Fallible;
use crate::error::context;

/// How long who has connected may take to pass something.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a dma-buf is waited for. The name goes with this.
pub struct Place {
    listener: UnixListener,
    path: PathBuf,
}

impl Place {
    /// Makes the socket.
    pub fn new(path: &Path) -> Fallible<Self> {
        let listener = UnixListener::bind(path).map_err(|err| {
            let hint = match err.kind() {
                io::ErrorKind::AddrInUse => {
                    "\nHint: another receiver waits there, or was killed and has left it."
                }
                _ => "",
            };
            format!("{}: {err}{hint}", path.display())
        })?;
        let place = Self {
            listener,
            path: path.to_owned(),
        };
        watch(&place.listener, true)?;
        Ok(place)
    }

    /// Waits for the dma-buf.
    pub fn receive(self) -> Fallible<Share> {
        let (stream, _) = self.listener.accept().map_err(context("accept"))?;
        let share = Share::receive_timeout(&stream, PATIENCE);
        share.map_err(context("the sender's dma-buf"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        unwatch(&self.listener);
        // Somebody may have removed it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Passes the dma-buf to who waits for it.
pub fn pass(path: &Path, binding: &TxBinding, memory: &DmaBuf) -> Fallible<()> {
    Share::send(&reach(path)?, binding, memory).map_err(context("passing the dma-buf"))
}

/// Connects to who waits.
fn reach(path: &Path) -> Result<UnixStream, String> {
    UnixStream::connect(path).map_err(|err| {
        let hint = match err.kind() {
            io::ErrorKind::NotFound => "\nHint: start the receiver first, which makes it.",
            io::ErrorKind::ConnectionRefused => "\nHint: the receiver that has made it is gone.",
            _ => "",
        };
        format!("{}: {err}{hint}", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process;

    #[test]
    fn a_place_is_there_once_and_goes() {
        let path = std::env::temp_dir().join(format!("devmem-cat-place-{}", process::id()));
        let place = Place::new(&path).unwrap();
        let err = Place::new(&path).map(drop).unwrap_err();
        assert!(err.to_string().contains("Hint"), "{err}");
        // Who connects and passes nothing.
        drop(UnixStream::connect(&path).unwrap());
        place.receive().unwrap_err();
        assert!(!path.exists());
    }

    #[test]
    fn who_does_not_wait_yet_and_who_is_gone() {
        let path = std::env::temp_dir().join(format!("devmem-cat-gone-{}", process::id()));
        let err = reach(&path).unwrap_err();
        assert!(err.contains("start the receiver"), "{err}");
        drop(UnixListener::bind(&path).unwrap());
        let err = reach(&path).unwrap_err();
        assert!(err.contains("is gone"), "{err}");
        fs::remove_file(&path).unwrap();
    }
}
