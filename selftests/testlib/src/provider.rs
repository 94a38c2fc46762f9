// SPDX-License-Identifier: GPL-2.0

//! The provider under test, and whether its buffers came back.

use std::collections::BTreeSet;
use std::env;
use std::ffi::CStr;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::Once;
use std::sync::OnceLock;
use std::time::Duration;

use devmem::provider;
use devmem::provider::BindingInfo;
use nix::kmod::DeleteModuleFlags;
use nix::kmod::delete_module;
use nix::mount::MsFlags;
use nix::mount::mount;

use crate::hardware;
use crate::modules;
use crate::report::diag;
use crate::report::reason_to_skip;
use crate::wait;

/// How long buffers may take to come back on an idle system.
const BACK: Duration = Duration::from_secs(5);

/// An implementation of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The kernel's own, in C.
    Builtin,
    /// The module, in Rust.
    Module,
}

impl Provider {
    /// Its name in `/proc/sys/net/core/devmem_provider`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Module => "devmem_provider",
        }
    }

    /// The first token that it hands out on a socket; more of them count up from there.
    pub fn first_token(self) -> u32 {
        match self {
            Self::Builtin => 1,
            Self::Module => 1 << 30,
        }
    }
}

/// Who is tested if nobody says: the module, where there is one, and a kernel that takes it.
static DEFAULT: LazyLock<Provider> = LazyLock::new(|| {
    let there = modules::is_there(modules::PROVIDER) || modules::file(modules::PROVIDER).is_ok();
    match provider::serving() {
        Ok(_) if there => Provider::Module,
        _ => Provider::Builtin,
    }
});

/// The provider that `DEVMEM_PROVIDER` names, by default the module.
pub fn under_test() -> Provider {
    match env::var("DEVMEM_PROVIDER").as_deref() {
        Ok("builtin") => Provider::Builtin,
        Ok("devmem_provider") => Provider::Module,
        Err(env::VarError::NotPresent) => *DEFAULT,
        other => panic!("DEVMEM_PROVIDER: no provider is called {other:?}"),
    }
}

/// The path that an environment variable holds.
pub fn path_from_env(name: &str) -> io::Result<std::path::PathBuf> {
    env::var_os(name)
        .map(Into::into)
        .ok_or_else(|| io::Error::new(ErrorKind::NotFound, format!("{name} is not set")))
}

/// Loads netdevsim, and what it needs.
pub fn load_netdevsim() -> io::Result<()> {
    modules::load_in_order(&["ptp_mock", "netdevsim"])
}

/// Has debugfs be where it always is.
pub(crate) fn mount_debugfs() -> io::Result<()> {
    const DEBUGFS: &str = "/sys/kernel/debug";
    if Path::new(DEBUGFS).join("dma_buf").exists() {
        return Ok(());
    }
    let kind = Some("debugfs");
    Ok(mount(kind, DEBUGFS, kind, MsFlags::empty(), None::<&str>)?)
}

/// Loads what is missing, and makes the provider under test serve new bindings.
pub fn prepare() -> io::Result<Provider> {
    mount_debugfs()?;
    if hardware::given()?.is_none() && !Path::new("/sys/bus/netdevsim").exists() {
        // Where there is no configuration to be found nothing has told so before.
        if let Err(err) = modules::file("netdevsim") {
            return Err(reason_to_skip(format!("there is no netdevsim: {err}")));
        }
        load_netdevsim()?;
    }

    let wanted = under_test();
    match provider::serving() {
        Ok(_) => {
            if wanted == Provider::Module && !modules::is_there(modules::PROVIDER) {
                modules::load(modules::PROVIDER)?;
            }
            provider::select(wanted.name())?;
            let serving = provider::serving()?;
            if serving != wanted.name() {
                return Err(io::Error::other(format!(
                    "{serving} serves, not {}",
                    wanted.name()
                )));
            }
        }
        Err(err) if err.kind() == ErrorKind::NotFound && wanted == Provider::Builtin => {
            diag("this kernel has only the builtin provider");
        }
        Err(err) => {
            return Err(io::Error::new(
                err.kind(),
                format!("choosing a provider: {err}"),
            ));
        }
    }
    // In guests of ours there are none, and what another program has left is no other user's.
    if hardware::given()?.is_some() || env::var_os("NETDEVSIM_DIR").is_none() {
        let bound = bindings()?.map_or(0, |list| list.len()) as u64;
        OTHERS.get_or_init(|| attachments().map_or(0, |all| all.saturating_sub(bound)));
    }
    Ok(wanted)
}

/// The live bindings, or `None` where the kernel has no list of them: then that is said once.
pub fn bindings() -> io::Result<Option<Vec<BindingInfo>>> {
    static SAID: Once = Once::new();
    match provider::bindings() {
        Ok(list) => Ok(Some(list)),
        Err(err) if err.kind() == ErrorKind::NotFound && provider::serving().is_err() => {
            SAID.call_once(|| {
                diag("NOT CHECKED: bindings and buffers in use (no list in debugfs)")
            });
            Ok(None)
        }
        Err(err) => Err(err),
    }
}

