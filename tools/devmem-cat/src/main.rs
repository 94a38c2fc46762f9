// SPDX-License-Identifier: GPL-2.0

//! netcat for device memory: what arrives lies in a dma-buf, what is sent comes from one.

// A number that does not fit is an error, never cut.
#![warn(clippy::cast_possible_truncation)]
#![warn(clippy::cast_possible_wrap)]
#![warn(clippy::cast_sign_loss)]

mod args;
mod bulk;
mod claim;
mod connection;
mod error;
mod flush;
mod holders;
mod memory;
mod output;
mod receive;
mod send;
mod share;
mod signal;
mod stats;
mod status;
mod tell;
mod undo;

use std::process::ExitCode;

use clap::CommandFactory;
use clap::Parser;
use clap::error::ErrorKind;

use crate::args::Cli;
use crate::args::Command;
use crate::error::Fallible;

/// Undoes what is to be undone when this is dropped, also by a panic.
struct Undo;

impl Drop for Undo {
    fn drop(&mut self) {
        undo::all();
    }
}

fn run(command: &Command) -> Fallible<()> {
    let _undo = Undo;
    signal::end_by_it()?;
    match command {
        Command::Receive(args) => receive::run(args),
        Command::Send(args) => send::run(args),
        Command::Serve(args) => bulk::serve(args),
        Command::Put(args) => bulk::put(args),
        Command::Get(args) => bulk::get(args),
        Command::Cleanup(args) => undo::clean_up(&args.interface),
        Command::Status(args) => status::run(args),
        Command::Flush(args) => flush::run(args),
    }
}

fn main() -> ExitCode {
    tell::also_for_the_library();
    let command = Cli::parse().command;
    if let Err(why) = command.check() {
        Cli::command()
            .error(ErrorKind::ArgumentConflict, why)
            .exit();
    }
    match run(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) if signal::came() => {
            tell::say(format_args!("interrupted ({err})"));
            ExitCode::from(signal::STATUS)
        }
        Err(err) => {
            tell::say(err);
            ExitCode::FAILURE
        }
    }
}
