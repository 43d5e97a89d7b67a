//! Signatures: what an operator's operands may be, what it makes, and what is known of its arithmetic.
//!
//! A [`Kinds`] is a set of kinds of term: coarser than a type, known without operands. Patterns are checked by it when
//! they are read: a dims list where an axis belongs never matches, and would only be noticed by its silence. Types
//! proper (shapes, element types) are [`infer`](crate::infer)'s, which reads the [`OpClass`] of elementwise operators
//! here.

/// A set of kinds of term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u16);

impl Kinds {
    /// A computed tensor.
    pub const COMPUTED: Kinds = Kinds(1);
    /// A number.
    pub const NUMBER: Kinds = Kinds(1 << 1);
    /// An integer.
    pub const INTEGER: Kinds = Kinds(1 << 2);
    /// `none`.
    pub const NONE: Kinds = Kinds(1 << 3);
    /// A list of dims.
    pub const DIMS: Kinds = Kinds(1 << 4);
    /// An element type.
    pub const DTYPE: Kinds = Kinds(1 << 5);
    /// `online` or `bounded`.
    pub const MODE: Kinds = Kinds(1 << 6);
    /// The weights of a linear.
    pub const WEIGHTS: Kinds = Kinds(1 << 7);
    /// An epilogue of a linear.
    pub const EPILOGUE: Kinds = Kinds(1 << 8);
    /// A norm as a linear's prologue.
    pub const PROLOGUE: Kinds = Kinds(1 << 9);
    /// Several tensors.
    pub const TUPLE: Kinds = Kinds(1 << 10);
    /// A cache.
    pub const CACHE: Kinds = Kinds(1 << 11);
    /// A program.
    pub const PROGRAM: Kinds = Kinds(1 << 12);
    /// Anything: a variable that nothing is known of.
    pub const ALL: Kinds = Kinds((1 << 13) - 1);
    /// What has elements.
    pub const TENSOR: Kinds = Kinds(1 | 1 << 1 | 1 << 2);

    /// Kinds in both.
    #[must_use]
    pub const fn and(self, other: Kinds) -> Kinds {
        Kinds(self.0 & other.0)
    }

    /// Kinds in either.
    #[must_use]
    pub const fn or(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// In words.
    pub fn describe(self) -> String {
        const NAMES: [&str; 13] = [
            "a tensor",
            "a number",
            "an integer",
            "none",
            "dims",
            "a dtype",
            "a mode",
            "weights",
            "an epilogue",
            "a prologue",
            "a tuple",
            "a cache",
            "a program",
        ];
        let all: Vec<&str> = (0..13).filter(|i| self.0 & (1 << i) != 0).map(|i| NAMES[i]).collect();
        all.join(" or ")
    }
}

/// Where an operator comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Models are written in it.
    Primitive,
    /// Only rewrites produce it, as a kernel or a part of one.
    Fused,
}

/// How many operands an operator takes, and what each may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// These, in order.
    Exactly(&'static [Kinds]),
    /// Any number, at least one, of these kinds each.
    OneOrMore(Kinds),
}

impl Operands {
    /// What operand `index` may be.
    pub fn kinds(self, index: usize) -> Option<Kinds> {
        match self {
            Operands::Exactly(all) => all.get(index).copied(),
            Operands::OneOrMore(kinds) => Some(kinds),
        }
    }

    /// How many there are, where that is fixed.
    pub fn count(self) -> Option<usize> {
        match self {
            Operands::Exactly(all) => Some(all.len()),
            Operands::OneOrMore(_) => None,
        }
    }
}

/// An operator's arithmetic: how elementwise ones get their types (operands broadcast), and whether values stay
/// rational.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpClass {
    /// Elementwise, f32 to f32; rational numbers stay rational (but for fractional powers).
    Floats,
    /// Elementwise, f32 to f32, by a function unknown over rational numbers.
    IrrationalFloats,
    /// Elementwise, of f32 or of i32, to the same.
    Numbers,
    /// Elementwise, of f32 or of i32, to bool.
    Comparison,
    /// Elementwise, of bool to bool.
    Truths,
    /// Types by an arm of its own; rational numbers stay rational.
    Rational,
    /// Types by an arm of its own; takes a function unknown over rational numbers.
    Irrational,
}

impl OpClass {
    /// Whether an operator's type follows from its class alone.
    pub fn is_elementwise(self) -> bool {
        match self {
            OpClass::Floats
            | OpClass::IrrationalFloats
            | OpClass::Numbers
            | OpClass::Comparison
            | OpClass::Truths => true,
            OpClass::Rational | OpClass::Irrational => false,
        }
    }

    /// Whether values take a function that is unknown over rational numbers.
    pub fn is_irrational(self) -> bool {
        matches!(self, OpClass::IrrationalFloats | OpClass::Irrational)
    }
}

/// What an operator takes and makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Where it comes from.
    pub origin: Origin,
    /// What it takes.
    pub operands: Operands,
    /// What it makes.
    pub result: Kinds,
    /// Its arithmetic.
    pub class: OpClass,
}