/// The live binding of this number.
pub fn binding(id: u32) -> io::Result<Option<BindingInfo>> {
    Ok(bindings()?
        .into_iter()
        .flatten()
        .find(|binding| binding.id == id))
}

/// Devices attached to all dma-bufs together, from the kernel's list in debugfs.
pub fn attachments() -> io::Result<u64> {
    let text = fs::read_to_string("/sys/kernel/debug/dma_buf/bufinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            line.strip_prefix("Total ")?
                .strip_suffix(" devices attached")
        })
        .filter_map(|count| count.trim().parse::<u64>().ok())
        .sum())
}

/// Has the system keep at least so many huge pages free.
pub fn huge_pages(count: usize) -> io::Result<()> {
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    let read = |file: &str| -> io::Result<usize> {
        let text = fs::read_to_string(format!("{POOL}/{file}"))?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::from(ErrorKind::InvalidData))
    };
    let (all, free) = (read("nr_hugepages")?, read("free_hugepages")?);
    if free < count {
        fs::write(
            format!("{POOL}/nr_hugepages"),
            (all + count - free).to_string(),
        )?;
    }
    match read("free_hugepages")? {
        free if free < count => Err(io::Error::other(format!("{free} of {count} huge pages"))),
        _ => Ok(()),
    }
}

/// The bindings and attachments there are before a test.
pub(crate) struct Census {
    bindings: Option<BTreeSet<u32>>,
    attachments: u64,
}

impl Census {
    pub(crate) fn take() -> io::Result<Self> {
        let bindings = bindings()?.map(|list| list.iter().map(|binding| binding.id).collect());
        Ok(Self {
            bindings,
            attachments: attachments()?,
        })
    }

    /// Waits until all bindings made since are gone, which they are once every buffer is back.
    #[track_caller]
    pub(crate) fn wait_until_back(&self) {
        wait_for("every buffer and binding to come back", || {
            let now = Self::take()?;
            let left = match (&self.bindings, &now.bindings) {
                (Some(before), Some(now)) => now.difference(before).count(),
                _ => 0,
            };
            Ok(left == 0 && now.attachments <= self.attachments)
        });
    }
}

/// The module loaded with parameters, until this is dropped. Changes nothing on the built-in provider.
#[derive(Debug)]
#[must_use]
pub struct Parameters(());

impl Parameters {
    /// Loads the module again, with these parameters. There may be no bindings of it.
    #[track_caller]
    pub fn set(parameters: &CStr) -> io::Result<Self> {
        reload(parameters)?;
        Ok(Self(()))
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        if let Err(err) = reload(c"") {
            diag(format_args!("loading the module again: {err}"));
        }
    }
}

#[track_caller]
fn reload(parameters: &CStr) -> io::Result<()> {
    if under_test() == Provider::Builtin {
        return Ok(());
    }
    let unload = || delete_module(c"devmem_provider", DeleteModuleFlags::O_NONBLOCK);
    wait_for("the module to become unused", || match unload() {
        Ok(()) => Ok(true),
        Err(nix::Error::EAGAIN) => Ok(false),
        Err(err) => Err(err.into()),
    });
    modules::insert(modules::PROVIDER, parameters)
}

/// Devices attached for others than the tests, before these began: a machine has other users, too.
static OTHERS: OnceLock<u64> = OnceLock::new();

/// Devices attached that may be the tests' own.
pub(crate) fn own_attachments() -> io::Result<u64> {
    let others = *OTHERS.get().unwrap_or(&0);
    Ok(attachments()?.saturating_sub(others))
}

/// Waits until this binding is gone, which it is once every buffer is back, and until no dma-buf has
/// more devices attached than there are bindings: a binding lets go of its own when it is not listed
/// any more.
#[track_caller]
pub fn all_buffers_back(id: u32) {
    wait_for(
        &format!("every buffer of binding {id} to come back"),
        || {
            let Some(list) = bindings()? else {
                return Ok(true);
            };
            let is_gone = list.iter().all(|binding| binding.id != id);
            Ok(is_gone && own_attachments()? <= list.len() as u64)
        },
    );
}

/// Waits until `condition` holds; fails the test if it does not.
#[track_caller]
pub fn wait_for(what: &str, condition: impl FnMut() -> io::Result<bool>) {
    wait::until_or_tell(what, BACK, condition, left).expect(what);
}

/// What is there now, for a test that fails because there is too much.
pub(crate) fn left() -> String {
    let list = bindings().ok().flatten().unwrap_or_default();
    let attached = attachments().unwrap_or_default();
    format!("attached devices: {attached}, bindings: {list:?}")
}
