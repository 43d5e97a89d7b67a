//! Artifacts that are signed, and commands that take no others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::artifact::lapidary_run;
use super::command::{lapidary, name};

const PROMPT: [&str; 5] = ["--temp", "0", "-n", "8", "It is a truth"];

/// RFC 8410, section 10: a private key and its public half; and the public half of another, made here once.
const PRIVATE: &str = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC";
const PUBLIC: &str = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
const OTHER: &str = "MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
/// A private key of X25519, which looks much the same.
const X25519: &str = "MC4CAQAwBQYDK2VuBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC";

fn pem(dir: &Path, file: &str, label: &str, body: &str) -> PathBuf {
    let path = dir.join(file);
    fs::write(&path, format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")).unwrap();
    path
}

#[test]
fn every_command_takes_what_is_trusted_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let key = pem(dir.path(), "release.key", "PRIVATE KEY", PRIVATE);
    let public = pem(dir.path(), "release.pub", "PUBLIC KEY", PUBLIC);
    let other = pem(dir.path(), "other.pub", "PUBLIC KEY", OTHER);
    let (plain, signed) = (dir.path().join("plain.lap"), dir.path().join("signed.lap"));
    lapidary(&["compile", "-o", name(&plain)]).ok();
    lapidary(&["compile", "-o", name(&signed), "--sign", name(&key)]).ok();
    let (trust, distrust) = (["--trust", name(&public)], ["--trust", name(&other)]);

    // Who signed it, and what is said of those that nobody vouches for.
    let said = lapidary(&[&["verify", name(&signed)], &trust[..]].concat()).ok();
    assert!(said.contains(&format!("signed by {}", &PUBLIC[16..])) && said.contains("release.pub"), "{said}");
    let said = lapidary(&["verify", name(&signed)]).ok();
    assert!(said.contains("no --trust vouches for"), "{said}");
    assert!(!lapidary(&["verify", name(&plain)]).ok().contains("signed"));
    let shown = lapidary(&["inspect", "-m", name(&signed), "--json"]).json();
    assert_eq!(shown["signed_by"], PUBLIC[16..]);

    let run =
        |file: &Path, trust: &[&str]| lapidary(&[&["run", "-m", name(file)], &PROMPT[..], trust].concat());
    let text = run(&plain, &[]).ok();
    assert_eq!(run(&signed, &trust).ok(), text);
    assert_eq!(run(&signed, &[&distrust[..], &trust].concat()).ok(), text, "one of several is enough");
    let small = |file: &Path, trust: &[&str]| {
        Command::new(lapidary_run()).arg(file).args(PROMPT).args(trust).output().unwrap()
    };
    assert_eq!(String::from_utf8(small(&signed, &trust).stdout).unwrap(), text);
    let short = ["--prompt-tokens", "4", "--gen-tokens", "1", "--depth", "1", "--repeat", "1"];
    lapidary(&[&["bench", "-m", name(&signed)], &short[..], &trust].concat()).ok();

    let mut changed = fs::read(&signed).unwrap();
    let at = changed.len() - 200;
    changed[at] ^= 1;
    let damaged = dir.path().join("damaged.lap");
    fs::write(&damaged, &changed).unwrap();
    let mut longer = fs::read(&signed).unwrap();
    longer.push(0);
    let appended = dir.path().join("appended.lap");
    fs::write(&appended, &longer).unwrap();
    let expected = "a signature by ed25519 key";
    for (file, trust, found) in [
        (&plain, &trust[..], vec!["plain.lap", expected, &PUBLIC[16..], "no signature"]),
        (&signed, &distrust, vec!["signed.lap", expected, &OTHER[16..], &PUBLIC[16..]]),
        (&damaged, &trust, vec!["damaged.lap", expected, "changed after it was signed"]),
        (&appended, &trust, vec!["appended.lap", "bytes"]),
    ] {
        lapidary(&[&["run", "-m", name(file)], &PROMPT[..], trust].concat()).fails(&found);
        lapidary(&[&["verify", name(file)], trust].concat()).fails(&found);
        let alone = small(file, trust);
        let line = String::from_utf8(alone.stderr).unwrap();
        assert!(alone.status.code() == Some(1) && alone.stdout.is_empty(), "{line}");
        assert!(found.iter().all(|f| line.contains(f)) && line.trim_end().lines().count() == 1, "{line}");
    }
    for command in [&["chat"][..], &["logits", "--ids", "2", "-o", "never"], &["bench", "--repeat", "1"]] {
        let args = [command, &["-m", name(&plain)], &trust].concat();
        lapidary(&args).fails(&["plain.lap", "no signature"]);
    }
    // A signature that fits nothing is found without --trust, by the command that is for that.
    let mut forged = fs::read(&signed).unwrap();
    *forged.last_mut().unwrap() ^= 1;
    fs::write(&damaged, &forged).unwrap();
    lapidary(&["verify", name(&damaged)]).fails(&["damaged.lap", "changed after it was signed"]);
    // What holds no code cannot be signed.
    lapidary(&[&["run"], &PROMPT[..], &trust].concat()).fails(&["--trust", "built-in model", "artifact"]);
}

