// SPDX-License-Identifier: GPL-2.0

//! netcat for device memory: what arrives lies in a dma-buf, what is sent comes from one.

// A number that does not fit is an error, never cut.
#![warn(clippy::cast_possible_truncation)]
#![warn(clippy::cast_possible_wrap)]
#![warn(clippy::cast_sign_loss)]

mod args;
mod connection;
mod error;
mod log;
mod output;
mod receive;
mod send;
mod stats;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::args::Command;

fn main() -> ExitCode {
    log::to_stderr();
    let result = match Cli::parse().command {
        Command::Receive(args) => receive::run(&args),
        Command::Send(args) => send::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) if connection::interrupted() => {
            eprintln!("devmem-cat: interrupted ({err})");
            ExitCode::from(130)
        }
        Err(err) => {
            eprintln!("devmem-cat: {err}");
            ExitCode::FAILURE
        }
    }
}
