//! The `lapidary` command: runs Gemma on CPUs through an e-graph compiler.
//!
//! In: arguments. Out: results on stdout; notes, warnings, progress bars and errors on stderr. Exit code 0 is success,
//! 1 a failure (one line, `error: ...`), 2 a mistake in the arguments, whatever the model, 128 and its number a signal
//! that ended it (130: Ctrl-C). A reader that closes stdout early ends the command quietly.

mod bench;
mod bisect;
mod call;
mod chat;
mod check_rules;
mod choices;
mod compile;
mod cpus;
mod dialog;
mod eval;
mod explain;
mod flags;
mod functions;
mod generation;
mod hints;
mod history;
mod hub;
mod inspect;
mod interrupt;
mod keyboard;
mod lines;
mod logits;
mod manual;
mod model;
mod opt;
mod options;
mod output;
mod price;
mod quantize;
mod report;
mod residence;
mod rules;
mod run;
mod sampling;
mod serve;
mod serving;
mod speculation;
mod state;
mod stats;
mod synth;
mod tokenize;
mod trial;
mod trust;
mod verify;
mod weights;
mod why_not;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use lapidary_passes::rules::RuleError;
use lapidary_runtime::fault;
use lapidary_runtime::file::inputs;
use lapidary_runtime::memory::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Run Gemma on CPUs through an e-graph compiler.
#[derive(Parser)]
#[command(
    name = "lapidary",
    version,
    arg_required_else_help = true,
    after_help = "Example:\n  lapidary run \"It is a truth universally acknowledged\""
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Chat(chat::Args),
    Serve(serve::Args),
    Pull(hub::pull::Args),
    List(hub::list::Args),
    Rm(hub::rm::Args),
    Logits(logits::Args),
    Tokenize(tokenize::Args),
    Call(call::Args),
    Compile(compile::Args),
    Verify(verify::Args),
    Bench(bench::Args),
    Calibrate(price::calibrate::Args),
    Eval(eval::Args),
    Inspect(inspect::Args),
    Synth(synth::Args),
    Quantize(quantize::Args),
    Opt(opt::Args),
    Explain(explain::Args),
    WhyNot(why_not::Args),
    Rules(rules::Args),
    Report(report::Args),
    CheckRules(check_rules::Args),
    Bisect(bisect::Args),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}

/// The exit code of a mistake in the arguments; clap's own.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    fault::install();
    inputs::watch();
    let cli = flags::with_numbers_below_zero(Cli::command());
    let args = match flags::translate(&cli, std::env::args_os().collect()) {
        Ok(args) => args,
        Err(line) => {
            output::note("error", &line);
            return ExitCode::from(USAGE);
        }
    };
    let parsed = Cli::from_arg_matches(&cli.get_matches_from(args));
    let command = parsed.unwrap_or_else(|e| e.exit()).command;
    interrupt::install();
    let result = match command {
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Pull(args) => hub::pull::run(&args),
        Command::List(args) => hub::list::run(&args),
        Command::Rm(args) => hub::rm::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Call(args) => call::run(&args),
        Command::Compile(args) => compile::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Calibrate(args) => price::calibrate::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Opt(args) => opt::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::WhyNot(args) => why_not::run(&args),
        Command::Rules(args) => rules::run(&args),
        Command::Report(args) => report::run(&args),
        Command::CheckRules(args) => check_rules::run(&args),
        Command::Bisect(args) => bisect::run(&args),
        Command::Completions(args) => manual::completions(&args, Cli::command()),
        Command::Man(args) => manual::man(&args, Cli::command()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<interrupt::Interrupted>() => ExitCode::from(interrupt::EXIT_CODE),
        Err(error) => {
            output::note("error", &output::one_line(&error));
            if let Some(excerpt) = error.chain().find_map(|e| e.downcast_ref::<RuleError>()) {
                output::say(&excerpt.excerpt());
            }
            if error.is::<output::Usage>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}
