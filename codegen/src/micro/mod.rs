//! Microkernels: rows of one visible table.
