//! Options that are one of a few, for the parser of arguments: their names, and what each is, are the library's.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use lapidary::Choice;

/// A parser of the names.
pub(crate) fn choices<T: Choice + Send + Sync>() -> impl TypedValueParser<Value = T> {
    let values = T::ALL.iter().map(|(_, name, about)| PossibleValue::new(*name).help(*about));
    PossibleValuesParser::new(values).map(|name| match T::parse(&name) {
        Ok(value) => value,
        Err(_) => unreachable!("the parser takes no other name"),
    })
}
