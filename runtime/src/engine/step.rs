//! A step: works admitted all together or not at all, their rows gathered into calls of up to a chunk, and what is
//! wanted of them predicted.

use std::sync::Arc;

use crate::error::Error;
use crate::layout::{Area, HEAD_ROWS};
use crate::program::{Aligned, Phase, Segment};
use crate::sequence::Sequence;

use super::work::{Output, Want, Work};
use super::{Engine, address, floats};

/// What is given rows of logits as they are made: the work's index, the token's, and the row.
pub(super) type Sink<'a> = &'a mut dyn FnMut(usize, usize, &[f32]);

/// A work's share of a call: its segment has the same index.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) work: usize,
    /// Tokens of the work before this call.
    before: usize,
}

/// Which head.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    Logits,
    Tokens,
}

/// Rows that a head is about to be called with.
struct Picked {
    rows: [PickedRow; HEAD_ROWS],
    count: usize,
    /// Where the first one's logits go.
    first: usize,
}

/// A row's work, the index of its token, and where what is made of it goes.
#[derive(Clone, Copy, Default)]
struct PickedRow {
    work: usize,
    index: usize,
    place: usize,
}

impl Engine {
    /// Whether all of it can be done.
    pub(super) fn admit(&mut self, works: &mut [Work<'_>]) -> Result<(), Error> {
        for work in &*works {
            self.check(work.sequence, work.tokens)?;
            if work.tokens.is_empty() && work.want != Want::Nothing {
                return Err(Error::EmptyPrompt);
            }
        }
        let admitted = works.iter_mut().try_for_each(|work| work.sequence.admit(work.tokens.len()));
        if admitted.is_err() {
            works.iter_mut().for_each(|work| work.sequence.dismiss());
        }
        admitted
    }

    /// Says where what is wanted of works goes: the rows of logits that it takes.
    pub(super) fn place(&mut self, works: &[Work<'_>]) -> usize {
        let (mut logits, mut tokens) = (0, 0);
        self.outputs.clear();
        for work in works {
            let next = |head, from: usize| from..from + work.wanted(head);
            let output = Output { logits: next(Head::Logits, logits), tokens: next(Head::Tokens, tokens) };
            (logits, tokens) = (output.logits.end, output.tokens.end);
            self.outputs.push(output);
        }
        self.tokens.clear();
        self.tokens.resize(tokens, 0);
        logits
    }

    /// Room for so many rows of logits.
    pub(super) fn reserve(&mut self, rows: usize) -> Result<(), Error> {
        let bytes = rows.saturating_mul(Area::Logits.row_bytes(self.plan()));
        if bytes > self.area(Area::Logits).len() {
            let none = || Error::Memory { what: "the logits of a step".into(), bytes };
            self.areas[Area::Logits as usize] = Aligned::try_zeroed(bytes).ok_or_else(none)?;
        }
        Ok(())
    }

    /// Does admitted work: the tokens of a phase, a chunk at a time.
    pub(super) fn advance(&mut self, works: &mut [Work<'_>], mut sink: Option<Sink<'_>>) {
        self.settle_weights();
        for phase in [Phase::Prefill, Phase::Decode] {
            let left = |work: &Work<'_>| work.phase == phase && work.sequence.done < work.tokens.len();
            while works.iter().any(left) {
                let rows = self.gather(works, phase);
                for frame in &mut self.body {
                    self.caller.call(frame, phase, rows, &self.segments);
                }
                self.settle(works, phase);
                self.predict(works, phase, &mut sink);
            }
        }
    }

    /// Fills a call with rows of the works of a phase, as many as there are and as fit: their number.
    fn gather(&mut self, works: &mut [Work<'_>], phase: Phase) -> usize {
        let chunk = self.layout.most_rows(phase);
        self.segments.clear();
        self.parts.clear();
        let mut rows = 0;
        for (index, work) in works.iter_mut().enumerate().filter(|(_, work)| work.phase == phase) {
            let sequence = &mut *work.sequence;
            let left = &work.tokens[sequence.done..];
            let count = left.len().min(chunk - rows);
            if count == 0 {
                continue;
            }
            let position = sequence.position();
            let words = left[..count].iter().zip(position..).zip(rows..);
            let [ids, positions] = &mut self.areas[..2] else { unreachable!("areas of ids and positions") };
            for ((&id, position), row) in words {
                let at = row * size_of::<u32>()..(row + 1) * size_of::<u32>();
                ids.as_mut_slice()[at.clone()].copy_from_slice(&id.to_ne_bytes());
                positions.as_mut_slice()[at].copy_from_slice(&(position as u32).to_ne_bytes());
            }
            let (keys, kv) = ((position + count) as u64, sequence.kv.address());
            self.segments.push(Segment { first: rows as u64, rows: count as u64, keys, kv });
            self.parts.push(Part { work: index, before: sequence.done });
            rows += count;
        }
        rows
    }

    /// What the call appended is its sequences'.
    fn settle(&mut self, works: &mut [Work<'_>], phase: Phase) {
        let row = Area::Even.row_bytes(self.plan());
        for (part, segment) in self.parts.iter().zip(&self.segments) {
            let work = &mut works[part.work];
            let count = segment.rows as usize;
            work.sequence.append(&work.tokens[part.before..part.before + count]);
            let last = (segment.first as usize + count - 1) * row;
            let stream = self.areas[self.layout.last as usize].as_slice();
            work.sequence.last.as_mut_slice().copy_from_slice(&stream[last..last + row]);
            work.sequence.predicts = Some(phase);
        }
    }

    /// What is wanted of the call's rows.
    fn predict(&mut self, works: &[Work<'_>], phase: Phase, sink: &mut Option<Sink<'_>>) {
        let most = HEAD_ROWS.min(self.layout.most_rows(phase));
        for head in [Head::Logits, Head::Tokens] {
            let mut picked = Picked { rows: [PickedRow::default(); HEAD_ROWS], count: 0, first: 0 };
            for at in 0..self.parts.len() {
                let (Part { work: index, before }, segment) = (self.parts[at], self.segments[at]);
                let work = &works[index];
                let count = segment.rows as usize;
                let ends = before + count == work.tokens.len();
                let Some((_, each)) = work.want.head().filter(|&(of, _)| of == head) else { continue };
                let wanted = if each {
                    0..count
                } else if ends {
                    count - 1..count
                } else {
                    0..0
                };
                let first = match head {
                    Head::Logits => self.outputs[index].logits.start,
                    Head::Tokens => self.outputs[index].tokens.start,
                };
                for row in wanted {
                    let place = first + if each { before + row } else { 0 };
                    let follows =
                        sink.is_some() || head == Head::Tokens || place == picked.first + picked.count;
                    if picked.count == most || !follows {
                        self.deliver(head, phase, &mut picked, sink);
                    }
                    if picked.count == 0 {
                        picked.first = if sink.is_some() { 0 } else { place };
                    }
                    self.pick(segment.first as usize + row, picked.count);
                    picked.rows[picked.count] = PickedRow { work: index, index: before + row, place };
                    picked.count += 1;
                }
            }
            self.deliver(head, phase, &mut picked, sink);
        }
    }

    /// Copies a row of the residual stream to where heads read.
    fn pick(&mut self, row: usize, to: usize) {
        let bytes = Area::Picked.row_bytes(self.plan());
        let areas = self.areas.get_disjoint_mut([self.layout.last as usize, Area::Picked as usize]);
        let Ok([stream, picked]) = areas else { unreachable!("rows are picked out of another area") };
        let from = &stream.as_slice()[row * bytes..(row + 1) * bytes];
        picked.as_mut_slice()[to * bytes..(to + 1) * bytes].copy_from_slice(from);
    }

    /// Runs a head on the rows that were picked, and delivers what it makes.
    fn deliver(&mut self, head: Head, phase: Phase, picked: &mut Picked, sink: &mut Option<Sink<'_>>) {
        let rows = std::mem::take(&mut picked.count);
        if rows == 0 {
            return;
        }
        self.call_head(head, phase, rows, picked.first);
        let vocab = self.plan().vocab;
        for (row, &PickedRow { work, index, place }) in picked.rows[..rows].iter().enumerate() {
            match (head, &mut *sink) {
                (Head::Tokens, _) => self.tokens[place] = self.token(row),
                (Head::Logits, Some(sink)) => {
                    sink(work, index, &floats(self.area(Area::Logits))[row * vocab..][..vocab]);
                }
                (Head::Logits, None) => {}
            }
        }
    }

    /// Runs a head on so many picked rows; logits go to row `to` of theirs and on.
    fn call_head(&mut self, head: Head, phase: Phase, rows: usize, to: usize) {
        let segments = [Segment { first: 0, rows: rows as u64, keys: rows as u64, kv: 0 }];
        let logits = address(&mut self.areas[Area::Logits as usize]);
        let frame = match head {
            Head::Logits => &mut self.head,
            Head::Tokens => &mut self.head_argmax,
        };
        if head == Head::Logits
            && let Some(&(word, row)) = frame.rows.last()
        {
            frame.words[word] = logits + to as u64 * row;
        }
        self.caller.call(frame, phase, rows, &segments);
    }

    pub(super) fn predict_from(&mut self, sequence: &Sequence, head: Head) {
        let phase = sequence.predicts.filter(|_| Arc::ptr_eq(sequence.layout(), &self.layout));
        let Some(phase) = phase else {
            panic!("there is no token of this engine to predict from: see Sequence::has_prediction")
        };
        let last = sequence.last.as_slice();
        self.areas[Area::Picked as usize].as_mut_slice()[..last.len()].copy_from_slice(last);
        self.call_head(head, phase, 1, 0);
    }
}
