//! The options that name files, and those files: opened before a run, because what cannot be written is better known
//! then, and emptied only when there is something to write.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::error::ErrorKind;

use super::{Run, csv, hgrm, html, series, svg};
use crate::json;

/// Files to write beside the text. `-` stands for stdout, and then there is no text.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Outputs {
    /// Write an HTML page with charts and tables to FILE: one file, without scripts
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    /// Write the charts alone to FILE, as SVG
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    svg: Option<PathBuf>,
    /// Write the distribution of the response times to FILE and that of the service times beside it (x.service.hgrm),
    /// in HdrHistogram's text form
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    hgrm: Option<PathBuf>,
    /// Write a summary to FILE: one row per latency
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    csv: Option<PathBuf>,
    /// Write the course of the run to FILE while it lasts: a line of JSON per --interval
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    series: Option<PathBuf>,
}

/// One open file, or stdout.
#[derive(Debug)]
enum Target {
    Stdout,
    File(PathBuf, File),
}

impl Target {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Target::Stdout);
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        file.map(|file| Target::File(path.to_owned(), file)).with_context(|| format!("open {}", path.display()))
    }

    /// What is there belongs to this run from now on.
    fn writer(self) -> anyhow::Result<(String, Box<dyn Write + Send>)> {
        match self {
            Target::Stdout => Ok(("stdout".to_owned(), Box::new(BufWriter::new(io::stdout())))),
            Target::File(path, file) => {
                let name = path.display().to_string();
                if file.metadata().is_ok_and(|data| data.is_file()) {
                    file.set_len(0).with_context(|| format!("ftruncate {name}"))?;
                }
                Ok((name, Box::new(BufWriter::new(file))))
            }
        }
    }

    fn write(self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
        let (name, mut out) = self.writer()?;
        write(&mut out).and_then(|()| out.flush()).with_context(|| format!("write {name}"))
    }
}

/// What a run, or several saved ones, are written to.
#[derive(Debug, Default)]
pub struct Files {
    json: Option<Target>,
    html: Option<Target>,
    svg: Option<Target>,
    csv: Option<Target>,
    /// Per run that of the response and that of the service time; one alone if that is stdout.
    hgrm: Vec<Target>,
    series: Option<Target>,
}

impl Outputs {
    /// Whether any file is asked for.
    pub fn is_any(&self) -> bool {
        self.paths().next().is_some()
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.html, &self.svg, &self.hgrm, &self.csv, &self.series].into_iter().filter_map(|path| path.as_deref())
    }

    /// Refuses what cannot be meant.
    ///
    /// # Errors
    /// A usage error if two of them, or one and the JSON, go to stdout.
    pub fn check(&self, json: Option<&Path>) -> Result<(), clap::Error> {
        let to_stdout = self.paths().chain(json).filter(|path| *path == Path::new("-")).count();
        if to_stdout > 1 {
            let text = "only one file can be - (stdout)\n";
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, text));
        }
        Ok(())
    }

    /// Refuses what a command of many runs has no use for.
    ///
    /// # Errors
    /// A usage error that names the first such option, and the command.
    pub fn refuse(&self, options: &[&str], command: &str) -> Result<(), clap::Error> {
        let given = [
            ("html", &self.html),
            ("svg", &self.svg),
            ("hgrm", &self.hgrm),
            ("csv", &self.csv),
            ("series", &self.series),
        ];
        match given.into_iter().find(|(name, path)| path.is_some() && options.contains(name)) {
            Some((name, _)) => {
                let text = format!("--{name} does not go with client {command}\n");
                Err(clap::Error::raw(ErrorKind::ArgumentConflict, text))
            }
            None => Ok(()),
        }
    }

    /// Opens everything, for runs of these names.
    ///
    /// # Errors
    /// The first file that cannot be opened, or that is given twice.
    pub fn open(&self, json: Option<&Path>, names: &[String]) -> anyhow::Result<Files> {
        let open = |path: Option<&Path>| path.map(Target::open).transpose();
        let files = Files {
            json: open(json)?,
            html: open(self.html.as_deref())?,
            svg: open(self.svg.as_deref())?,
            csv: open(self.csv.as_deref())?,
            hgrm: match self.hgrm.as_deref() {
                Some(path) if path == Path::new("-") => vec![Target::Stdout],
                Some(path) => {
                    hgrm_paths(path, names).iter().map(|path| Target::open(path)).collect::<Result<_, _>>()?
                }
                None => Vec::new(),
            },
            series: open(self.series.as_deref())?,
        };
        files.refuse_twins()?;
        Ok(files)
    }
}

/// The plotter takes one distribution per file: FILE has the response times, FILE with `.service` before its extension
/// the service times; of several runs each has its name there too.
fn hgrm_paths(path: &Path, names: &[String]) -> Vec<PathBuf> {
    let with = |parts: &str| {
        let (stem, extension) = (path.file_stem().unwrap_or_default(), path.extension());
        let mut name = stem.to_owned();
        name.push(parts);
        if let Some(extension) = extension {
            name.push(".");
            name.push(extension);
        }
        path.with_file_name(name)
    };
    let safe = |name: &str| name.replace('/', "_");
    match names {
        [_] => vec![path.to_owned(), with(".service")],
        names => names
            .iter()
            .flat_map(|name| [safe(name), safe(name) + ".service"])
            .map(|name| with(&format!(".{name}")))
            .collect(),
    }
}