#[test]
fn keys_that_do_not_fit_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.lap");
    let public = pem(dir.path(), "a.pub", "PUBLIC KEY", PUBLIC);
    let plain = dir.path().join("text.pem");
    fs::write(&plain, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA user@host\n").unwrap();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let cases: [(PathBuf, &[&str]); 8] = [
        (
            pem(dir.path(), "locked.key", "ENCRYPTED PRIVATE KEY", PRIVATE),
            &["locked.key", "encrypted", "openssl"],
        ),
        (pem(dir.path(), "x.key", "PRIVATE KEY", X25519), &["x.key", "another algorithm"]),
        (public.clone(), &["a.pub", "found a public key"]),
        (pem(dir.path(), "rsa.key", "RSA PRIVATE KEY", PRIVATE), &["rsa.key", "RSA PRIVATE KEY"]),
        (pem(dir.path(), "bad.key", "PRIVATE KEY", "*"), &["bad.key", "base64"]),
        (plain, &["text.pem", "-----BEGIN"]),
        (fifo, &["fifo", "a pipe"]),
        (dir.path().join("nowhere.key"), &["nowhere.key", "No such file"]),
    ];
    for (key, named) in &cases {
        lapidary(&["compile", "-o", name(&file), "--sign", name(key)]).fails(named);
        assert!(!file.exists(), "{}", key.display());
    }
    let key = pem(dir.path(), "a.key", "PRIVATE KEY", PRIVATE);
    lapidary(&["compile", "-o", name(&file), "--sign", name(&key)]).ok();
    lapidary(&["verify", name(&file), "--trust", name(&key)]).fails(&[
        "a.key",
        "found a private key",
        "-pubout",
    ]);
    lapidary(&["verify", name(&file), "--trust", name(&cases[1].0)]).fails(&["x.key", "private key"]);
    let object = lapidary(&["compile", "--emit", "object", "-o", name(dir.path()), "--sign", name(&key)]);
    assert!(object.code == Some(2) && object.err.contains("--sign"), "{}", object.err);
    lapidary(&["compile", "-o", name(&key), "--sign", name(&key)]).fails(&["a.key"]);
    assert!(fs::read_to_string(&key).unwrap().contains(PRIVATE), "the key is as it was");
}

/// OpenSSL makes the keys, and checks the signature as `docs/artifact.md` says.
#[test]
fn openssl_checks_the_signature_too() {
    if Command::new("openssl").arg("version").output().is_err() {
        assert!(std::env::var_os("LAPIDARY_REQUIRE_TOOLS").is_none(), "not found: openssl");
        eprintln!("SKIPPED, nothing was tested: not found: openssl");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let shell = |script: &str| {
        let output = Command::new("sh").current_dir(dir.path()).args(["-ec", script]).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{script}: {err}");
        String::from_utf8(output.stdout).unwrap()
    };
    shell(
        "openssl genpkey -algorithm ed25519 -out my.key
        openssl pkey -in my.key -pubout -out my.pub
        openssl pkey -in my.key -aes-256-cbc -passout pass:secret -out locked.key
        openssl genpkey -algorithm ed448 -out ed448.key
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out p256.key
        openssl pkey -in p256.key -pubout -out p256.pub",
    );
    let at = |file: &str| dir.path().join(file);
    let file = at("my.lap");
    for (key, named) in [("locked.key", "encrypted"), ("ed448.key", "another"), ("p256.key", "another")] {
        lapidary(&["compile", "-o", name(&file), "--sign", name(&at(key))]).fails(&[key, named, "ed25519"]);
    }
    lapidary(&["compile", "-o", name(&file), "--sign", name(&at("my.key"))]).ok();
    lapidary(&["verify", name(&file), "--trust", name(&at("p256.pub"))]).fails(&["p256.pub", "another"]);
    lapidary(&["verify", name(&file), "--trust", name(&at("my.pub"))]).ok();
    let documented = include_str!("../../docs/artifact.md");
    let script = "head -c -64 my.lap > my.bytes && tail -c 64 my.lap > my.sig && openssl pkeyutl -verify -rawin -pubin \
        -inkey my.pub -in my.bytes -sigfile my.sig";
    for part in script.split("&&").map(str::trim) {
        let words = part.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(documented.contains(&words), "docs/artifact.md does not say: {words}");
    }
    assert!(shell(script).contains("Verified Successfully"));
}
