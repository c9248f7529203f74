//! What leaves the program beside the text and the JSON: files for people and for other programs, all of them made from
//! reports, so that a saved one gives the same as the run itself.
//!
//! | module | reason |
//! |---|---|
//! | [`args`] | the options, and the files opened before a run |
//! | [`hgrm`], [`csv`], [`series`] | histograms, summary and time series for other programs |
//! | [`svg`], [`html`] | charts and the whole report for people |
//! | [`tui`] | the live terminal view |

pub mod args;
pub mod csv;
pub mod form;
pub mod hgrm;
pub mod html;
pub mod series;
pub mod svg;
pub mod tui;

use crate::report::Report;

/// A report and what to call it where there are several.
#[derive(Clone, Debug)]
pub struct Run {
    /// From the name of its file.
    pub name: String,
    /// What it did.
    pub report: Report,
}
