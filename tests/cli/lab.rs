//! The fusion lab from the command line: rules of a file, tried and bisected. `soundness` has how they are checked.

use crate::command::{difference, lapidary, lapidary_with, logits, name};

/// A file of `tests/rule_files`.
pub(crate) fn file(file: &str) -> String {
    format!("{}/../tests/rule_files/{file}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn built_in_rules_print_as_files() {
    let all = lapidary(&["rules", "--json"]).json();
    let mut texts = String::new();
    for rule in all.as_array().unwrap() {
        texts.push_str(&lapidary(&["rules", "--show", rule["name"].as_str().unwrap()]).ok());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.rules");
    std::fs::write(&path, &texts).unwrap();
    let listed = lapidary(&["rules", "--rules", name(&path), "--json"]).json();
    assert_eq!(listed.as_array().unwrap().len(), all.as_array().unwrap().len());
    assert!(listed.as_array().unwrap().iter().all(|r| r["group"] == "user"), "{listed}");
    // Rules of the same names and text compile to the same.
    let code = |s: &str| s.lines().filter(|l| !l.starts_with(';')).collect::<Vec<_>>().join("\n");
    let fused = lapidary(&["opt", "--fn", "layer_local"]).ok();
    assert_eq!(code(&lapidary(&["opt", "--fn", "layer_local", "--rules", name(&path)]).ok()), code(&fused));
}

#[test]
fn mistakes_in_rule_files_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.rules");
    let head = "rule r exact \"a\" {\n";
    let cases = [
        ("rule", "line 1, column 5: expected a rule's name"),
        ("rule R exact \"a\" {}", "line 1, column 6: expected a rule's name"),
        ("rule r sound \"a\" {}", "line 1, column 8: expected a class"),
        ("rule r exact a {}", "line 1, column 14: expected the rule's algebra in quotes"),
        ("rule r exact \"a {}", "line 1, column 14: the quote does not end"),
        ("{head}(tanhh ?x) => ?x }", "line 2, column 2: unknown operator `tanhh`; did you mean `tanh`?"),
        ("{head}(tanh ?x ?y) => ?x }", "line 2, column 2: `tanh` takes 1 operand, found 2"),
        ("{head}(tanh ?x) => ?y }", "line 2, column 14: `?y` is bound by no predicate"),
        ("{head}(tanh ?x) => ?x if pretty(?x) }", "line 2, column 20: unknown predicate `pretty`"),
        ("{head}(tanh ?x) => ?x if constnt(?x) }", "did you mean `constant`?"),
        ("{head}(tanh ?x) => ?x if constant(?z) }", "applies to no left side"),
        ("{head}(tanh ?x) => ?x if ?x: f33[] }", "line 2, column 24: expected `any`, `float`, a dtype"),
        ("{head}(sum ?x [T]) => ?x }", "line 2, column 9: `sum` takes an integer here, found dims"),
        ("{head}?x => (tanh ?x) }", "line 2, column 1: expected a left side"),
        (
            "{head}native nothing }",
            "line 2, column 8: expected a native search (merge-linears, fuse-elements,",
        ),
        (
            "{head}(neg ?x) => ?x }\nrule r exact \"a\" { (neg ?x) => ?x }",
            "line 3, column 6: duplicate rule `r`",
        ),
        ("; nothing", "expected a rule, found none"),
    ];
    for (text, expected) in cases {
        std::fs::write(&path, text.replace("{head}", head)).unwrap();
        let outcome = lapidary(&["rules", "--rules", name(&path)]);
        let what = format!("{text}\n{}", outcome.err);
        assert_eq!(outcome.code, Some(1), "{what}");
        let mut lines = outcome.err.lines();
        let first = lines.next().unwrap();
        assert!(
            first.starts_with("error: ") && first.contains("bad.rules") && first.contains(expected),
            "{what}"
        );
        if let Some(column) = expected.split("column ").nth(1).and_then(|c| c.split(':').next()) {
            let caret = lines.nth(1).unwrap();
            assert_eq!(caret.len(), column.parse::<usize>().unwrap(), "{what}");
        }
    }
}

/// Every command that takes a file of rules says what is wrong with it, and where, in one line, and leaves nothing
/// behind.
#[test]
fn commands_name_the_file_and_the_line_of_a_bad_rule() {
    let dir = tempfile::tempdir().unwrap();
    let malformed = dir.path().join("malformed.rules");
    std::fs::write(&malformed, "; a rule\nrule r exact \"a\" {\n  (mul ?x 1.0) => ?y\n}\n").unwrap();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "It is a truth").unwrap();
    let output = dir.path().join("output.o");
    let commands: [&[&str]; 11] = [
        &["run", "-n", "2", "hello"],
        &["chat"],
        &["logits", "--ids", "2,17", "-o", name(&output)],
        &["eval", "--text", name(&text)],
        &["bench", "--prompt-tokens", "4", "--gen-tokens", "1", "--depth", "4"],
        &["compile", "-o", name(&output)],
        &["compile", "--emit", "object", "-o", name(&output)],
        &["opt", "--fn", "layer_local"],
        &["explain", "--fn", "layer_local"],
        &["why-not", "--fn", "layer_local", "softcap"],
        &["report", "-o", name(&output)],
    ];
    // What does not parse, what merges unlike types, what makes an ill-typed node.
    let files = [
        (name(&malformed).to_string(), vec!["malformed.rules: line 3, column 19", "`?y`"], 3),
        (
            file("dtype-lie.rules"),
            vec!["`layer_", "`no-cast`", "dtype-lie.rules, line ", "is unsound: merges f32["],
            1,
        ),
        (
            file("ill-typed.rules"),
            vec!["`layer_", "`sub-neg`", "ill-typed.rules, line ", "expected f32, found i32"],
            1,
        ),
    ];
    for (rules, named, lines) in files {
        for command in commands {
            let outcome = lapidary(&[command, &["--rules", &rules]].concat());
            let what = format!("{command:?} --rules {rules}\n{}", outcome.err);
            assert_eq!(outcome.code, Some(1), "{what}");
            let first = outcome.err.lines().next().unwrap_or_default();
            assert!(first.starts_with("error: ") && named.iter().all(|n| first.contains(n)), "{what}");
            assert_eq!(outcome.err.lines().count(), lines, "{what}");
            assert!(outcome.out.is_empty() && std::fs::read_dir(dir.path()).unwrap().count() == 2, "{what}");
        }
    }
    // The line is the one that the rule begins in.
    let lie = std::fs::read_to_string(file("dtype-lie.rules")).unwrap();
    let line = lie.lines().position(|l| l.starts_with("rule no-cast ")).unwrap() + 1;
    lapidary(&["run", "hello", "--rules", &file("dtype-lie.rules")]).fails(&[&format!("line {line})")]);
}

