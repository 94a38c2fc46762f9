// SPDX-License-Identifier: GPL-2.0

//! Loading and unloading the module.

use std::fs;
use std::fs::File;
use std::io;
use std::process::ExitCode;
use std::thread;

use devmem::DmaBuf;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::Provider;
use devmem_testlib::modules;
use devmem_testlib::odd;
use devmem_testlib::pair::Ip;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::wait_received;
use devmem_testlib::provider;
use devmem_testlib::runner;
use devmem_testlib::skip;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use nix::kmod::DeleteModuleFlags;
use nix::kmod::ModuleInitFlags;
use nix::kmod::delete_module;
use nix::kmod::finit_module;

const MEMORY: usize = 1 << 20;
const NOT_A_MODULE: &str = "the builtin provider is not a module";

fn rmmod() -> nix::Result<()> {
    delete_module(c"devmem_provider", DeleteModuleFlags::O_NONBLOCK)
}

fn insmod() -> io::Result<()> {
    modules::load(modules::PROVIDER)
}

/// Unloads the module as soon as nothing uses it.
#[track_caller]
fn rmmod_when_unused() {
    provider::wait_for("the module to become unused", || match rmmod() {
        Ok(()) => Ok(true),
        Err(nix::Error::EAGAIN) => Ok(false),
        Err(err) => Err(err.into()),
    });
}

fn insmod_twice() -> Outcome {
    if provider::under_test() == Provider::Builtin {
        return skip(NOT_A_MODULE);
    }
    let module = File::open(modules::file(modules::PROVIDER)?)?;
    let again = finit_module(&module, c"", ModuleInitFlags::empty());
    assert_eq!(again, Err(nix::Error::EEXIST));
    assert_eq!(devmem::provider::serving()?, Provider::Module.name());
    Ok(())
}

fn rmmod_while_bound() -> Outcome {
    if provider::under_test() == Provider::Builtin {
        return skip(NOT_A_MODULE);
    }
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[1], &memory)?;
    assert_eq!(rmmod(), Err(nix::Error::EAGAIN), "rmmod while bound");
    drop(binding);
    rmmod_when_unused();

    assert_eq!(devmem::provider::serving()?, Provider::Builtin.name());
    insmod()?;
    assert_eq!(devmem::provider::serving()?, Provider::Module.name());
    drop(pair.bind(&[1], &memory)?);
    Ok(())
}

/// Unbound, but a socket still holds tokens: the module has to stay until they are returned.
fn rmmod_with_tokens_held() -> Outcome {
    if provider::under_test() == Provider::Builtin {
        return skip(NOT_A_MODULE);
    }
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[1], &memory)?;
    let connection = pair.connect_to_queue(Ip::V4, 5001, 1)?;
    traffic::send(&connection.tx, 0, 8192, 8192)?;
    let mut receiver = devmem::Receiver::new(&connection.rx);
    let tokens: Vec<_> = receiver.recv()?.collect();
    assert!(!tokens.is_empty());

    drop(binding);
    assert_eq!(rmmod(), Err(nix::Error::EAGAIN), "rmmod with tokens held");
    drop(tokens);
    drop(receiver);
    drop(connection);
    rmmod_when_unused();
    insmod()?;
    Ok(())
}

/// Parameters are unsigned numbers of 32 bits.
fn bad_parameters() -> Outcome {
    if provider::under_test() == Provider::Builtin {
        return skip(NOT_A_MODULE);
    }
    rmmod_when_unused();
    for parameters in [
        c"max_tokens=-1",
        c"max_tokens=4294967296",
        c"max_tokens=many",
        c"max_tokens=",
    ] {
        let module = File::open(modules::file(modules::PROVIDER)?)?;
        let loaded = finit_module(&module, parameters, ModuleInitFlags::empty());
        assert_eq!(loaded, Err(nix::Error::EINVAL), "{parameters:?}");
    }
    insmod()?;
    Ok(())
}

/// `devmem_test` while its init waits to be let go.
struct Failing;

impl Drop for Failing {
    fn drop(&mut self) {
        // If it has gone already, so have its parameters.
        let _ = fs::write("/sys/module/devmem_test/parameters/failing", "N");
    }
}

