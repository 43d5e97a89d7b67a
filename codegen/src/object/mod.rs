//! The object backend: an image as a relocatable file that any C linker takes, with a header and a weights file.
//!
//! In: an [`Image`], its target, a prefix for names, the type of each weight. Out: an [`Object`]. What the runtime's
//! engine does in this process (steps, positions) is generated code here, the [`driver`], over the same [`Layout`];
//! memory and threads are the caller's. Invariants:
//! the object refers to nothing outside of itself, not even libc; it writes nothing but engine and state; the same
//! input gives the same bytes.
//!
//! | module | holds |
//! |---|---|
//! | [`state`] | where everything lies in the caller's memory |
//! | [`weights`] | the weights file: which tensor lies where |
//! | [`driver`] | the public functions and the launches, in Cranelift IR |
//! | [`guard`] | what is asked of the CPU before anything else runs |
//! | [`elf`] | sections, symbols, relocations |
//! | [`header`] | the C header |
//! | [`callable`] | all of this of a function that is no model's |

pub mod callable;
pub mod driver;
pub mod elf;
pub mod guard;
pub mod header;
pub mod state;
pub mod weights;

use lapidary_runtime::layout::Layout;
use lapidary_runtime::program::Image;

use crate::Error;
use crate::target::{Placement, Target};
use state::Places;
use weights::{TensorType, WeightsFile};

/// What the public functions return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// An engine or a state that is null, misaligned, too small, or not ready.
    State,
    /// Weights that are null, misaligned, of another length or of another layout.
    Weights,
    /// A null pointer, too many states, or one twice.
    Argument,
    /// More tokens than the context holds; nothing changed.
    Context,
    /// A token that is no row of the embedding table; nothing changed.
    Token,
    /// A position ahead, or one whose sliding window is gone; nothing changed.
    Position,
    /// A CPU that lacks what the code needs; nothing changed.
    Cpu,
}

impl Status {
    /// Every status, by rising code.
    pub const ALL: [Status; 8] = [
        Status::Ok,
        Status::State,
        Status::Weights,
        Status::Argument,
        Status::Context,
        Status::Token,
        Status::Position,
        Status::Cpu,
    ];

    /// The number that functions return.
    pub fn code(self) -> i64 {
        self as i64
    }
}

/// An object and what belongs to it.
pub struct Object {
    /// The relocatable ELF file.
    pub elf: Vec<u8>,
    /// The C header.
    pub header: String,
    /// The weights file's layout; the bytes are the weight source's.
    pub weights: WeightsFile,
}

/// What an object is made of.
pub struct Parts<'a> {
    /// Code, tables, plan.
    pub image: &'a Image,
    /// The CPU it was compiled for: a name of the table or `native`.
    pub cpu: &'a str,
    /// What public names start with, a C identifier in lower case.
    pub prefix: &'a str,
    /// The token that a text begins with.
    pub bos: i32,
    /// The tokens that end an answer.
    pub stop: &'a [i32],
    /// The type of each weight by name; none of a weight that there is not.
    pub tensor: &'a dyn Fn(&str) -> Option<TensorType>,
}

/// Makes the object.
///
/// # Errors
/// [`Error::Object`] for a plan that does not fit its functions, a weight without a type, or code that cannot be made.
pub fn build(parts: &Parts<'_>) -> Result<Object, Error> {
    // References of the driver are all to the object itself: no detour through a table of addresses.
    let target = Target::new(parts.cpu, Placement::Jit)?;
    let layout = Layout::new(&parts.image.functions, &parts.image.plan).map_err(refuse)?;
    let weights = WeightsFile::new(&layout.weights, parts.tensor)?;
    let places = Places::new(&layout, &parts.image.plan, &weights)?;
    let driver = driver::emit(&target, parts.image, &places, &weights)?;
    let elf = elf::write(&target, parts.prefix, parts.image, &driver)?;
    let header = header::text(&target, parts, &places, &weights);
    Ok(Object { elf, header, weights })
}

/// An error of this backend.
fn refuse(reason: impl std::fmt::Display) -> Error {
    Error::Object(reason.to_string())
}
