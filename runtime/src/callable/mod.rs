//! A function that is no model's, called on memory of its caller's: by the compiler in this process and by an artifact
//! alike.
//!
//! In: a program with a [`Signature`], and for each call `T` and `S` and the bytes of what it takes. Out: the bytes of
//! what it gives. Operands that lie in the caller's memory as kernels hold them are used in place; of the others (an
//! axis of rows within another, whose step is fixed when the code is made; caches, which are written to) there is a
//! copy. Lengths and ids are looked at before machine code, which does not look, runs.

mod spread;
pub mod tensors;

use std::sync::Arc;

use crate::engine::Profile;
use crate::engine::call::{Caller, Frame};
use crate::error::Error;
use crate::pool::Pool;
use crate::program::{
    Aligned, Counts, FRAME_ARENA, FRAME_CONSTANTS, FRAME_SLOTS, Function, Operand, Phase, Program, Role,
    Segment, Signature,
};

use spread::{gather, scatter};
use tensors::Returned;

/// A function ready to be called.
pub struct Callable {
    caller: Caller<Signature>,
    frame: Frame,
    arena: Aligned,
    /// Of each operand, the copy that kernels work on, where one was ever needed.
    copies: Vec<Option<Aligned>>,
}

impl Callable {
    /// Threads, the caller's included (0 is taken as 1), and memory.
    ///
    /// # Errors
    /// [`Error::Program`] for a program whose slots are not its signature's, [`Error::Memory`].
    pub fn new(program: Arc<Program<Signature>>, threads: usize) -> Result<Callable, Error> {
        let (operands, [function]) = (&program.plan.operands, &program.functions[..]) else {
            return Err(Error::Program("expected one function".into()));
        };
        let names = || operands.iter().map(|operand| &operand.name);
        if operands.len() != function.slots.len() || !names().eq(function.slots.iter().map(|s| &s.name)) {
            return Err(Error::Program(format!("the slots of `{}` are not its operands", function.name)));
        }
        let most = |of: &dyn Fn(&crate::program::Variant) -> usize| {
            function.variants.iter().map(of).max().unwrap_or(0)
        };
        let (arena, scratch) = (most(&|v| v.arena_bytes), most(&|v| v.scratch_bytes));
        let arena = memory("temporaries", arena)?;
        let pool = Pool::new(threads, scratch)?;
        let frame = Frame { function: 0, words: vec![0; FRAME_SLOTS + operands.len()], rows: vec![] };
        let copies = operands.iter().map(|_| None).collect();
        Ok(Callable { caller: Caller { pool, profile: None, program }, frame, arena, copies })
    }

    /// What it takes and gives.
    pub fn signature(&self) -> &Signature {
        &self.caller.program.plan
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program<Signature>> {
        &self.caller.program
    }

    /// The variant that serves calls of so many rows, by its index.
    ///
    /// # Panics
    /// If there are more rows than it was compiled for.
    pub fn variant(&self, rows: usize) -> usize {
        let function = &self.caller.program.functions[0];
        function.variant_for(phase(function, rows), rows)
    }

    /// Times every launch from here on.
    pub fn start_profile(&mut self) {
        self.caller.start_profile();
    }

    /// The times since [`Callable::start_profile`]; launches are no longer timed.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.caller.profile.take()
    }

