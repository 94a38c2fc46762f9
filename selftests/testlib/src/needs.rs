// SPDX-License-Identifier: GPL-2.0

//! What tests need of the kernel's configuration and of the machine, and whether it is there.
//!
//! `selftests/needs` says it.

use std::env;
use std::path::Path;

use crate::config;
use crate::hardware;
use crate::modules;

const NEEDS: &str = include_str!("../../needs");

/// Whether a program is in PATH.
fn is_installed(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// What is missing of a need, as a reason to skip.
fn lack(need: &str) -> Option<String> {
    if let Some(module) = need.strip_prefix('@') {
        let there = modules::is_there(module) || modules::file(module).is_ok();
        return (!there).then(|| format!("there is no module {module}"));
    }
    if let Some(program) = need.strip_prefix('$') {
        return (!is_installed(program)).then(|| format!("{program} is not installed"));
    }
    if need.starts_with('/') {
        return (!Path::new(need).exists()).then(|| format!("this kernel has no {need}"));
    }
    let options = config::options()?;
    let (name, value) = match need.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (need, None),
    };
    match options.get(name) {
        None => Some(format!("this kernel lacks CONFIG_{name}")),
        Some(has) if value.is_some_and(|value| value != has) => Some(format!(
            "this kernel has CONFIG_{name}={has}, not {}",
            value.unwrap_or_default()
        )),
        Some(_) => None,
    }
}

/// Each need of what is called so: `*`, a program, or program/test.
fn needs_of(whom: &str) -> impl Iterator<Item = &'static str> {
    NEEDS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::split_whitespace)
        .filter_map(move |mut words| (words.next()? == whom).then_some(words))
        .flatten()
}

/// Why nothing of a program can run here.
pub(crate) fn of_program(program: &str) -> Option<String> {
    let netdevsim = match hardware::given() {
        Ok(Some(_)) => None,
        _ => lack("NETDEVSIM"),
    };
    netdevsim.or_else(|| needs_of("*").chain(needs_of(program)).find_map(lack))
}

/// Why a test of a program that can run cannot.
pub(crate) fn of_test(program: &str, test: &str) -> Option<String> {
    needs_of(&format!("{program}/{test}")).find_map(lack)
}
