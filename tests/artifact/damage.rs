//! Files that are damaged in ten thousand ways, half of them with their hashes made right again, so that what reads the
//! sections sees them: each is refused with one line, or runs. Nothing crashes, and nothing takes memory beyond the
//! file's size and a bound: this program's allocator refuses more, and a process whose memory is refused aborts where
//! it did not expect that.
//!
//! Code is damaged with its old hash only: code of the right hash may do anything. So may a program, which says what
//! code is run on what memory: it is loaded and bound, but not run.

use std::process::Command;
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};

use super::limited::{Limited, MOST, REFUSED, SEEN};
use super::*;

/// The most bytes beyond what was held before that the loader may take: the file's size, and this.
const BOUND: usize = 8 << 20;
/// The same for a session of the built-in model with a context of 64.
const SESSION: usize = 32 << 20;
/// Damaged files.
const CASES: usize = 10_000;
/// Processes that share them.
const SHARDS: usize = 2;
/// Set in such a process: which of them it is.
const SHARD: &str = "LAPIDARY_SHARD";

/// xorshift64*.
struct Random(u64);

impl Random {
    fn of(case: usize) -> Random {
        let mut random = Random((case as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.below(1);
        random
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

const SIZES: &[&str] =
    &["0", "-1", "1", "63", "4096", "4294967296", "18446744073709551615", "1e30", "\"\"", "null", "[]"];

/// A damaged file: its hashes are what they were.
fn broken(good: &[u8], header: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = good.to_vec();
    match random.below(6) {
        // Bits, anywhere.
        0 => {
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }
        // Bits of the header.
        1 => {
            for _ in 0..=random.below(3) {
                let at = random.below(header);
                bytes[at] ^= 1 << random.below(8);
            }
        }
        // Cut short, or too long.
        2 => {
            let length = random.below(bytes.len() + 64);
            bytes.resize(length, 0);
        }
        // The header's length.
        3 => {
            let length = (random.below(usize::MAX) as u64) >> random.below(64);
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        // A number of the header is another: overlaps, holes, absurd sizes.
        _ => {
            let text = String::from_utf8_lossy(&good[8..header]).trim_end().to_string();
            let mut text = renumber(&text, good.len(), random).unwrap_or(text).into_bytes();
            // As long as before where it fits, so that only the number is wrong.
            text.resize(text.len().max(header - 8), b' ');
            bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend(text);
            bytes.extend(&good[header..]);
        }
    }
    bytes
}

/// A section, with its hash.
#[derive(Clone)]
struct Piece {
    name: String,
    bytes: Vec<u8>,
    hash: String,
}

impl Piece {
    fn seal(&mut self) {
        self.hash = Sha256::digest(&self.bytes).iter().map(|b| format!("{b:02x}")).collect();
    }

    fn is_json(&self) -> bool {
        self.bytes.first() == Some(&b'{')
    }
}

/// The sections of a good file.
fn pieces(path: &Path) -> Vec<Piece> {
    let artifact = Artifact::open(path).unwrap();
    let piece = |s: &lapidary_runtime::artifact::Section| Piece {
        name: s.name.clone(),
        bytes: artifact.section(&s.name).unwrap().to_vec(),
        hash: s.hash.clone(),
    };
    artifact.sections().iter().map(piece).collect()
}

/// A file of these sections. The first of `alias` says that it lies where the second does.
fn assemble(pieces: &[Piece], alias: Option<(usize, usize)>) -> Vec<u8> {
    let mut metadata = format!(
        r#""format":"lapidary-artifact","version":"{}","target":"{}","cpus":"native","weights":"f32""#,
        lapidary_runtime::artifact::VERSION,
        triple()
    );
    let (mut entries, mut data, mut places) = (String::new(), Vec::new(), Vec::new());
    let mut entry = |name: &str, from: usize, to: usize| {
        let shape = to - from;
        entries += &format!(r#","{name}":{{"dtype":"U8","shape":[{shape}],"data_offsets":[{from},{to}]}}"#);
    };
    for (i, piece) in pieces.iter().enumerate() {
        metadata += &format!(r#","sha256:{}":"{}""#, piece.name, piece.hash);
        let end = data.len();
        data.resize(end.next_multiple_of(64), 0);
        if data.len() > end {
            entry(&format!("padding.{i}"), end, data.len());
        }
        let start = data.len();
        data.extend(&piece.bytes);
        places.push((start, data.len()));
    }
    for (i, piece) in pieces.iter().enumerate() {
        let at = alias.filter(|(first, _)| *first == i).map_or(i, |(_, second)| second);
        entry(&piece.name, places[at].0, places[at].1);
    }
    let mut header = format!(r#"{{"__metadata__":{{{metadata}}}{entries}}}"#).into_bytes();
    header.resize((8 + header.len()).next_multiple_of(4096) - 8, b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// A damaged file whose hashes are right, and whether it may be run if it loads.
fn sealed(good: &[Piece], random: &mut Random) -> (Vec<u8>, bool) {
    let mut pieces = good.to_vec();
    let mut alias = None;
    let others: Vec<usize> = (0..pieces.len()).filter(|&i| !pieces[i].name.starts_with("code.")).collect();
    let json: Vec<usize> = others.iter().copied().filter(|&i| pieces[i].is_json()).collect();
    let tables = pieces.iter().position(|p| p.name == TOKENIZER_TABLES).unwrap();
    let mut at = others[random.below(others.len())];
    let kind = random.below(10);
    match kind {
        // A number of JSON is another.
        0..3 => {
            // Half of the time the program's: it has the most to get wrong.
            at = if random.below(2) == 0 { json[0] } else { json[random.below(json.len())] };
            let text = String::from_utf8_lossy(&pieces[at].bytes).into_owned();
            pieces[at].bytes = renumber(&text, 1 << 20, random).unwrap_or(text).into_bytes();
        }
        // A word of the tables, mostly of their header.
        3 => {
            at = tables;
            let words = if random.below(4) == 0 { pieces[at].bytes.len() / 4 } else { 8 };
            let word = 4 * random.below(words);
            let new = (random.below(usize::MAX) as u32) >> random.below(32);
            let new = if random.below(3) == 0 { u32::MAX } else { new };
            pieces[at].bytes[word..word + 4].copy_from_slice(&new.to_le_bytes());
        }
        // Cut short, or too long.
        4 => {
            let length = random.below(pieces[at].bytes.len() + 64);
            pieces[at].bytes.resize(length, b' ');
        }
        // A part of it over another.
        5 => {
            let bytes = &mut pieces[at].bytes;
            let length = 1 + random.below(bytes.len().min(200));
            let (from, to) = (random.below(bytes.len() - length + 1), random.below(bytes.len() - length + 1));
            bytes.copy_within(from..from + length, to);
        }
        // Another's bytes, or none, or a section less.
        6 => match random.below(3) {
            0 => pieces[at].bytes = pieces[others[random.below(others.len())]].bytes.clone(),
            1 => pieces[at].bytes.clear(),
            _ => _ = pieces.remove(at),
        },
        // One that lies where another does.
        7 => alias = Some((at, random.below(pieces.len()))),
        // Bits.
        _ => {
            for _ in 0..=random.below(4) {
                let length = pieces[at].bytes.len();
                pieces[at].bytes[random.below(length)] ^= 1 << random.below(8);
            }
        }
    }
    let removed = pieces.len() < good.len();
    if !removed {
        pieces[at].seal();
        if let Some((first, second)) = alias {
            pieces[first].hash = pieces[second].hash.clone();
        }
    }
    let is_program = good[at].name.starts_with("program.");
    (assemble(&pieces, alias), !is_program)
}

/// The text with one of its numbers replaced; nothing if it has none.
fn renumber(text: &str, below: usize, random: &mut Random) -> Option<String> {
    let bytes = text.as_bytes();
    let starts = |i: &usize| bytes[*i].is_ascii_digit() && (*i == 0 || !bytes[i - 1].is_ascii_digit());
    let digits: Vec<usize> = (0..bytes.len()).filter(starts).collect();
    let at = *digits.get(random.below(digits.len()))?;
    let end = text[at..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |n| at + n);
    let new = match random.below(2) {
        0 => SIZES[random.below(SIZES.len())].to_string(),
        _ => random.below(below).to_string(),
    };
    Some(format!("{}{new}{}", &text[..at], &text[end..]))
}

/// Loads a file and all that it holds, and runs it if that may be; or says why not.
fn attempt(path: &Path, length: usize, weights: &Arc<dyn WeightSource>, run: bool) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    Limited::allow(length + BOUND);
    let artifact = Artifact::open(path).map_err(|e| text(&e))?;
    let program = artifact.program(None).map_err(|e| text(&e))?;
    for cpu in artifact.cpus() {
        artifact.listing(cpu).map_err(|e| text(&e))?;
    }
    let model = Files::from_artifact(&artifact).map_err(|e| text(&e))?;
    if let Some(tokenizer) = &model.tokenizer
        && let Ok(ids) = tokenizer.encode("<start_of_turn>The naïve 漢字 \u{1f600} of\n\n  it.", true)
    {
        tokenizer.decode(&ids);
    }
    if let Some(template) = &model.chat_template {
        let _ = template.render(&[lapidary_models::Message::new("user", "hi")], true);
    }
    // What commands put before errors of sessions.
    let of_session = |e: lapidary_runtime::Error| format!("{}: {e}", path.display());
    Limited::allow(SESSION);
    let mut session = Session::new(Arc::new(program), weights.clone(), 1).map_err(of_session)?;
    if run {
        session.prefill(&[2, 7, 11]).map_err(of_session)?;
        session.argmax();
        session.score(&[13, 17], &mut |_, _| ()).map_err(of_session)?;
    }
    artifact.verify().map_err(|e| text(&e))
}

#[test]
fn damage() {
    match std::env::var(SHARD) {
        Ok(shard) => cases(shard.parse().unwrap()),
        Err(_) => in_processes(),
    }
}

/// Runs the cases in processes of their own, so that a crash is seen and said of which case.
fn in_processes() {
    let child = |shard: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["damage::damage", "--exact", "--nocapture"]).env(SHARD, shard.to_string());
        // What prints a trace allocates, which may be what failed.
        command.env("RUST_BACKTRACE", "0");
        command.output().unwrap()
    };
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SHARDS).map(|shard| scope.spawn(move || child(shard))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    // Refused, and all, of those with their old hashes and those with right ones.
    let mut counts = [0usize; 4];
    for output in outputs {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let case = out.lines().rev().find(|line| line.starts_with("case "));
        assert!(output.status.success(), "{case:?}: {}\n{err}", output.status);
        let line = out.lines().find_map(|line| line.strip_prefix("counts ")).unwrap();
        counts.iter_mut().zip(line.split(' ')).for_each(|(sum, n)| *sum += n.parse::<usize>().unwrap());
    }
    println!("{counts:?}");
    let [old, all_old, right, all_right] = counts;
    assert_eq!(all_old + all_right, CASES);
    // Padding and what the metadata say of the compiler are hashed by nobody.
    assert!(old > all_old * 9 / 10, "{counts:?}");
    // What was changed is often text that means something else, and as often no longer any.
    assert!(right > all_right / 4 && right < all_right * 9 / 10, "{counts:?}");
}

/// Every so many cases.
fn cases(shard: usize) {
    // A panic says what it is about without a limit.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        MOST.store(usize::MAX, Ordering::Relaxed);
        hook(info);
    }));
    let files = Arc::new(Files::built_in().unwrap());
    let weights = Model::of(files.clone(), Options::new()).unwrap().weights().unwrap();
    let (_dir, path) = place();
    build(&path, &files);
    let good = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let sections = pieces(&path);
    attempt(&path, good.len(), &weights, true).unwrap();
    fs::write(&path, assemble(&sections, None)).unwrap();
    attempt(&path, good.len(), &weights, true).unwrap();
    if shard == 0 {
        without_memory(&path, good.len(), &weights);
    }
    let mut counts = [0; 4];
    for case in (shard..CASES).step_by(SHARDS) {
        println!("case {case}");
        let mut random = Random::of(case);
        let right = case % 4 >= 2;
        let (bytes, run) =
            if right { sealed(&sections, &mut random) } else { (broken(&good, header, &mut random), true) };
        // A new file: one that is cut and filled again may go to the disk at once.
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bytes).unwrap();
        let outcome = attempt(&path, bytes.len(), &weights, run);
        MOST.store(usize::MAX, Ordering::Relaxed);
        counts[2 * usize::from(right) + 1] += 1;
        if let Err(text) = outcome {
            assert!(!text.contains('\n') && text.contains("model.lap"), "case {case}: {text:?}");
            assert!(bytes != good, "case {case}: the file is as it was, and refused: {text}");
            counts[2 * usize::from(right)] += 1;
        }
    }
    println!("counts {}", counts.map(|n| n.to_string()).join(" "));
}

/// A good file where each large allocation in turn is refused: an error that says what it was for.
fn without_memory(path: &Path, length: usize, weights: &Arc<dyn WeightSource>) {
    SEEN.store(0, Ordering::Relaxed);
    attempt(path, length, weights, true).unwrap();
    let large = SEEN.load(Ordering::Relaxed);
    // Code and caches are of no heap.
    assert!(large >= 2, "{large} large allocations");
    for refused in 0..large {
        println!("case of the large allocation {refused} of {large}");
        SEEN.store(0, Ordering::Relaxed);
        REFUSED.store(refused, Ordering::Relaxed);
        let outcome = attempt(path, length, weights, true);
        REFUSED.store(usize::MAX, Ordering::Relaxed);
        MOST.store(usize::MAX, Ordering::Relaxed);
        let text = outcome.expect_err("it was allocated in the end");
        assert!(text.contains("cannot allocate") && text.contains("model.lap"), "{text:?}");
    }
}
