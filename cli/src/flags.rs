//! The flags that users of llama.cpp, ollama and transformers bring along: what we call them, or why there is none.
//!
//! In: the arguments as typed. Out: the same with others' flags replaced by ours, or one line that says what is ours
//! instead. A name that the command itself has is never touched, nor is an option's value, nor anything after `--`.

use std::ffi::OsString;

use clap::{Arg, Command};

/// Names of one flag elsewhere, and ours.
struct Flag {
    /// Its names, without values.
    theirs: &'static [&'static str],
    ours: Ours,
}

/// What a flag is here.
enum Ours {
    /// The first of these that the command has.
    Is(&'static [&'static str]),
    /// Nothing: what to do instead.
    None(&'static str),
}

const fn is(theirs: &'static [&'static str], ours: &'static [&'static str]) -> Flag {
    Flag { theirs, ours: Ours::Is(ours) }
}

const fn none(theirs: &'static [&'static str], instead: &'static str) -> Flag {
    Flag { theirs, ours: Ours::None(instead) }
}

/// Spellings with `_` for `-` need no row.
#[rustfmt::skip]
const FLAGS: &[Flag] = &[
    // llama-cli and llama-bench
    is(&["-p"], &["prompt", "prompt-tokens"]),
    is(&["-f"], &["file"]),
    is(&["-c", "--ctx-size"], &["context"]),
    is(&["-t"], &["threads"]),
    is(&["-s"], &["seed"]),
    is(&["-n", "--predict", "--n-predict", "--n-gen"], &["tokens", "gen-tokens"]),
    is(&["--n-prompt"], &["prompt-tokens"]),
    is(&["-d", "--n-depth"], &["depth"]),
    is(&["-r", "--reverse-prompt", "--repetitions"], &["stop", "repeat"]),
    is(&["-b", "-ub", "--batch-size", "--ubatch-size"], &["chunk"]),
    is(&["-sys", "--system-prompt"], &["system"]),
    is(&["-no-cnv", "--no-conversation"], &["raw"]),
    is(&["-st", "--single-turn", "--jinja"], &["chat"]),
    is(&["--perf", "--show-timings", "--verbose"], &["stats"]),
    none(&["-cnv", "--conversation", "-i", "--interactive", "-if", "--interactive-first"],
        "`lapidary chat` holds conversations; `lapidary run --chat` puts one prompt into the template"),
    none(&["-ngl", "--gpu-layers", "--n-gpu-layers", "-dev", "--device", "-sm", "--split-mode", "-mg", "--main-gpu",
        "-ts", "--tensor-split"],
        "lapidary runs on CPUs; leave it out"),
    none(&["-e", "--escape", "--no-escape"], "prompts are taken as they are; a shell's $'a\\nb' makes line ends"),
    none(&["-fa", "--flash-attn"], "attention is always fused; leave it out"),
    none(&["-tb", "--threads-batch"], "--threads is for prompts and answers alike"),
    none(&["-ctk", "--cache-type-k", "-ctv", "--cache-type-v"],
        "--kv-cache f32, bf16 or int8 is for keys and values alike"),
    none(&["--mlock", "-dio", "--direct-io", "-ndio", "--no-direct-io"],
        "weights are copied to memory after the first step, with --no-mmap at once"),
    none(&["--numa", "--cpu-mask", "--cpu-range", "--cpu-strict", "--prio", "--poll"],
        "`taskset` and `numactl` place threads; --threads says how many"),
    none(&["--color", "-co", "--simple-io", "--no-display-prompt", "--no-warmup", "--warmup", "--log-disable",
        "--no-perf"],
        "that is so anyhow: output is plain text without the prompt; leave it out"),
    is(&["-hf", "-hfr", "--hf-repo"], &["model"]),
    none(&["-hff", "--hf-file"], "-m OWNER/REPO:FILE names a file of a repository"),
    none(&["-mu", "--model-url"], "-m OWNER/REPO[:TAG] takes models of the Hugging Face hub by name"),
    none(&["-hft", "--hf-token"], "the environment variable HF_TOKEN holds the token"),
    none(&["--offline"], "the environment variable HF_HUB_OFFLINE=1 says so"),
    none(&["--keep", "--context-shift", "--no-context-shift"],
        "a conversation leaves out its oldest turns, never its instructions"),
    none(&["--chat-template", "--chat-template-file"],
        "the template is the model's: chat_template.jinja in its folder"),
    none(&["-sysf", "--system-prompt-file"], "--system \"$(cat FILE)\""),
    none(&["--prompt-cache", "--prompt-cache-all"],
        "prompts are not kept between runs; `lapidary chat` keeps them within one"),
    none(&["--lora-scaled"], "--lora FOLDER:SCALE; several are several --lora"),
    none(&["--control-vector"], "there are none; --lora merges adapters"),
    none(&["--grammar", "--grammar-file", "-j", "--json-schema", "--logit-bias", "-l"],
        "text is not constrained; --stop ends it"),
    none(&["--mirostat", "--typical", "--typical-p", "--top-nsigma", "--xtc-probability", "--xtc-threshold",
        "--dynatemp-range",
        "--dry-multiplier", "--presence-penalty", "--frequency-penalty", "--samplers", "--sampling-seq"],
        "tokens are chosen by --temp, --top-k, --top-p, --min-p and --repeat-penalty"),
    none(&["--rope-scaling", "--rope-scale", "--rope-freq-base", "--rope-freq-scale", "--yarn-orig-ctx"],
        "RoPE is as config.json says"),
    // ollama
    none(&["--format"], "--json prints one object with the text; text is not constrained"),
    none(&["--keepalive"],
        "nothing stays behind: a model starts in milliseconds from an artifact (`lapidary compile`)"),
    none(&["--nowordwrap", "--insecure", "--think", "--hidethinking"], "leave it out"),
    // transformers
    is(&["--temperature"], &["temp"]),
    is(&["--max-new-tokens", "--max-tokens"], &["tokens"]),
    is(&["--repetition-penalty"], &["repeat-penalty"]),
    is(&["--stop-strings", "--stop-string"], &["stop"]),
    is(&["--model-name-or-path"], &["model"]),
    none(&["--do-sample", "--num-beams"], "--temp above 0 draws tokens, --temp 0 takes the most likely one"),
    none(&["--torch-dtype", "--dtype", "--load-in-4bit", "--load-in-8bit"], "--weights f32, bf16, f16, q8 or q4"),
    none(&["--max-length"], "--tokens counts what is generated, --context all"),
];

