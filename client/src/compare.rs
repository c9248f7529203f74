//! Is one side better than another, or is it chance? Pure functions on numbers, so that their truth can be tested.

mod bootstrap;
mod gate;
mod holm;
mod pair;
mod permutation;

pub use bootstrap::{median, median_interval};
pub use gate::{Breach, Gate};
pub use holm::holm;
pub use pair::{Pair, Verdict, band};
pub use permutation::{shift_p, shuffle, sign_flip_p};