/// Rules of a file that hold change neither the text nor, beyond rounding, the logits; an artifact takes none.
#[test]
fn models_run_with_the_rules_of_a_file() {
    let run =
        |args: &[&str]| lapidary(&[&["run", "-n", "8", "--temp", "0", "It is a truth"], args].concat()).ok();
    let plain = run(&[]);
    let logits_of = |args: &[&str]| logits("2,17,5", &[&["--activations", "f32"], args].concat());
    let (.., expected) = logits_of(&[]);
    for rules in ["honest.rules", "laws.rules", "norm.rules", "dearer.rules"] {
        let rules = file(rules);
        assert_eq!(run(&["--rules", &rules]), plain, "{rules}");
        let (.., found) = logits_of(&["--rules", &rules]);
        assert!(difference(&expected, &found) < 1e-3, "{rules}");
    }
    let quick = ["--prompt-tokens", "4", "--gen-tokens", "2", "--depth", "4", "--json"];
    let bench = lapidary(&[&["bench", "--rules", &file("honest.rules")], &quick[..]].concat()).json();
    assert!(!bench.is_null());
    let dir = tempfile::tempdir().unwrap();
    let artifact = dir.path().join("tiny.lap");
    lapidary(&["compile", "-o", name(&artifact), "--rules", &file("honest.rules")]).ok();
    let given = ["-m", name(&artifact), "--rules", &file("honest.rules")];
    for command in [&["run", "hello"][..], &["chat"], &["bench"]] {
        lapidary(&[command, &given].concat()).fails(&["--rules", "tiny.lap is compiled already"]);
    }
}

