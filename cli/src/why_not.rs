//! `lapidary why-not`: whether a rule fired, and if not, what stood in its way.
//!
//! In: a rule's name; a model's module, or a file of the tensor language. Out: for each function how often the rule
//! fired, the matches that its condition refused with the values seen, or the longest prefixes of its pattern, as text
//! or JSON.

use anyhow::{Result, anyhow, ensure};
use lapidary::why_not::{Answer, answers};
use serde_json::Value;

use crate::functions::FunctionArgs;
use crate::output::{self, Usage};

/// Show why a rule did not fire: the condition that failed, or where its pattern stopped.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary why-not --fn layer_global window-mask\n  \
    lapidary why-not --rules my.rules my-rule graph.ir --json")]
pub(crate) struct Args {
    #[command(flatten)]
    of: FunctionArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The rule; and a file of the tensor language, which ends in `.ir` or is `-` for stdin
    #[arg(value_name = "RULE] [FILE.ir", num_args = 1..=2, required = true)]
    what: Vec<String>,
}

/// Prints the answer.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (file, names) = FunctionArgs::file(&args.what);
    let [name] = &names[..] else {
        return Err(Usage::new(anyhow!("expected one RULE, found {}", names.len())).into());
    };
    let selection = args.of.compile.selection()?;
    if selection.rules().find(name).is_none() {
        let known: Vec<&str> = selection.rules().rules().map(|r| r.name.as_str()).collect();
        let error = anyhow!("unknown rule `{name}`: expected one of {}", known.join(", "));
        return Err(Usage::new(error).into());
    }
    let source = args.of.source(file)?;
    let functions = args.of.functions(&source)?;
    ensure!(!functions.is_empty(), "{}: expected a function, found none", source.name);
    let answers = answers(&functions, &selection, name)?;
    for warning in answers.iter().filter_map(|a| a.warning.as_ref()) {
        output::note("warning", warning);
    }
    if args.json {
        output::print_json(&Value::Array(answers.iter().map(Answer::json).collect()))
    } else {
        output::print(&answers.iter().map(Answer::text).collect::<Vec<_>>().join("\n"))
    }
}
