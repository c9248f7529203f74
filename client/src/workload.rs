//! What is said on a connection: requests of the byte service, an echo, or any fixed text; of one size or of many.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::service;
use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::random::Random;

/// Requests are prepared in pieces of at most so many bytes.
const PIECE: usize = 16 * 1024;
/// More requests under way on one connection than this help nobody.
pub const MOST_PIPELINED: u32 = 1024;

/// What a client says, and what it expects back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Talk {
    /// A decimal number and a newline; that many bytes of the pattern come back.
    #[default]
    Number,
    /// That many bytes of the pattern; the same come back.
    Echo,
    /// Always these bytes; an answer of a fixed size comes back.
    Raw {
        /// What is sent.
        request: Vec<u8>,
        /// Length of the answer, at least 1.
        reply_bytes: u32,
    },
}

/// Sizes that change from request to request. Each client has a sequence of its own, which the seed repeats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sizes {
    /// Anything between the two, all equally likely.
    Uniform(u32, u32),
    /// Exponential with this mean, at least 1.
    Exponential(u32),
    /// One of the sizes in a file, all equally likely.
    File {
        /// The file.
        path: PathBuf,
        /// What is in it. Not in the JSON.
        #[serde(skip)]
        sizes: Vec<u32>,
    },
}

impl Sizes {
    /// Reads a file with one size per line; empty lines and what follows a `#` do not count.
    ///
    /// # Errors
    /// In words, with the file's name.
    pub fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = fs::read_to_string(path).map_err(|error| format!("open {name}: {error}"))?;
        let mut sizes = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            match line.parse::<u32>() {
                _ if line.is_empty() => {}
                Ok(size @ 1..) => sizes.push(size),
                _ => return Err(format!("{name}, line {}: {line:?} is no number of bytes, 1 or more", number + 1)),
            }
        }
        if sizes.is_empty() {
            Err(format!("{name}: no sizes in it"))
        } else {
            Ok(Sizes::File { path: path.into(), sizes })
        }
    }

    fn draw(&self, random: &mut Random) -> u32 {
        match self {
            Sizes::Uniform(low, high) => low.saturating_add(below(u64::from(high - low) + 1, random)),
            Sizes::Exponential(mean) => (f64::from(*mean) * random.exponential()).round().max(1.0) as u32,
            Sizes::File { sizes, .. } => sizes.get(below(sizes.len() as u64, random) as usize).copied().unwrap_or(1),
        }
    }

    /// Whether there is a size to draw, and none of 0.
    pub fn is_possible(&self) -> bool {
        match self {
            Sizes::Uniform(low, high) => (1..=*high).contains(low),
            Sizes::Exponential(mean) => *mean > 0,
            Sizes::File { sizes, .. } => !sizes.is_empty() && !sizes.contains(&0),
        }
    }

    /// In words, behind "requests of".
    pub fn describe(&self) -> String {
        match self {
            Sizes::Uniform(low, high) => format!("{low} to {high} bytes"),
            Sizes::Exponential(mean) => format!("{mean} bytes on average (exponential)"),
            Sizes::File { path, .. } => format!("the sizes in {}", path.display()),
        }
    }
}

/// A random number below `n`, which is at most 2^32: by multiplication, as it is cheaper than a division.
fn below(n: u64, random: &mut Random) -> u32 {
    (((random.bits() >> 32) * n) >> 32) as u32
}

/// What a plan means for the bytes of a request. One per thread; a client keeps no more than a position in it.
#[derive(Clone, Debug)]
pub struct Workload {
    echo: bool,
    bytes: u32,
    sizes: Option<Arc<Sizes>>,
    /// Requests on one connection that are sent without waiting for answers.
    pub pipeline: u32,
    /// As many requests as are sent at once, where all are the same.
    text: Vec<u8>,
    /// Length of one of them.
    each: usize,
}

impl From<&Plan> for Workload {
    fn from(plan: &Plan) -> Self {
        let one = match &plan.talk {
            Talk::Number => format!("{}\n", plan.bytes).into_bytes(),
            Talk::Echo => Vec::new(),
            Talk::Raw { request, .. } => request.clone(),
        };
        let pipeline = plan.pipeline.clamp(1, MOST_PIPELINED);
        let sizes = plan.sizes.clone().filter(|_| !matches!(plan.talk, Talk::Raw { .. }));
        Workload {
            echo: plan.talk == Talk::Echo,
            bytes: match plan.talk {
                Talk::Raw { reply_bytes, .. } => reply_bytes,
                _ => plan.bytes,
            },
            sizes: sizes.map(Arc::new),
            pipeline,
            text: one.repeat(pipeline as usize),
            each: one.len(),
        }
    }
}

