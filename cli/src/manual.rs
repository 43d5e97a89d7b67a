//! `lapidary completions` and `lapidary man`: what shells and `man` read, made from the commands themselves.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use lapidary_runtime::file::whole::Output;

use crate::output::{self, Usage};

/// Print a script that completes commands, options and values in a shell.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    lapidary completions bash > ~/.local/share/bash-completion/completions/lapidary\n  \
    lapidary completions zsh > ~/.zfunc/_lapidary\n  \
    lapidary completions fish > ~/.config/fish/completions/lapidary.fish")]
pub(crate) struct CompletionsArgs {
    /// Shell to complete in
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Print a man page, or write all of them.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary man | man -l -\n  lapidary man run | man -l -\n  \
    lapidary man -o ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Command whose page is printed [default: the overview]
    #[arg(value_name = "COMMAND", conflicts_with = "output")]
    command: Option<String>,
    /// Folder to write all pages to: lapidary.1, lapidary-run.1, ...
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Prints the script.
pub(crate) fn completions(args: &CompletionsArgs, mut root: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut root, "lapidary", &mut script);
    output::print(&String::from_utf8(script)?)
}

/// Prints a page, or writes all.
pub(crate) fn man(args: &ManArgs, mut root: Command) -> Result<()> {
    root.build();
    let Some(folder) = &args.output else {
        let command = match &args.command {
            None => &root,
            Some(name) => root.find_subcommand(name).ok_or_else(|| {
                let names = root.get_subcommands().map(Command::get_name).collect::<Vec<_>>().join(", ");
                Usage::new(anyhow!("no command {name:?}: expected one of {names}"))
            })?,
        };
        return output::print(&String::from_utf8(page(command)?.1)?);
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for command in std::iter::once(&root).chain(root.get_subcommands()) {
        let (name, page) = page(command)?;
        let path = folder.join(name);
        let failed = || format!("cannot write {}", path.display());
        let mut file = Output::create(&path).with_context(failed)?;
        file.write_all(&page).and_then(|()| file.finish().map(drop)).with_context(failed)?;
    }
    Ok(())
}

/// A command's page and its file's name.
fn page(command: &Command) -> Result<(String, Vec<u8>)> {
    let man = Man::new(command.clone())
        .source(concat!("lapidary ", env!("CARGO_PKG_VERSION")))
        .manual("Lapidary's commands");
    let mut page = Vec::new();
    man.render(&mut page)?;
    Ok((man.get_filename(), page))
}
