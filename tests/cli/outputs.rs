//! Where commands write: never to what they read, whole or not at all, through nothing that was planted.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::command::{binary, lapidary, name};
use crate::folder;
use crate::surroundings::{names, one_line, soon};

/// Every file that a command reads, as its output: by its name, by a link to it, by a second name of it, from another
/// place.
#[test]
fn an_output_is_no_input() {
    let model = folder::small();
    let dir = tempfile::tempdir().expect("a folder");
    let place = |file: &str| dir.path().join(file);
    let (lap, ids, ir) = (place("x.lap"), place("ids.o"), place("f.ir"));
    lapidary(&["compile", "-m", name(model.path()), "-o", name(&lap)]).ok();
    fs::write(&ids, "2,5").expect("written");
    let shown = lapidary(&["opt", "--fn", "head", "--emit", "ir"]).ok();
    fs::write(&ir, shown).expect("written");
    let rules = place("some.rules");
    let text = lapidary(&["rules", "--show", "softcap"]).ok().replacen("softcap", "another", 1);
    fs::write(&rules, text).expect("written");
    let calibration = place("c.json");
    let m = name(model.path());
    let mut inputs: Vec<(Vec<&str>, PathBuf)> = vec![
        (vec!["logits", "-m", m, "--ids-file", name(&ids)], ids.clone()),
        (vec!["logits", "-m", name(&lap), "--ids", "2"], lap.clone()),
        (vec!["report", name(&ir)], ir.clone()),
        (vec!["report", "--rules", name(&rules), name(&ir)], rules.clone()),
        (vec!["logits", "-m", m, "--ids", "2", "--rules", name(&rules)], rules.clone()),
        (vec!["compile", "-m", m, "--rules", name(&rules)], rules.clone()),
    ];
    for file in
        ["config.json", folder::WEIGHTS, "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    {
        inputs.push((vec!["logits", "-m", m, "--ids", "2"], model.path().join(file)));
        inputs.push((vec!["compile", "-m", m], model.path().join(file)));
        inputs.push((vec!["report", "-m", m], model.path().join(file)));
    }
    let _ = calibration;
    for (args, input) in inputs {
        let before = fs::read(&input).expect("the input");
        let (soft, hard) = (place("soft"), place("hard"));
        symlink(&input, &soft).expect("a link");
        fs::hard_link(&input, &hard).unwrap_or_else(|_| symlink(&input, &hard).expect("a link"));
        let parent = input.parent().expect("a folder");
        let roundabout = parent
            .join(".")
            .join("..")
            .join(parent.file_name().expect("a name"))
            .join(input.file_name().expect("a name"));
        for output in [&input, &soft, &hard, &roundabout] {
            let found = soon(binary().args(&args).args(["-o", name(output)]));
            one_line(&found, &["both an", "input", "output"]);
            assert!(fs::read(&input).expect("the input") == before, "{args:?}: it was changed");
        }
        fs::remove_file(&soft).expect("removed");
        fs::remove_file(&hard).expect("removed");
    }
}

/// The three files of an object, of which one is an input.
#[test]
fn each_file_of_an_object_is_no_input() {
    let model = folder::small();
    let dir = tempfile::tempdir().expect("a folder");
    for extension in ["o", "h", "weights"] {
        let planted = dir.path().join("model").with_extension(extension);
        symlink(model.path().join("config.json"), &planted).expect("a link");
        let args = ["compile", "--emit", "object", "-m", name(model.path()), "-o", name(dir.path())];
        one_line(&soon(binary().args(args)), &["config.json", "both an input"]);
        assert_eq!(names(dir.path()), [planted.file_name().expect("a name").to_str().expect("UTF-8")]);
        fs::remove_file(&planted).expect("removed");
    }
}

/// A folder by other names, and one whose files are links into the model's.
#[test]
fn a_folder_is_not_its_own_output() {
    let model = folder::small();
    let dir = tempfile::tempdir().expect("a folder");
    let link = dir.path().join("link");
    symlink(model.path(), &link).expect("a link");
    let links = dir.path().join("links");
    fs::create_dir(&links).expect("made");
    for file in names(model.path()) {
        symlink(model.path().join(&file), links.join(&file)).expect("a link");
    }
    let roundabout = model.path().join(".");
    let before = fs::read(model.path().join(folder::WEIGHTS)).expect("weights");
    for (from, to) in [
        (model.path(), model.path()),
        (model.path(), &link),
        (&link, model.path()),
        (model.path(), &roundabout),
        (model.path(), &links),
        (&links, model.path()),
    ] {
        let args = ["quantize", "-m", name(from), "--weights", "q8", "--force", "-o", name(to)];
        one_line(&soon(binary().args(args)), &["both an", "input", "output"]);
        assert!(fs::read(model.path().join(folder::WEIGHTS)).expect("weights") == before);
    }
}

/// What lies under names that a program could foresee is not written through, and stays.
#[test]
fn nothing_planted_is_written_through() {
    let dir = tempfile::tempdir().expect("a folder");
    let victim = dir.path().join("victim");
    fs::write(&victim, "mine").expect("written");
    let out = dir.path().join("out");
    fs::create_dir(&out).expect("made");
    // The final name is a link: it is replaced.
    symlink(&victim, out.join("x")).expect("a link");
    for planted in [".x.partial", ".x..partial", ".model.safetensors.partial", ".config.json.partial"] {
        symlink(&victim, out.join(planted)).expect("a link");
    }
    lapidary(&["logits", "--ids", "2", "-o", name(&out.join("x"))]).ok();
    let found = fs::symlink_metadata(out.join("x")).expect("the file");
    assert!(found.is_file());
    lapidary(&["quantize", "--weights", "q8", "--force", "-o", name(&out)]).ok();
    assert_eq!(fs::read(&victim).expect("the file"), b"mine");
    // As files are made elsewhere.
    let plain = dir.path().join("plain");
    fs::write(&plain, "").expect("written");
    let mode = |path: &Path| fs::metadata(path).expect("the file").permissions().mode();
    assert_eq!(mode(&out.join("x")), mode(&plain));
    assert_eq!(mode(&out.join("config.json")), mode(&plain));
}