/// A rule in a file fires, is checked, and changes the kernel plan.
#[test]
fn a_rule_of_a_file_changes_the_plan() {
    let (rules, ir) = (file("norm.rules"), file("norm.ir"));
    let kernels = |args: &[&str]| {
        let json = lapidary(&[&["opt", &ir, "--json"], args].concat()).json();
        (json[0]["kernels"].as_array().unwrap().len(), json[0]["rules"]["plain-norm"].as_u64())
    };
    let (before, _) = kernels(&[]);
    let (after, fired) = kernels(&["--rules", &rules]);
    assert!(after < before && fired == Some(1), "{before} {after} {fired:?}");
    lapidary(&["check-rules", "--rules", &rules]).ok();
    let run = lapidary(&["opt", &ir, "--rules", &rules, "--run", "--activations", "f32"]).ok();
    assert!(run.contains("(rms_norm ") && run.contains("; run plain: machine code is"), "{run}");
    // What is printed parses back, comments and all.
    let again = lapidary_with(&["opt", "-", "--emit", "ir"], run.as_bytes()).ok();
    assert!(again.contains("(rms_norm "), "{again}");
    assert_eq!(
        lapidary(&["opt", &ir, "--rules", &rules, "--passes", "user", "--only", "plain-norm"]).code,
        Some(0)
    );
    assert_eq!(lapidary(&["opt", &ir, "--only", "plain-norm"]).code, Some(2));
}

#[test]
fn every_stage_is_shown() {
    let ir = file("norm.ir");
    let text = lapidary(&["opt", &ir, "--emit", "egraph"]).ok();
    assert!(text.contains("output y = e") && text.contains("f32[T,1]") && text.contains(" ns"), "{text}");
    let dot = lapidary(&["opt", &ir, "--emit", "dot"]).ok();
    assert!(dot.starts_with("digraph \"plain\" {") && dot.trim_end().ends_with('}'), "{dot}");
    let json = lapidary(&["opt", &ir, "--emit", "egraph-json"]).json();
    let nodes = json["nodes"].as_object().unwrap();
    for node in nodes.values() {
        for child in node["children"].as_array().unwrap() {
            assert!(nodes.contains_key(child.as_str().unwrap()), "{child}");
        }
        assert!(node["op"].is_string() && node["cost"].is_number() && node["eclass"].is_string(), "{node}");
    }
    assert_eq!(json["root_eclasses"].as_array().unwrap().len(), 1);
    let time = lapidary(&["opt", "--fn", "head", "--time"]).ok();
    assert!(time.contains("; whole pipeline") && time.contains("saturate"), "{time}");
    let run = lapidary(&["opt", "--fn", "layer_local", "--run", "--seed", "3"]).ok();
    assert!(run.contains("; run layer_local: machine code is"), "{run}");
}

/// An approximate rule is held to its own bound, whatever runs beside it: no closer, no farther.
#[test]
fn run_holds_approximate_rules_to_their_own_bound() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("near.rules");
    let ir = "function f(%x: f32[T,64] rows) {\n    v = (mul %x 1.001)\n    return y=(tanh v)\n}\n";
    let run = |bound: &str, rest: &[&str]| {
        let rules =
            format!("rule near-one approximate({bound}) \"1.001 x = x, nearly\" {{ (mul ?x 1.001) => ?x }}");
        std::fs::write(&path, rules).unwrap();
        let args = ["opt", "-", "--run", "--activations", "f32", "--rules", name(&path)];
        lapidary_with(&[&args, rest].concat(), ir.as_bytes())
    };
    for alone in [&[][..], &["--only", "near-one"]] {
        let honest = run("1e-2", alone);
        assert!(honest.out.contains("; run f: machine code is"), "{}{}", honest.out, honest.err);
        assert_eq!(honest.code, Some(0));
        assert!(!honest.out.contains("(mul "), "the rule's form is what ran: {}", honest.out);
        let boastful = run("1e-4", alone);
        assert_eq!(boastful.code, Some(1), "{}", boastful.out);
        assert!(
            boastful.err.contains("within 1e-4") || boastful.err.contains("within 9.99"),
            "{}",
            boastful.err
        );
    }
}

