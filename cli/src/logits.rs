//! `lapidary logits`: token ids to logits, into a safetensors file.
//!
//! The file holds one tensor, `logits` f32 (tokens, vocab), after the final softcap. It is written row by row beside
//! its place and gets its name once it is whole, so that a failure, or Ctrl-C, leaves what was there.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use lapidary_runtime::file::whole::Output;
use serde_json::json;

use crate::generation::parse_ids;
use crate::model::{Engine, read_text};
use crate::options::ModelArgs;
use crate::output::{self, Unit, Usage};

/// Write the logits after each of some tokens. A folder without a tokenizer will do.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lapidary logits --ids 2,17,5 --activations f32 -o logits.safetensors")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids, separated by commas; nothing is put before them
    #[arg(long, value_name = "IDS", required_unless_present = "ids_file", conflicts_with = "ids_file")]
    ids: Option<String>,
    /// File of token ids, separated by commas or blanks
    #[arg(long, value_name = "FILE")]
    ids_file: Option<PathBuf>,
    /// File to write: `logits` f32 (tokens, vocab)
    #[arg(short, long, value_name = "OUT.safetensors")]
    output: PathBuf,
}

/// Computes and writes.
pub(crate) fn run(args: &Args) -> Result<()> {
    let ids = match (&args.ids, &args.ids_file) {
        (_, Some(path)) => parse_ids(&read_text(path)?, &path.display().to_string())?,
        (Some(list), None) => parse_ids(list, "--ids").map_err(Usage::new)?,
        (None, None) => bail!("no token ids: expected --ids or --ids-file"),
    };
    let path = &args.output;
    // First, so that hours of work are not lost on a folder that is not there.
    let file = Output::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut engine = Engine::new(&args.model)?;
    engine.check_fits("the list of ids", ids.len())?;
    let vocab = engine.model.config().vocab_size;
    let bar = output::bar(ids.len() as u64, "scoring", Unit::Tokens);
    let mut writer = Writer::new(file, ids.len(), vocab);
    let mut failed: Option<io::Error> = writer.header().err();
    let mut broken = 0;
    if failed.is_none() {
        // Chunk by chunk, so that a full disk ends it early.
        for part in ids.chunks(engine.session.program().plan.chunk) {
            engine.session.score(part, &mut |_, logits| {
                broken += usize::from(logits.iter().any(|x| x.is_nan()));
                if failed.is_none() {
                    failed = writer.row(logits).err();
                }
                bar.inc(1);
            })?;
            if failed.is_some() {
                break;
            }
        }
    }
    bar.finish_and_clear();
    let written = match failed {
        Some(error) => Err(error),
        None => writer.finish(),
    };
    written.with_context(|| format!("cannot write {}", path.display()))?;
    if broken > 0 {
        let name = engine.name();
        output::note(
            "warning",
            &format!("{name}: NaN in {broken} of {} rows: its weights hold NaN or infinity", ids.len()),
        );
    }
    Ok(())
}

/// A safetensors file of one matrix, row by row.
struct Writer<W: Write> {
    out: BufWriter<W>,
    rows: usize,
    columns: usize,
    /// One row's bytes.
    bytes: Vec<u8>,
}

impl<W: Write> Writer<W> {
    fn new(out: W, rows: usize, columns: usize) -> Writer<W> {
        Writer {
            out: BufWriter::new(out),
            rows,
            columns,
            bytes: Vec::with_capacity(columns * size_of::<f32>()),
        }
    }

    /// Length of the header, header, blanks so that the data is aligned to 8 bytes.
    fn header(&mut self) -> io::Result<()> {
        let end = self.rows * self.columns * size_of::<f32>();
        let header = json!({
            "logits": { "dtype": "F32", "shape": [self.rows, self.columns], "data_offsets": [0, end] },
        });
        let mut header = header.to_string();
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        self.out.write_all(&(header.len() as u64).to_le_bytes())?;
        self.out.write_all(header.as_bytes())
    }

    fn row(&mut self, row: &[f32]) -> io::Result<()> {
        self.bytes.clear();
        self.bytes.extend(row.iter().flat_map(|x| x.to_le_bytes()));
        self.out.write_all(&self.bytes)
    }
}

impl Writer<Output> {
    fn finish(self) -> io::Result<()> {
        self.out.into_inner().map_err(io::IntoInnerError::into_error)?.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safetensors_reads_the_file() {
        let mut writer = Writer::new(Vec::new(), 2, 3);
        writer.header().expect("header");
        writer.row(&[1.0, 2.0, 3.0]).expect("row");
        writer.row(&[4.0, 5.0, 6.0]).expect("row");
        let bytes = writer.out.into_inner().expect("flush");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let logits = file.tensor("logits").expect("logits");
        assert_eq!(logits.shape(), [2, 3]);
        assert_eq!(logits.data()[20..], 6.0f32.to_le_bytes());
    }

    #[test]
    fn ids_are_read_or_named() {
        assert_eq!(parse_ids("2,17, 5\n", "--ids").expect("ids"), [2, 17, 5]);
        for (list, named) in [("2,x", "`x`"), ("-1", "`-1`"), ("99999999999", "`99999999999`"), (",", "none")]
        {
            let error = parse_ids(list, "--ids").expect_err(list).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
