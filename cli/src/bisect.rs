//! `lapidary bisect`: which rules take a model's logits away from those without rules.
//!
//! In: a model, tokens, a tolerance. Out: the smallest set of rules, by delta debugging (Zeller and Hildebrandt 2002),
//! with which the logits leave the tolerance; without any of them they do not. All in 32-bit floats, so that rounding
//! of activations does not hide a rule. Exit code 1 if there is such a set.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};
use lapidary_codegen::Error as CodegenError;
use lapidary_passes::Error;
use serde_json::json;

use crate::model::Engine;
use crate::options::ModelArgs;
use crate::output;

/// Find the rewrite rules that change a model's logits.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lapidary bisect\n  lapidary bisect --rules my.rules --tokens 300")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Largest difference of a logit from the one without rules
    #[arg(long, value_name = "X", default_value_t = 1e-3)]
    tolerance: f32,
    /// Random tokens whose logits are compared; more than a local layer's window try its mask
    #[arg(long, value_name = "N", default_value_t = 160, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    tokens: u64,
    /// Seed of the tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Finds them.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.tolerance >= 0.0, "--tolerance is {}: expected 0 or more", args.tolerance);
    let mut trials = Trials::new(args)?;
    let enabled: Vec<String> = args.model.compile.selection()?.enabled().map(String::from).collect();
    let all = trials.difference(&enabled)?;
    if all.worst <= args.tolerance {
        if args.json {
            return output::print_json(
                &json!({ "difference": all.worst, "tolerance": args.tolerance, "guilty": [] }),
            );
        }
        return output::print(&format!(
            "no rule is guilty: with all {} the logits are within {:.1e} of those without, expected {:.1e} at most\n",
            enabled.len(),
            all.worst,
            args.tolerance
        ));
    }
    // Rules that never fire change nothing.
    let suspects = match all.fired {
        Some(fired) => enabled.into_iter().filter(|r| fired.contains(r)).collect(),
        None => enabled,
    };
    let (guilty, worst) = trials.minimise(suspects, all.worst)?;
    if args.json {
        output::print_json(&json!({
            "difference": all.worst,
            "tolerance": args.tolerance,
            "guilty": guilty,
            "guilty_difference": worst,
            "trials": trials.done,
        }))?;
    } else {
        let mut text = String::new();
        for name in &guilty {
            let rule = trials.args.model.compile.selection()?;
            let class =
                rule.rules().find(name).map_or(String::new(), |r| format!("{}  {}", r.class, r.algebra));
            text.push_str(&format!("{name}  {class}\n"));
        }
        output::print(&text)?;
    }
    let one = guilty.len() == 1;
    let effect = if worst.is_finite() {
        format!(
            "{} the logits {worst:.1e} away from those without rules, expected {:.1e} at most",
            if one { "takes" } else { "together take" },
            args.tolerance
        )
    } else {
        let verb = if one { "leads" } else { "together lead" };
        format!("{verb} to logits that are no numbers, or to none at all")
    };
    bail!("{} {effect} ({} trials)", guilty.join(", "), trials.done)
}

struct Trials<'a> {
    args: &'a Args,
    ids: Vec<u32>,
    reference: Vec<f32>,
    /// Models compiled so far.
    done: usize,
}

/// What a set of rules came to.
struct Difference {
    /// The largest; infinite if a rule is unsound or a logit is no number.
    worst: f32,
    /// The rules that fired, if it compiled.
    fired: Option<BTreeSet<String>>,
}

impl<'a> Trials<'a> {
    fn new(args: &'a Args) -> Result<Trials<'a>> {
        let mut trials = Trials { args, ids: vec![], reference: vec![], done: 0 };
        let (reference, _) = trials.logits(&[])?;
        trials.reference = reference;
        Ok(trials)
    }

    /// The logits of every token with these rules, and which of them fired.
    fn logits(&mut self, rules: &[String]) -> Result<(Vec<f32>, BTreeSet<String>)> {
        self.done += 1;
        let mut args = self.args.model.clone();
        args.compile = args.compile.exactly(rules, self.args.tokens as usize);
        let mut engine = Engine::new(&args)?;
        if self.ids.is_empty() {
            // A linear congruential generator (Knuth's MMIX).
            let mut state = self.args.seed;
            let vocab = engine.model.config().vocab_size as u64;
            let next = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 33) % vocab) as u32
            };
            self.ids = (0..self.args.tokens).map(next).collect();
        }
        let mut all = Vec::new();
        engine.session.score(&self.ids, &mut |_, row| all.extend_from_slice(row))?;
        let fired =
            engine.functions().iter().flat_map(|f| f.saturation.fired.iter().map(|(rule, _)| rule.clone()));
        Ok((all, fired.collect()))
    }

    fn difference(&mut self, rules: &[String]) -> Result<Difference> {
        let (logits, fired) = match self.logits(rules) {
            Ok(made) => made,
            Err(error) => {
                let unsound = matches!(
                    error.downcast_ref(),
                    Some(lapidary::Error::Compiler(CodegenError::Passes(Error::Unsound { .. })))
                );
                return if unsound {
                    Ok(Difference { worst: f32::INFINITY, fired: None })
                } else {
                    Err(error)
                };
            }
        };
        let worst = logits.iter().zip(&self.reference).fold(0f32, |worst, (a, b)| {
            let difference = (a - b).abs();
            if difference.is_nan() { f32::INFINITY } else { worst.max(difference) }
        });
        Ok(Difference { worst, fired: Some(fired) })
    }

    /// The smallest subset that leaves the tolerance, none of whose members can be left out; and its difference.
    fn minimise(&mut self, mut rules: Vec<String>, mut worst: f32) -> Result<(Vec<String>, f32)> {
        let mut parts = 2;
        while rules.len() > 1 {
            let size = rules.len().div_ceil(parts);
            let chunks: Vec<Vec<String>> = rules.chunks(size).map(<[String]>::to_vec).collect();
            let mut smaller = None;
            for chunk in &chunks {
                let d = self.difference(chunk)?;
                if d.worst > self.args.tolerance {
                    smaller = Some((chunk.clone(), 2, d.worst));
                    break;
                }
            }
            if smaller.is_none() && parts > 2 {
                for at in 0..chunks.len() {
                    let others = chunks.iter().enumerate().filter(|(i, _)| *i != at);
                    let rest: Vec<String> = others.flat_map(|(_, c)| c.clone()).collect();
                    let d = self.difference(&rest)?;
                    if d.worst > self.args.tolerance {
                        smaller = Some((rest, parts - 1, d.worst));
                        break;
                    }
                }
            }
            match smaller {
                Some((fewer, next, difference)) => (rules, parts, worst) = (fewer, next.max(2), difference),
                None if parts >= rules.len() => break,
                None => parts = (2 * parts).min(rules.len()),
            }
        }
        Ok((rules, worst))
    }
}
