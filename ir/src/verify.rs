//! Invariants.
use crate::{Error, Function};
/// stub
pub fn verify(_f: &Function) -> Result<(), Error> { Ok(()) }
