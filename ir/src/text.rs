//! Text form: printing and parsing.
use crate::function::Function;
use egg::Id;
/// One node of a function, its operands by reference.
pub fn node(function: &Function, id: Id) -> String {
    format!("{:?}", function.body[id])
}