impl Files {
    fn all(&self) -> impl Iterator<Item = &Target> {
        let single = [&self.json, &self.html, &self.svg, &self.csv, &self.series];
        single.into_iter().flatten().chain(&self.hgrm)
    }

    fn refuse_twins(&self) -> anyhow::Result<()> {
        let mut seen = BTreeSet::new();
        for target in self.all() {
            let Target::File(path, file) = target else { continue };
            let data = file.metadata().with_context(|| format!("fstat {}", path.display()))?;
            if data.is_file() && !seen.insert((data.dev(), data.ino())) {
                bail!("{} is to be written twice: give each output a file of its own", path.display());
            }
        }
        Ok(())
    }

    /// Whether stdout is taken.
    pub fn use_stdout(&self) -> bool {
        self.all().any(|target| matches!(target, Target::Stdout))
    }

    /// Where the course of the run goes while it lasts.
    ///
    /// # Errors
    /// Those of the file.
    pub fn take_series(&mut self) -> anyhow::Result<Option<Box<dyn Write + Send>>> {
        let taken = self.series.take().map(Target::writer).transpose()?;
        Ok(taken.map(|(_, out)| out))
    }

    /// The JSON, for a command that has a document of its own.
    ///
    /// # Errors
    /// Those of the file.
    pub fn take_json(&mut self) -> anyhow::Result<Option<Box<dyn Write + Send>>> {
        Ok(self.json.take().map(Target::writer).transpose()?.map(|(_, out)| out))
    }

    /// The CSV, for a command that has rows of its own.
    ///
    /// # Errors
    /// Those of the file.
    pub fn take_csv(&mut self) -> anyhow::Result<Option<Box<dyn Write + Send>>> {
        Ok(self.csv.take().map(Target::writer).transpose()?.map(|(_, out)| out))
    }

    /// The page, for a command that has something to say before the runs.
    ///
    /// # Errors
    /// Those of the file.
    pub fn take_html(&mut self) -> anyhow::Result<Option<Box<dyn Write + Send>>> {
        Ok(self.html.take().map(Target::writer).transpose()?.map(|(_, out)| out))
    }

    /// Whether any file is left that needs the runs.
    pub fn is_any(&self) -> bool {
        self.all().next().is_some()
    }

    /// Writes all that is left to write about these runs.
    ///
    /// # Errors
    /// The first file that cannot be written.
    pub fn write(self, runs: &[Run]) -> anyhow::Result<()> {
        if let Some(target) = self.json {
            let each = |out: &mut dyn Write| runs.iter().try_for_each(|run| json::write(&run.report, out));
            target.write(each)?;
        }
        if let Some(target) = self.series {
            let slices = || runs.iter().flat_map(|run| &run.report.series);
            target.write(|out| slices().try_for_each(|slice| series::write(slice, out)))?;
        }
        if let Some(target) = self.csv {
            target.write(|out| csv::write(runs, out))?;
        }
        write_hgrm(self.hgrm, runs)?;
        if let Some(target) = self.svg {
            target.write(|out| svg::write(runs, out))?;
        }
        if let Some(target) = self.html {
            target.write(|out| html::write(runs, out))?;
        }
        Ok(())
    }
}

fn write_hgrm(mut targets: Vec<Target>, runs: &[Run]) -> anyhow::Result<()> {
    let latencies = |run: &Run| {
        [("response", run.report.latency.response.clone()), ("service", run.report.latency.service.clone())]
    };
    if let [Target::Stdout] = targets.as_slice() {
        return targets.remove(0).write(|out| {
            for (run, (name, histogram)) in runs.iter().flat_map(|run| latencies(run).map(|one| (run, one))) {
                writeln!(out, "#[{name} time of {}, ms]", super::form::plain(&run.name))?;
                hgrm::write(&histogram, out)?;
            }
            Ok(())
        });
    }
    for (target, (_, histogram)) in targets.into_iter().zip(runs.iter().flat_map(latencies)) {
        target.write(|out| hgrm::write(&histogram, out))?;
    }
    Ok(())
}

/// Reads saved reports. Each is called as its file without the extension, and no two alike.
///
/// # Errors
/// The first file that cannot be read or is no report.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    for path in paths {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("read {name}"))?;
        let report = json::read(&mut text.as_bytes()).with_context(|| format!("read {name}"))?;
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let taken = |name: &String| runs.iter().any(|run| run.name == *name);
        let names = std::iter::once(stem.clone()).chain((2_u32..).map(|n| format!("{stem}-{n}")));
        let name = names.skip_while(taken).take(1).collect();
        runs.push(Run { name, report });
    }
    if let [run] = runs.as_mut_slice() {
        // One alone is called as the run itself has called it.
        run.name = run.report.addr.to_string();
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_has_a_file_of_its_own() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let paths = |path, of: &[&str]| -> Vec<String> {
            hgrm_paths(Path::new(path), &names(of)).iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(paths("d/x.hgrm", &["run"]), ["d/x.hgrm", "d/x.service.hgrm"]);
        assert_eq!(paths("x", &["a", "b/c"]), ["x.a", "x.a.service", "x.b_c", "x.b_c.service"]);
    }
}