/// A command whose options take numbers below 0 for values: what is wrong with one, its parser says.
pub(crate) fn with_numbers_below_zero(command: Command) -> Command {
    let option = |arg: Arg| match arg.get_action().takes_values() && !arg.is_positional() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(option).mut_subcommands(with_numbers_below_zero)
}

/// The arguments (the program's name first) with others' flags replaced by ours.
///
/// # Errors
/// One line for a flag that we have nothing for.
pub(crate) fn translate(root: &Command, args: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let mut command = root;
    let mut out = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    out.extend(args.next());
    let mut is_value = false;
    for arg in args.by_ref() {
        if arg == "--" {
            out.push(arg);
            break;
        }
        let Some(text) = arg.to_str().filter(|_| !std::mem::take(&mut is_value)) else {
            out.push(arg);
            continue;
        };
        if !text.starts_with('-') || text == "-" {
            if let Some(sub) = command.find_subcommand(text) {
                command = sub;
            }
            out.push(arg);
            continue;
        }
        let (name, value) = text.split_once('=').map_or((text, None), |(n, v)| (n, Some(v)));
        let (found, value) = match name.strip_prefix("--") {
            Some(name) => (long(command, name)?, value),
            None => short(command, name, value)?,
        };
        let Some(found) = found else {
            out.push(arg);
            continue;
        };
        is_value = found.get_action().takes_values() && value.is_none();
        let name = found.get_long().unwrap_or_default();
        match (found.get_long(), value) {
            (Some(_), Some(value)) => out.push(format!("--{name}={value}").into()),
            (Some(_), None) => out.push(format!("--{name}").into()),
            (None, _) => out.push(arg),
        }
    }
    out.extend(args);
    Ok(out)
}

/// The option that `--name` is: the command's own, or what another's is here.
fn long<'a>(command: &'a Command, name: &str) -> Result<Option<&'a Arg>, String> {
    let name = name.replace('_', "-");
    let own = own_long(command, &name);
    if own.is_some() { Ok(own) } else { theirs(command, &format!("--{name}")) }
}

