// SPDX-License-Identifier: GPL-2.0

//! Makes devmem-cat's manual pages and shell completions out of its command line:
//! `cargo run -p devmem-cat --example pages -- DIR`, DIR being what `share` is when installed.

// What the program does with its arguments is no matter here.
#[expect(dead_code)]
#[path = "../src/args.rs"]
mod args;

use std::env;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Command;
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::Roff;
use clap_mangen::roff::bold;
use clap_mangen::roff::roman;

use crate::args::Cli;

/// Exit statuses, and when.
const STATUSES: &[(&str, &str)] = &[
    ("0", "Everything was transferred, or done."),
    (
        "1",
        "It was not. What a receiver has written is a part of the whole.",
    ),
    ("2", "The command line is wrong."),
    (
        "130",
        "A signal ended it. With the second signal it ends at once, with the third without undoing anything.",
    ),
];

/// Command lines, and what they do. The first is on the machine whose NIC does device memory.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "devmem-cat receive --listen 192.0.2.1:5201 --interface eth0 --queue 4 --steer --output file",
        "Receives a file into a dma-buf that is bound to queue 4 of eth0.",
    ),
    (
        "devmem-cat send --connect 192.0.2.1:5201 --interface eth1 --input file",
        "Sends it from a dma-buf on another machine.",
    ),
    (
        "devmem-cat receive --listen 127.0.0.1:5201 --share /run/place --output file",
        "Receives from the same machine, in the memory of the sender, which passes it at /run/place.",
    ),
    (
        "devmem-cat send --connect 127.0.0.1:5201 --share /run/place --input file",
        "Sends it there, by lo.",
    ),
    (
        "devmem-cat cleanup --interface eth0",
        "Removes what a receiver that was killed has left on eth0; the next receiver does so, too.",
    ),
    (
        "devmem-cat status --follow",
        "Lists what is bound in this network namespace, and tells when a binding comes, goes, or has no buffer left.",
    ),
    (
        "devmem-cat flush 3",
        "Aborts the connections that hold buffers of binding 3, and do not give them back.",
    ),
];

fn main() -> ExitCode {
    let Some(share) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: pages DIR");
        return ExitCode::from(2);
    };
    match pages(&share).and_then(|()| completions(&share)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("pages: {}: {err}", share.display());
            ExitCode::FAILURE
        }
    }
}

/// A page for the program, and one for each of its commands.
fn pages(share: &Path) -> io::Result<()> {
    let dir = share.join("man/man1");
    fs::create_dir_all(&dir)?;
    // Its help is --help, and commands are called as they are typed.
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    page(&dir, &program, &program)?;
    program
        .get_subcommands()
        .try_for_each(|command| page(&dir, &program, command))
}

/// The name of its page: what is typed, with dashes.
fn page_of(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

fn page(dir: &Path, program: &Command, command: &Command) -> io::Result<()> {
    let name = page_of(command);
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        // None: the same source makes the same page. What is empty would leave its place to the next.
        .date(" ")
        .source(concat!("devmem-provider ", env!("CARGO_PKG_VERSION")))
        .manual("User Commands");
    let mut file = File::create(dir.join(format!("{name}.1")))?;
    writeln!(file, ".\\\" SPDX-License-Identifier: GPL-2.0")?;
    man.render_title(&mut file)?;
    man.render_name_section(&mut file)?;
    man.render_synopsis_section(&mut file)?;
    man.render_description_section(&mut file)?;
    man.render_options_section(&mut file)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut file)?;
    }
    more(program, name).to_writer(&mut file)
}

/// What the command line does not say of itself.
fn more(program: &Command, page: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (status, when) in STATUSES {
        roff.control("TP", [])
            .text([bold(*status)])
            .text([roman(*when)]);
    }
    roff.control("SH", ["EXAMPLES"]);
    for (line, what) in EXAMPLES {
        roff.control("TP", [])
            .text([bold(*line)])
            .text([roman(*what)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    let others = program
        .get_subcommands()
        .chain([program])
        .map(page_of)
        .filter(|&name| name != page)
        .map(|name| format!("{name}(1)"))
        .chain(["ethtool(8)".to_string()])
        .collect::<Vec<_>>();
    roff.text([roman(others.join(", "))]);
    roff
}

/// Where shells look for what completes a command.
fn completions(share: &Path) -> io::Result<()> {
    let mut program = Cli::command();
    for (shell, file) in [
        (Shell::Bash, "bash-completion/completions/devmem-cat"),
        (Shell::Zsh, "zsh/site-functions/_devmem-cat"),
        (Shell::Fish, "fish/vendor_completions.d/devmem-cat.fish"),
    ] {
        let path = share.join(file);
        fs::create_dir_all(path.parent().unwrap_or(share))?;
        clap_complete::generate(shell, &mut program, "devmem-cat", &mut File::create(path)?);
    }
    Ok(())
}