/// A module that registers a provider may fail to begin after that, and is freed then, whoever holds it: until
/// then it serves nobody.
fn init_that_fails() -> Outcome {
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let pair = Pair::new()?;
    odd::unload()?;
    let module = File::open(modules::file(modules::TEST)?)?;
    thread::scope(|scope| -> Outcome {
        let loading = scope.spawn(|| finit_module(&module, c"failing=1", ModuleInitFlags::empty()));
        let failing = Failing;
        provider::wait_for("the provider to be registered", || {
            Ok(devmem::provider::available()?
                .iter()
                .any(|name| name == "failing"))
        });
        let bound = pair.rx.ns.run(|| Ok(pair.request(&[1]).bind(&memory)));
        drop(failing);
        assert_eq!(loading.join().expect("no panic"), Err(nix::Error::EIO));
        let binding = bound??;
        let list = provider::bindings()?.expect("the list of bindings");
        let info = list.iter().find(|info| info.id == binding.id());
        let name = info.map(|info| info.provider.as_str());
        assert_eq!(name, Some(Provider::Builtin.name()));
        Ok(())
    })?;
    devmem::provider::select(provider::under_test().name())?;
    Ok(())
}

/// Bindings stay with the provider that made them, whoever serves new ones.
fn both_providers_at_once() -> Outcome {
    if provider::under_test() == Provider::Builtin {
        return skip(NOT_A_MODULE);
    }
    let memory = DmaBuf::udmabuf(MEMORY)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let ours = pair.bind(&[1], &memory)?;
    devmem::provider::select(Provider::Builtin.name())?;
    let theirs = pair.rx.ns.run(|| Ok(pair.request(&[2]).bind(&memory)))?;
    devmem::provider::select(Provider::Module.name())?;
    let theirs = theirs?;

    for (binding, name) in [(&ours, Provider::Module), (&theirs, Provider::Builtin)] {
        let info = provider::binding(binding.id())?.map(|info| info.provider);
        assert_eq!(info.as_deref(), Some(name.name()));
    }
    for (binding, queue) in [(&ours, 1), (&theirs, 2)] {
        let connection = pair.connect_to_queue(Ip::V4, 5000 + queue as u16, queue)?;
        traffic::send(&connection.tx, 0, 65536, 65536)?;
        let mut reader = Reader::new(&connection.rx, &map, binding.id());
        reader.read_until(65536)?;
        reader.assert_all_device_memory();
    }
    Ok(())
}

/// One connection has tokens of both: they go back together.
fn tokens_of_both_providers() -> Outcome {
    const PORT: u16 = 5000;
    const SEGMENT: usize = 300;
    if provider::under_test() == Provider::Builtin {
        return skip(NOT_A_MODULE);
    }
    let memories = [DmaBuf::udmabuf(MEMORY)?, DmaBuf::udmabuf(MEMORY)?];
    let maps = [memories[0].map()?, memories[1].map()?];
    let pair = Pair::new()?;
    let ours = pair.bind(&[1], &memories[0])?;
    devmem::provider::select(Provider::Builtin.name())?;
    let theirs = pair.rx.ns.run(|| Ok(pair.request(&[2]).bind(&memories[1])));
    devmem::provider::select(Provider::Module.name())?;
    let theirs = theirs??;

    let connection = pair.connect_to_queue(Ip::V4, PORT, 1)?;
    let known = [(ours.id(), &maps[0]), (theirs.id(), &maps[1])];
    let mut probe = Probe::new(&connection.rx, &known);
    for (segment, queue) in [1, 2, 1, 2].into_iter().enumerate() {
        pair.steer_again(PORT, queue)?;
        let sent = segment * SEGMENT;
        traffic::send(&connection.tx, sent as u64, SEGMENT as u64, SEGMENT)?;
        wait_received(&connection.rx, (sent + SEGMENT) as u64);
        probe.receive(&Call::new(SEGMENT)).assert_frags(&[300]);
    }
    let of_module = |token: &&u32| **token >= Provider::Module.first_token();
    assert_eq!(probe.held().iter().filter(of_module).count(), 2);
    probe.give_back();
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        insmod_twice,
        rmmod_while_bound,
        rmmod_with_tokens_held,
        bad_parameters,
        init_that_fails,
        both_providers_at_once,
        tokens_of_both_providers,
    ])
}