impl Workload {
    /// The size of the next answer of a client whose random numbers are these.
    pub fn want(&self, random: &mut Random) -> u32 {
        self.sizes.as_ref().map_or(self.bytes, |sizes| sizes.draw(random))
    }

    /// Bytes to send for `count` requests from here on.
    pub fn length(&self, count: u32, random: &Random) -> u64 {
        if self.sizes.is_none() {
            let each = if self.echo { u64::from(self.bytes) } else { self.each as u64 };
            return each * u64::from(count);
        }
        let mut random = random.clone();
        (0..count).map(|_| self.request_length(self.want(&mut random))).sum()
    }

    fn request_length(&self, want: u32) -> u64 {
        if self.echo { want.into() } else { u64::from(want.checked_ilog10().unwrap_or(0)) + 2 }
    }

    /// The bytes of `count` requests from byte `from` on, or the first of them. `scratch` is for those that differ: its
    /// memory is used again and again, so that there is no allocation per request.
    pub fn text<'a>(&'a self, count: u32, random: &Random, from: u64, scratch: &'a mut String) -> &'a [u8] {
        if self.sizes.is_none() && !self.echo {
            let end = (self.each * count as usize).min(self.text.len());
            return self.text.get(from as usize..end).unwrap_or_default();
        }
        let mut random = random.clone();
        if self.echo && count == 1 {
            let want = self.want(&mut random);
            let from = u32::try_from(from).unwrap_or(want).min(want);
            return service::answer_from(from, want - from);
        }
        scratch.clear();
        let mut skip = from;
        for _ in 0..count {
            let want = self.want(&mut random);
            let length = self.request_length(want);
            if skip < length && scratch.len() < PIECE {
                self.write(want, skip as u32, scratch);
            }
            skip = skip.saturating_sub(length);
        }
        scratch.as_bytes()
    }

    /// One request from byte `skip` on. Of a long one the first piece.
    fn write(&self, want: u32, skip: u32, scratch: &mut String) {
        if self.echo {
            let piece = service::answer_from(skip, want - skip);
            scratch.extend(piece.iter().map(|byte| char::from(*byte)));
            return;
        }
        let start = scratch.len();
        // Writing to a string never fails.
        _ = writeln!(scratch, "{want}");
        scratch.drain(start..start + skip as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(work: &Workload, count: u32, random: &Random, step: usize) -> Vec<u8> {
        let (mut sent, mut scratch) = (Vec::new(), String::new());
        while (sent.len() as u64) < work.length(count, random) {
            let text = work.text(count, random, sent.len() as u64, &mut scratch);
            let piece = &text[..text.len().min(step)];
            assert!(!piece.is_empty());
            sent.extend_from_slice(piece);
        }
        sent
    }

    #[test]
    fn the_text_is_the_same_however_it_is_cut() {
        let sizes = [None, Some(Sizes::Uniform(1, 100_000)), Some(Sizes::Exponential(300))];
        for (talk, sizes) in [Talk::Number, Talk::Echo].iter().flat_map(|t| sizes.clone().map(|s| (t.clone(), s))) {
            for count in [1, 7] {
                let work =
                    Workload::from(&Plan { talk: talk.clone(), sizes: sizes.clone(), pipeline: 7, ..Plan::default() });
                let random = Random::new(3);
                let whole = all(&work, count, &random, usize::MAX);
                assert_eq!(whole.len() as u64, work.length(count, &random));
                assert_eq!(whole, all(&work, count, &random, 5));
                if talk == Talk::Number {
                    let mut draws = random.clone();
                    let expected: String = (0..count).map(|_| format!("{}\n", work.want(&mut draws))).collect();
                    assert_eq!(whole, expected.as_bytes());
                }
            }
        }
    }

    #[test]
    fn sizes_are_where_they_shall_be_and_a_seed_repeats_them() {
        let mean = |sizes: &Sizes| {
            let mut random = Random::new(1);
            (0..20_000).map(|_| f64::from(sizes.draw(&mut random))).sum::<f64>() / 20_000.0
        };
        let mut random = Random::new(9);
        assert!((0..1000).all(|_| (10..=20).contains(&Sizes::Uniform(10, 20).draw(&mut random))));
        assert!((0..1000).any(|_| Sizes::Uniform(10, 20).draw(&mut random) == 20));
        assert!((mean(&Sizes::Uniform(10, 20)) - 15.0).abs() < 0.2);
        assert!((mean(&Sizes::Exponential(1000)) - 1000.0).abs() < 30.0);
        assert_eq!(mean(&Sizes::Exponential(1000)), mean(&Sizes::Exponential(1000)));
        assert!(Sizes::Uniform(1, u32::MAX).draw(&mut random) >= 1);
    }
}
