// SPDX-License-Identifier: GPL-2.0

//! The sender: an ordinary program that knows nothing of device memory.

use std::fs::File;
use std::io;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use devmem::netns::Netns;
use sha2::Digest;
use sha2::Sha256;

/// Length and SHA-256 of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct FileDigest {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
}

impl FileDigest {
    /// Reads the file.
    pub fn of(path: &Path) -> io::Result<Self> {
        let name =
            |err: io::Error| io::Error::new(err.kind(), format!("{}: {err}", path.display()));
        let mut file = File::open(path).map_err(name)?;
        let mut hasher = Sha256::new();
        let mut bytes = 0;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(name)? {
                0 => {
                    return Ok(Self {
                        bytes,
                        sha256: hasher.finalize().into(),
                    });
                }
                len => {
                    hasher.update(&buffer[..len]);
                    bytes += len as u64;
                }
            }
        }
    }
}

/// A running sender, which is stopped if it is dropped.
pub struct Sender {
    child: Child,
    program: &'static str,
}

impl Sender {
    /// Starts socat, or else nc, to send a file.
    pub fn start(netns: &Netns, file: &Path, to: SocketAddr) -> io::Result<Self> {
        netns.run(|| match socat(file, to)?.spawn() {
            Ok(child) => Ok(Self {
                child,
                program: "socat",
            }),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let mut nc = Command::new("nc");
                nc.arg("-N")
                    .arg(to.ip().to_string())
                    .arg(to.port().to_string());
                let child = nc.stdin(File::open(file)?).stdout(Stdio::null()).spawn();
                let child = child.map_err(|err| {
                    io::Error::new(
                        err.kind(),
                        format!("neither socat nor nc will start: {err}"),
                    )
                })?;
                Ok(Self {
                    child,
                    program: "nc",
                })
            }
            Err(err) => Err(err),
        })
    }

    /// Fails if the sender has ended already.
    pub fn check(&mut self) -> io::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(io::Error::other(format!(
                "{} ended: {status}",
                self.program
            ))),
        }
    }

    /// Waits for the end, which has to be a good one.
    pub fn wait(mut self) -> io::Result<()> {
        let status = self.child.wait()?;
        match status.success() {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "{} failed: {status}",
                self.program
            ))),
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // It has ended already, unless something went wrong that is being reported.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socat(file: &Path, to: SocketAddr) -> io::Result<Command> {
    let mut command = Command::new("socat");
    // In an address of socat's, a colon or comma in the path would be syntax: hence standard input.
    command
        .args(["-u", "-b", "262144", "STDIN", &format!("TCP:{to}")])
        .stdin(File::open(file)?);
    Ok(command)
}