    /// Calls it: `takes` are the bytes of its operands but for those it only gives, in their order, `gives` those of
    /// what it returns, in its order; dense, as [`Operand::bytes`] counts them. A cache is both.
    ///
    /// # Errors
    /// [`Error::Call`] for counts, lengths or ids that do not fit, [`Error::Memory`].
    pub fn call(&mut self, counts: Counts, takes: &[&[u8]], gives: &mut [&mut [u8]]) -> Result<(), Error> {
        self.check(counts, takes, gives)?;
        let program = self.caller.program.clone();
        let (signature, function) = (&program.plan, &program.functions[0]);
        let phase = phase(function, counts.rows);
        let variant = &function.variants[function.variant_for(phase, counts.rows)];
        let room = Counts { rows: variant.rows, keys: signature.most.keys };
        let taken = takes.len();
        for (at, operand) in signature.operands.iter().enumerate() {
            let copied = operand.role == Role::Cache || operand.is_spread(counts, room);
            let output = || signature.returns.iter().position(|&returned| returned == at);
            let address = if copied {
                let copy = copy_of(&mut self.copies[at], operand, room)?;
                if at < taken {
                    scatter(operand, counts, room, takes[at], copy);
                }
                copy.as_mut_ptr()
            } else if at < taken {
                takes[at].as_ptr().cast_mut()
            } else if let Some(output) = output() {
                gives[output].as_mut_ptr()
            } else {
                return Err(Error::Program(format!("output `{}` is not returned", operand.name)));
            };
            self.frame.words[FRAME_SLOTS + at] = address.expose_provenance() as u64;
        }
        self.frame.words[FRAME_ARENA] = self.arena.as_mut_ptr().expose_provenance() as u64;
        self.frame.words[FRAME_CONSTANTS] = program.constants.as_ptr().expose_provenance() as u64;
        let segments = [Segment { first: 0, rows: counts.rows as u64, keys: counts.keys as u64, kv: 0 }];
        self.caller.call(&mut self.frame, phase, counts.rows, &segments);
        for (give, &at) in gives.iter_mut().zip(&signature.returns) {
            let operand = &signature.operands[at];
            if let Some(copy) = self.copies[at]
                .as_ref()
                .filter(|_| operand.role == Role::Cache || operand.is_spread(counts, room))
            {
                gather(operand, counts, room, copy.as_slice(), give);
            }
        }
        Ok(())
    }

    /// Calls it: what it returns, in its order.
    ///
    /// # Errors
    /// As [`Callable::call`].
    pub fn returned(&mut self, counts: Counts, takes: &[&[u8]]) -> Result<Vec<Returned>, Error> {
        let mut returned = Returned::room(self.signature(), counts);
        let mut gives: Vec<&mut [u8]> = returned.iter_mut().map(|r| &mut r.bytes[..]).collect();
        self.call(counts, takes, &mut gives)?;
        Ok(returned)
    }

    /// Whether machine code may run on these operands.
    fn check(&self, counts: Counts, takes: &[&[u8]], gives: &[&mut [u8]]) -> Result<(), Error> {
        let signature = self.signature();
        let refuse = |what: String| Err(Error::Call { function: signature.name.clone(), what });
        let Counts { rows, keys } = signature.most;
        if !(1..=rows).contains(&counts.rows) {
            return refuse(format!("T is {}: expected 1 to {rows}, what it is compiled for", counts.rows));
        }
        if !(counts.rows..=keys.max(counts.rows)).contains(&counts.keys) {
            return refuse(format!("S is {}: expected T, {}, to {keys}", counts.keys, counts.rows));
        }
        let taken = signature.operands.iter().filter(|operand| operand.role != Role::Output);
        let given = signature.returns.iter().map(|&at| &signature.operands[at]);
        let lengths = takes.iter().map(|t| t.len()).chain(gives.iter().map(|g| g.len()));
        let expected: Vec<&Operand> = taken.chain(given).collect();
        if expected.len() != takes.len() + gives.len() {
            return refuse(format!(
                "expected {} tensors, found {}",
                expected.len(),
                takes.len() + gives.len()
            ));
        }
        for (operand, found) in expected.into_iter().zip(lengths) {
            let bytes = operand.bytes(counts);
            if found != bytes {
                return refuse(format!(
                    "`{}`, {operand}: expected {bytes} bytes, found {found}",
                    operand.name
                ));
            }
        }
        match signature.stray_id(counts, |at| takes[at]) {
            Some(stray) => refuse(stray.to_string()),
            None => Ok(()),
        }
    }
}

/// What a call of so many rows is computed as: the smallest variant that serves it.
fn phase(function: &Function, rows: usize) -> Phase {
    if rows <= function.most_rows(Phase::Decode) { Phase::Decode } else { Phase::Prefill }
}

/// The copy of an operand, with room for the variant's rows.
fn copy_of<'c>(
    copy: &'c mut Option<Aligned>,
    operand: &Operand,
    room: Counts,
) -> Result<&'c mut Aligned, Error> {
    let bytes = operand.bytes(room);
    let held = match copy.take() {
        Some(held) if held.len() >= bytes => held,
        Some(_) | None => memory(&operand.name, bytes)?,
    };
    Ok(copy.insert(held))
}

fn memory(what: &str, bytes: usize) -> Result<Aligned, Error> {
    Aligned::try_zeroed(bytes).ok_or_else(|| Error::Memory { what: what.into(), bytes })
}