/// Files too large to be of use are refused at once, by every command that reads them; long chains and deep terms below
/// that are not.
#[test]
fn chains_end_in_seconds() {
    let chain = |n: usize| {
        let steps: Vec<String> = (1..=n).map(|i| format!("v{i} = (neg v{})", i - 1)).collect();
        format!("function f(%x: f32[T,64] rows) {{\nv0 = (neg %x)\n{}\nreturn y=v{n}\n}}\n", steps.join("\n"))
    };
    let wide: Vec<String> = (0..20_000).map(|i| format!("y{i}=%x")).collect();
    let wide = format!("function f(%x: f32[T,64] rows) {{ return {} }}", wide.join(", "));
    let many: String = (0..20_000).map(|i| format!("function f{i}() {{ return y=1.0 }}\n")).collect();
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    let commands: [&[&str]; 5] = [
        &["opt", "-"],
        &["opt", "-", "--run", "--emit", "ir"],
        &["explain", "-"],
        &["why-not", "softcap", "-"],
        &["report", "-", "-o", name(&page)],
    ];
    for (source, named) in [
        (chain(20_000), &["stdin", "1024 operators"][..]),
        (wide, &["stdin", "1024 operators"]),
        (many, &["stdin"]),
        (chain(200_000), &["stdin", "1048576 bytes"]),
        (
            format!("function f() {{ return y={}1.0{} }}", "(neg ".repeat(90_000), ")".repeat(90_000)),
            &["nested"],
        ),
    ] {
        for command in commands {
            let start = std::time::Instant::now();
            lapidary_with(command, source.as_bytes()).fails(named);
            assert!(start.elapsed().as_secs() < 30, "{command:?}: {:?}", start.elapsed());
        }
    }
    assert!(!page.exists());
    let long = chain(1000);
    let shown = lapidary_with(&["opt", "-", "--emit", "ir"], long.as_bytes()).ok();
    assert_eq!(shown.matches("(neg ").count(), 1001);
    lapidary_with(&["why-not", "softcap", "-"], long.as_bytes()).ok();
}

/// Machine code of every row regime is run: one row, few, some, many.
#[test]
fn run_calls_every_row_regime() {
    let run = lapidary(&["opt", "--fn", "layer_local", "--run"]).ok();
    let rows = run.split("calls of ").nth(1).unwrap().split(" rows").next().unwrap();
    let rows: Vec<usize> = rows.split(", ").map(|n| n.parse().unwrap()).collect();
    for (least, most) in [(1, 1), (2, 4), (5, 32), (33, 64)] {
        assert!(rows.iter().any(|n| (least..=most).contains(n)), "{least} to {most}: {rows:?}");
    }
}

#[test]
fn bisect_finds_the_guilty_rule() {
    let clean = lapidary(&["bisect", "--tokens", "8"]).ok();
    assert!(clean.contains("no rule is guilty"), "{clean}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.rules");
    let rules = "rule no-residual exact \"r + norm(x) = norm(x): wrong\" { \
        (add ?r (rms_norm ?x ?w ?eps)) => (rms_norm ?x ?w ?eps) \
        if same_type(?r, ?x) }
rule fine exact \"-(-(-x)) = -x\" { (neg (neg (neg ?x))) => (neg ?x) }";
    std::fs::write(&path, rules).unwrap();
    let found = lapidary(&["bisect", "--tokens", "8", "--rules", name(&path), "--json"]);
    assert_eq!(found.code, Some(1), "{}", found.err);
    let json: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    let guilty: Vec<&str> = json["guilty"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
    assert!(guilty.contains(&"no-residual") && guilty.len() <= 2, "{json}");
    assert!(found.err.contains("no-residual"), "{}", found.err);
}

/// Of a line without end the place is shown, not all of it; of a function the form that is wrong.
#[test]
fn errors_about_rules_are_short() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.rules");
    let term = format!("{}?x{}", "(neg ".repeat(9000), ")".repeat(9000));
    std::fs::write(&path, format!("rule r exact \"x\" {{ {term} => ?x }}")).unwrap();
    let outcome = lapidary(&["check-rules", "--rules", path.to_str().unwrap()]);
    let (line, caret) = outcome.err.rsplit_once("\n").map(|(all, _)| all.rsplit_once('\n').unwrap()).unwrap();
    let shown = line.rsplit_once('\n').unwrap().1;
    assert!(outcome.err.len() < 500 && shown.contains("(neg"), "{}", outcome.err);
    assert!(shown[caret.len() - 1..].starts_with("neg"), "{shown}\n{caret}");

    let rule = "rule wrong approximate(1e-3) \"x\" { (tanh ?x) => (mul 0.5 ?x) }";
    std::fs::write(&path, rule).unwrap();
    let chain: String = (1..200).map(|at| format!("    v{at} = (tanh v{})\n", at - 1)).collect();
    let source =
        format!("function f(%x: f32[T,8] rows) {{\n    v0 = (tanh %x)\n{chain}    return y=v199\n}}\n");
    let args = ["opt", "--run", "--only", "wrong", "--rules", path.to_str().unwrap(), "-"];
    let outcome = lapidary_with(&args, source.as_bytes());
    assert_eq!((outcome.code, outcome.err.lines().count()), (Some(1), 1), "{}", outcome.err);
    assert!(outcome.err.contains("rule `wrong`") && outcome.err.len() < 500, "{}", outcome.err);
}