/// `--force` replaces a model whole, and keeps what belongs to none; a failure keeps all of it.
#[test]
fn a_folder_is_replaced_whole() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    fs::create_dir(&out).expect("made");
    for file in ["notes.txt", "chat_template.jinja", "model-00001-of-00002.safetensors", "config.json"] {
        fs::write(out.join(file), "mine").expect("written");
    }
    let earlier = names(&out);
    lapidary(&["quantize", "--weights", "q8", "-o", name(&out)]).fails(&["not empty", "--force"]);
    // One that fails at its end.
    let broken = folder::small();
    folder::edit_weights(broken.path(), |parts| {
        let range = parts.range("model.layers.1.mlp.up_proj.weight");
        parts.data[range.start..range.start + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    });
    let args = ["quantize", "-m", name(broken.path()), "--weights", "q8", "--force", "-o", name(&out)];
    lapidary(&args).fails(&["up_proj", "NaN"]);
    assert_eq!(names(&out), earlier);
    lapidary(&["quantize", "--weights", "q8", "--force", "-o", name(&out)]).ok();
    let found = names(&out);
    assert!(
        found.contains(&"notes.txt".into()) && !found.contains(&"chat_template.jinja".into()),
        "{found:?}"
    );
    assert!(!found.contains(&"model-00001-of-00002.safetensors".into()), "{found:?}");
    lapidary(&["run", "-m", name(&out), "-n", "1", "hello"]).ok();
}

/// Two writers at once: the folder is one's, whole.
#[test]
fn two_writers_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let (out, alone) = (dir.path().join("out"), dir.path().join("alone"));
    let small = folder::small();
    let kinds = [vec!["--weights", "q4"], vec!["--weights", "q8", "-m", name(small.path())]];
    let contents = |dir: &Path| -> Vec<(String, Vec<u8>)> {
        names(dir).into_iter().map(|n| (n.clone(), fs::read(dir.join(&n)).expect("a file"))).collect()
    };
    let whole: Vec<_> = kinds
        .iter()
        .map(|kind| {
            fs::remove_dir_all(&alone).ok();
            lapidary(&[&["quantize", "-o", name(&alone)], &kind[..]].concat()).ok();
            contents(&alone)
        })
        .collect();
    for _ in 0..4 {
        let start = |kind: &Vec<&str>| {
            binary()
                .args(["quantize", "--force", "-o", name(&out)])
                .args(kind)
                .spawn()
                .expect("the binary runs")
        };
        let children: Vec<_> = kinds.iter().chain(&kinds).map(start).collect();
        for child in children {
            let output = child.wait_with_output().expect("it ends");
            let error = String::from_utf8_lossy(&output.stderr);
            // Who looks at what it wrote may find the other's.
            assert!(output.status.success(), "{error}");
        }
        assert!(whole.contains(&contents(&out)), "{:?}", names(&out));
    }
}

/// What a writer that died has left is taken away by the next; what one that lives writes is not.
#[test]
fn what_was_abandoned_goes() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let (dead, alive) = (out.join(".lapidary-dead.partial"), out.join(".lapidary-alive.partial"));
    for folder in [&dead, &alive] {
        fs::create_dir_all(folder).expect("made");
        fs::write(folder.join("model.safetensors"), "half").expect("written");
    }
    let held = fs::File::open(&alive).expect("the folder");
    held.lock().expect("a lock");
    lapidary(&["quantize", "--weights", "q8", "--force", "-o", name(&out)]).ok();
    assert!(!dead.exists() && alive.join("model.safetensors").exists(), "{:?}", names(&out));
}

/// A cache that others may write to is not used, and that is said; the text is the same.
#[test]
fn a_cache_that_others_may_write_to() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = dir.path().join("lapidary");
    let run = || {
        let mut command = binary();
        command.env("XDG_CACHE_HOME", dir.path());
        let output = soon(command.args(["run", "--weights", "q8", "--temp", "0", "-n", "4", "hello"]));
        assert!(output.status.success());
        (output.stdout, String::from_utf8(output.stderr).expect("UTF-8"))
    };
    let first = run();
    assert!(first.1.lines().all(|line| line.starts_with("note: ")), "{}", first.1);
    let found = fs::metadata(&cache).expect("the directory");
    assert_eq!(found.mode() & 0o777, 0o700, "it is made for one user");
    for mode in [0o777, 0o770, 0o1777] {
        fs::set_permissions(&cache, fs::Permissions::from_mode(mode)).expect("set");
        let other = run();
        assert_eq!(other.0, first.0);
        let told: Vec<&str> = other.1.lines().filter(|line| !line.starts_with("note: ")).collect();
        let [warning] = told[..] else { panic!("{}", other.1) };
        assert!(warning.starts_with("warning: ") && warning.contains(name(&cache)), "{warning}");
        assert!(warning.contains("in memory"), "{warning}");
    }
}
