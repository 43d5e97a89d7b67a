//! docs/fusion-lab.md, run: every command of its console blocks, in order, in one folder, against the output that the
//! page shows.
//!
//! A `text` block after a line that names a file, as in "`my.rules`:", is that file. In output, times and what follows
//! from them are masked: a number before a unit of time or rate, or before `x` or `%`, is any number, and so is each of
//! a line of numbers alone, which is a table's. A line `...` stands for any lines.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

const PAGE: &str = include_str!("../docs/fusion-lab.md");

/// What the page has the reader do.
#[derive(Debug, PartialEq)]
enum Act {
    /// A file to write: its name and content.
    File(String, String),
    /// A command, its output, and the line of the page.
    Run(String, String, usize),
}

fn acts(page: &str) -> Vec<Act> {
    let mut acts = vec![];
    let mut lines = page.lines().enumerate();
    let mut last = "";
    while let Some((_, line)) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else {
            if !line.trim().is_empty() {
                last = line;
            }
            continue;
        };
        let block: Vec<(usize, &str)> = lines.by_ref().take_while(|(_, l)| *l != "```").collect();
        match kind {
            "text" => {
                let name = last.strip_suffix("`:").and_then(|l| l.rsplit('`').next()).map(str::to_string);
                let name = name.unwrap_or_else(|| panic!("a text block without a name: {last}"));
                acts.push(Act::File(name, block.iter().map(|(_, l)| format!("{l}\n")).collect()));
            }
            "console" => {
                for (at, line) in block {
                    match (line.strip_prefix("$ "), acts.last_mut()) {
                        (Some(command), _) => acts.push(Act::Run(command.into(), String::new(), at + 1)),
                        (None, Some(Act::Run(_, output, _))) => output.push_str(&format!("{line}\n")),
                        (None, _) => panic!("line {}: output before any command", at + 1),
                    }
                }
            }
            other => panic!("a block of kind `{other}`: nothing checks it"),
        }
    }
    acts
}

/// Numbers before these are masked: units, and what differences, which are a CPU's roundings, are counted from.
const UNITS: [&str; 13] =
    ["KiB", "ns", "µs", "us", "ms", "s", "GB/s", "GFLOP/s", "x", "%", "thread", "threads", "from"];

/// A line with times and rates, and the blanks around them, made alike.
fn mask(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |w: &str| {
        let w = w.trim_start_matches(['+', '-', '(', '~']);
        w.starts_with(|c: char| c.is_ascii_digit())
            && w.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | ',' | 'e' | '-'))
    };
    let is_row = words.len() > 1 && words.iter().all(|w| number(w));
    let unit = |w: &str| UNITS.contains(&w.trim_end_matches([',', '.', ';', ')', ':']));
    let masked = words.iter().enumerate().map(|(i, w)| {
        let before_unit = words.get(i + 1).is_some_and(|next| unit(next));
        let digits = w.find(|c: char| c.is_ascii_digit()).unwrap_or(0);
        let end = w.rfind(|c: char| c.is_ascii_digit()).map_or(0, |e| e + 1);
        if number(w) && (before_unit || is_row) {
            "#".to_string()
        } else if end > digits && number(&w[..end]) && unit(&w[end..]) {
            format!("#{}", &w[end..])
        } else {
            (*w).to_string()
        }
    });
    masked.collect::<Vec<_>>().join(" ")
}

/// Whether lines are as shown; `...` is any lines.
fn matches(shown: &[String], found: &[String]) -> bool {
    match shown.split_first() {
        None => found.is_empty(),
        Some((first, rest)) if first == "..." => (0..=found.len()).any(|n| matches(rest, &found[n..])),
        Some((first, rest)) => found.first() == Some(first) && matches(rest, &found[1..]),
    }
}

fn run(command: &str, folder: &Path) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_lapidary")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(folder)
        .env("PATH", path)
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    text(output.stdout) + &text(output.stderr)
}

#[test]
fn every_command_prints_what_the_page_shows() {
    let folder = tempfile::tempdir().unwrap();
    let mut failures = String::new();
    let mut commands = 0;
    for act in acts(PAGE) {
        match act {
            Act::File(name, content) => {
                assert!(!name.contains('/'), "{name}");
                std::fs::write(folder.path().join(name), content).unwrap();
            }
            Act::Run(command, shown, line) => {
                commands += 1;
                let found = run(&command, folder.path());
                let masked = |text: &str| text.trim_end().lines().map(mask).collect::<Vec<_>>();
                if !matches(&masked(&shown), &masked(&found)) {
                    failures += &format!("docs/fusion-lab.md:{line}: $ {command}\n{found}\n");
                }
            }
        }
    }
    assert!(commands >= 8, "{commands} commands");
    assert!(failures.is_empty(), "\n{failures}");
}

/// The page's claim: with the rule a call of one row takes a kernel less. What that saves is printed.
#[test]
fn the_rule_saves_a_kernel() {
    let folder = tempfile::tempdir().unwrap();
    for act in acts(PAGE) {
        // The last of a name is the one that holds.
        if let Act::File(name, content) = act {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
    }
    let kernels = |rules: &str| -> u32 {
        let out = run(&format!("lapidary opt attend.ir --rows 1 --emit times {rules}"), folder.path());
        let total = out.lines().last().unwrap();
        println!("{total}");
        let count = total.trim_start_matches("; ").split(' ').next().unwrap();
        count.parse().unwrap_or_else(|_| panic!("{out}"))
    };
    assert_eq!(kernels("--rules my.rules") + 1, kernels(""));
}

#[test]
fn pages_are_read_and_lines_compared() {
    let page = "text\n`a.ir`:\n\n```text\n; x\n```\n\n```console\n$ one\nout 3.2 µs\n...\n$ two\n```\n";
    let expected = [
        Act::File("a.ir".into(), "; x\n".into()),
        Act::Run("one".into(), "out 3.2 µs\n...\n".into(), 9),
        Act::Run("two".into(), String::new(), 12),
    ];
    assert_eq!(acts(page), expected);
    assert_eq!(mask("  a 12.5 µs, 3.1x (45%) 7 nodes v3"), "a # µs, #x #%) 7 nodes v3");
    assert_eq!(mask("  16  0.69  4"), "# # #");
    assert_eq!(mask("is 2.2e-3 from f, at most 5e-2"), "is # from f, at most 5e-2");
    let lines = |text: &str| text.lines().map(str::to_string).collect::<Vec<_>>();
    assert!(matches(&lines("a\n...\nc"), &lines("a\nb\nb\nc")) && matches(&lines("..."), &lines("")));
    assert!(!matches(&lines("a\n...\nc"), &lines("a\nb")) && !matches(&lines("a"), &lines("b")));
}
