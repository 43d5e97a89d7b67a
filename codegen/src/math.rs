//! Vectorised exp, tanh, sine, cosine, logarithm.