/// The option that `-name` is, and its value, which may be attached.
fn short<'a, 't>(
    command: &'a Command,
    name: &'t str,
    value: Option<&'t str>,
) -> Result<(Option<&'a Arg>, Option<&'t str>), String> {
    // A name of several letters, such as `-ngl`, comes before a short name with its value.
    if name.len() > 2
        && let Some(found) = theirs(command, name)?
    {
        return Ok((Some(found), value));
    }
    let (letter, rest) = match name[1..].chars().next() {
        Some(letter) if !letter.is_ascii_digit() => (letter, &name[1 + letter.len_utf8()..]),
        _ => return Ok((None, None)),
    };
    let own = command.get_arguments().find(|a| a.get_short() == Some(letter));
    let attached = value.or(Some(rest)).filter(|v| !v.is_empty());
    match own {
        Some(arg) if attached.is_none() => Ok((Some(arg), None)),
        // Its value is attached, or flags are bundled: the parser's business.
        Some(_) => Ok((None, None)),
        None if rest.is_empty() || value.is_none() => {
            let found = theirs(command, &name[..1 + letter.len_utf8()])?;
            Ok((found.filter(|a| rest.is_empty() || a.get_action().takes_values()), attached))
        }
        None => Ok((None, None)),
    }
}

fn own_long<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|a| a.get_long() == Some(name))
}

/// What another program's flag is here: nothing if it is unknown, or unknown to this command.
fn theirs<'a>(command: &'a Command, name: &str) -> Result<Option<&'a Arg>, String> {
    let Some(flag) = FLAGS.iter().find(|f| f.theirs.contains(&name)) else { return Ok(None) };
    match flag.ours {
        Ours::Is(ours) => Ok(ours.iter().find_map(|ours| own_long(command, ours))),
        Ours::None(instead) => Err(format!("unexpected argument `{name}`: {instead}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let option = |name: &'static str| Arg::new(name).long(name);
        let run = Command::new("run")
            .args(
                ["prompt", "file", "context", "threads", "seed", "temp", "top-k", "system", "stop", "model"]
                    .map(option),
            )
            .arg(option("tokens").short('n'))
            .arg(option("raw").action(clap::ArgAction::SetTrue))
            .arg(Arg::new("PROMPT"));
        let bench = Command::new("bench")
            .args(["prompt-tokens", "gen-tokens", "depth", "repeat", "dtype"].map(option));
        Command::new("lapidary").subcommand(run).subcommand(bench)
    }

    fn translated(line: &str) -> Result<String, String> {
        let args = std::iter::once("lapidary").chain(line.split(' ')).map(OsString::from).collect();
        let out = translate(&command(), args)?;
        Ok(out[1..].iter().map(|a| a.to_str().unwrap_or("?")).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn others_flags_become_ours() {
        for (theirs, ours) in [
            ("run -c 64 -t 2 -s -1 hi", "run --context 64 --threads 2 --seed -1 hi"),
            ("run --ctx-size=64 --temperature 0 --top_k 3", "run --context=64 --temp 0 --top-k 3"),
            ("run --n_predict -1 --predict 3 -n 4", "run --tokens -1 --tokens 3 --tokens 4"),
            ("run -c64 -n64 -sys be -no-cnv -r END", "run --context=64 -n64 --system be --raw --stop END"),
            (
                "bench -p 8 -n 4 -r 1 -d 3 --dtype x",
                "bench --prompt-tokens 8 --gen-tokens 4 --repeat 1 --depth 3 --dtype x",
            ),
            // Values, what follows `--`, and what nobody knows stay.
            ("run --stop -c --system -ngl -p -t x", "run --stop -c --system -ngl --prompt -t x"),
            ("run -- -c -ngl", "run -- -c -ngl"),
            ("run --what_ever -x - -5", "run --what_ever -x - -5"),
            ("bench -c 64", "bench -c 64"),
        ] {
            assert_eq!(translated(theirs).as_deref(), Ok(ours));
        }
    }

    #[test]
    fn what_we_have_nothing_for_is_told_in_one_line() {
        for (flag, ours) in [
            ("-ngl", "CPUs"),
            ("--n_gpu_layers=99", "CPUs"),
            ("-fa", "fused"),
            ("-cnv", "lapidary chat"),
            ("-e", "$'"),
        ] {
            let line = translated(&format!("run {flag}")).expect_err("refused");
            assert!(line.contains(ours) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn names_are_listed_once() {
        let mut names: Vec<_> = FLAGS.iter().flat_map(|f| f.theirs).collect();
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(names.iter().all(|n| n.starts_with('-') && !n.contains('_')));
    }
}
