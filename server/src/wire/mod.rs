//! What goes over the wire: requests as they are parsed and described, and the objects of answers.

pub(crate) mod answer;
pub(crate) mod request;
