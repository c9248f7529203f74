//! The live view: what it knows of the run, and how that looks. It draws on any backend, so tests need no terminal.

use std::collections::VecDeque;
use std::iter;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Gauge, Paragraph, Sparkline};

use super::{form, series};
use crate::engine::Progress;
use crate::plan::{Plan, Until};
use crate::report::Slice;

/// Columns of the course of the run, a second each.
const HISTORY: usize = 60;
const SECOND: u64 = 1_000_000_000;
/// From few to many requests.
const SHADES: [char; 4] = ['\u{2591}', '\u{2592}', '\u{2593}', '\u{2588}'];

/// A key that the view shows the effect of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Key {
    /// End the run.
    Quit,
    /// So many times the present rate, in an open loop.
    Rate(f64),
}

/// The rates that keys can set.
const RATES: (f64, f64) = (0.1, 1e7);
const KEYS: &str = "q  end the run with its report";
const RATE_KEYS: &str = "q  end the run;  rate: Up Down 10 %, Right Left 1 %, PgUp PgDn x 2";

/// What is drawn.
#[derive(Clone, Debug)]
pub struct View {
    plan: Plan,
    now: Progress,
    /// The last minute, the present second last and not whole yet.
    seconds: VecDeque<Slice>,
    ending: bool,
    /// The rate set by hand, and at what time of the run.
    steered: Option<(f64, Duration)>,
}

impl View {
    /// Nothing has happened yet.
    pub fn new(plan: &Plan) -> Self {
        View { plan: plan.clone(), now: Progress::default(), seconds: VecDeque::new(), ending: false, steered: None }
    }

    /// Takes in one look at the run.
    pub fn take(&mut self, now: &Progress) {
        self.now = now.clone();
        if self.seconds.back().is_none_or(|slice| slice.length_ns >= SECOND) {
            self.seconds.push_back(Slice::default());
        }
        if self.seconds.len() > HISTORY + 1 {
            self.seconds.pop_front();
        }
        if let Some(slice) = self.seconds.back_mut() {
            series::join(slice, &now.recent);
        }
    }

    /// Takes in a key.
    pub fn key(&mut self, key: Key) {
        match key {
            Key::Quit => self.ending = true,
            Key::Rate(factor) => {
                let rate = self.present_rate().map(|rate| (rate * factor).clamp(RATES.0, RATES.1));
                self.steered = rate.map(|rate| (rate, self.now.elapsed));
            }
        }
    }

    /// The rate that keys have set.
    pub fn steered(&self) -> Option<f64> {
        self.steered.map(|(rate, _)| rate)
    }

    /// The rate of an open loop now.
    fn present_rate(&self) -> Option<f64> {
        let rate = self.plan.rate?;
        let length = match self.plan.until {
            Until::Elapsed(time) => time,
            Until::Tries(_) => {
                let all = self.plan.requests().unwrap_or_default() as f64;
                Duration::try_from_secs_f64(2.0 * all / (rate.from + rate.to)).unwrap_or(Duration::MAX)
            }
        };
        Some(self.steered().unwrap_or_else(|| rate.at(self.now.elapsed, length)))
    }

    /// The last whole second, or what there is of the first.
    fn last_second(&self) -> Option<&Slice> {
        self.seconds.iter().rev().find(|slice| slice.length_ns >= SECOND).or(self.seconds.back())
    }

    /// Draws all of it; what does not fit is left out from the bottom.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let rows = [
            Constraint::Length(2),
            Constraint::Length(1),
            Constraint::Length(5),
            Constraint::Length(4),
            Constraint::Length(4),
            Constraint::Min(0),
            Constraint::Length(1),
        ];
        let [head, gauge, counts, latency, rate, heat, keys] = Layout::vertical(rows).areas(frame.area());
        let plan = Line::from(form::plain(&self.plan.describe())).bold();
        let server = format!("to {}:{}", form::plain(&self.plan.host), self.plan.port);
        frame.render_widget(Paragraph::new(vec![plan, Line::from(server)]), head);
        self.draw_gauge(frame, gauge);
        frame.render_widget(Paragraph::new(self.counts()).block(Block::bordered().title(" counts ")), counts);
        frame.render_widget(Paragraph::new(self.latencies()), latency);
        self.draw_rate(frame, rate);
        self.draw_heat(frame, heat);
        let words = match (self.ending, self.plan.rate) {
            (true, _) => "ending the run...",
            (_, Some(_)) => RATE_KEYS,
            _ => KEYS,
        };
        frame.render_widget(Paragraph::new(words).dim(), keys);
    }

    fn draw_gauge(&self, frame: &mut Frame<'_>, area: Rect) {
        let done = match (self.plan.until, self.now.planned) {
            (Until::Elapsed(time), _) => self.now.elapsed.as_secs_f64() / time.as_secs_f64().max(1e-9),
            (_, Some(planned)) => (self.now.done + self.now.failed) as f64 / planned.max(1) as f64,
            _ => 0.0,
        };
        let label = format!("{:.1} s", self.now.elapsed.as_secs_f64());
        let gauge = Gauge::default().ratio(done.clamp(0.0, 1.0)).label(label).gauge_style(Color::Blue);
        frame.render_widget(gauge, area);
    }

    fn counts(&self) -> Vec<Line<'static>> {
        let now = &self.now;
        let of = now.planned.map(|planned| format!(" of {}", form::count(planned))).unwrap_or_default();
        let failed = Span::from(format!("{} failed", form::count(now.failed)));
        let failed = if now.failed > 0 { failed.bold().red() } else { failed };
        let last = self.last_second();
        let recent = last.map_or(0.0, |slice| per_second(slice.done, slice.length_ns));
        let mean = now.done as f64 / now.elapsed.as_secs_f64().max(1e-9);
        let mut rates = vec![
            Span::from(format!("{} requests/s", form::short(recent))).bold(),
            Span::from(format!(" in the last second, {} so far", form::short(mean))),
        ];
        if self.plan.rate.is_some() {
            let due = last.map_or(0.0, |slice| per_second(slice.offered, slice.length_ns));
            rates.push(Span::from(format!(", {} due", form::short(due))));
        }
        let warm = match (now.is_warm, self.steered) {
            (false, _) => "warming up: not in the latencies of the report".to_owned(),
            (_, Some((rate, at))) => {
                format!("rate set by hand: {}/s since {:.1} s", form::short(rate), at.as_secs_f64())
            }
            _ => String::new(),
        };
        let done = Span::from(format!("{}{of} done, ", form::count(now.done)));
        let open = Span::from(format!(", {} open, {} received", form::count(now.open), form::bytes(now.bytes as f64)));
        vec![Line::from(rates), Line::from(vec![done, failed, open]), Line::from(warm)]
    }

    fn latencies(&self) -> Vec<Line<'static>> {
        let cells = |name: &str, cells: [String; 5]| {
            let cells = cells.iter().map(|cell| format!("{cell:>10}")).collect::<String>();
            Line::from(format!("{name:<16}{cells}"))
        };
        let text = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), |ns| form::time(ns as f64));
        let last = self.last_second();
        let recent = |share| text(last.and_then(|slice| series::percentile(slice, share)));
        let longest = |slice: Option<&Slice>| text(slice.map(|slice| slice.max_ns).filter(|ns| *ns > 0));
        let [p50, p90, p99, p99_9] = self.now.percentiles.map(text);
        let slowest = self.seconds.iter().max_by_key(|slice| slice.max_ns);
        vec![
            cells("response time", ["p50", "p90", "p99", "p99.9", "longest"].map(str::to_owned)).bold(),
            cells("last second", [recent(0.5), recent(0.9), recent(0.99), recent(0.999), longest(last)]),
            cells("whole run", [p50, p90, p99, p99_9, longest(slowest)]),
        ]
    }

    fn draw_rate(&self, frame: &mut Frame<'_>, area: Rect) {
        let whole = self.whole(area.width);
        let most = whole.iter().map(|slice| per_second(slice.done, slice.length_ns)).fold(0.0, f64::max);
        let data: Vec<u64> = whole.iter().map(|slice| per_second(slice.done, slice.length_ns) as u64).collect();
        let title = Line::from(format!("rate in the last minute, at most {}/s", form::short(most))).dim();
        let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
        frame.render_widget(title, head);
        frame.render_widget(Sparkline::default().data(data).style(Style::new().fg(Color::Blue)), body);
    }

    /// The whole seconds that have room.
    fn whole(&self, width: u16) -> Vec<&Slice> {
        let whole: Vec<&Slice> = self.seconds.iter().filter(|slice| slice.length_ns >= SECOND).collect();
        let skip = whole.len().saturating_sub(HISTORY.min(width.into()));
        whole.into_iter().skip(skip).collect()
    }

    /// A column per second, a row per power of two or more of them, darker for more requests.
    fn draw_heat(&self, frame: &mut Frame<'_>, area: Rect) {
        const LABEL: u16 = 9;
        let whole = self.whole(area.width.saturating_sub(LABEL));
        let keys = || whole.iter().flat_map(|slice| &slice.heat);
        let (Some(low), Some(high)) = (keys().map(|(k, _)| *k).min(), keys().map(|(k, _)| *k).max()) else { return };
        let rows = area.height.saturating_sub(1);
        if rows == 0 {
            return;
        }
        let each = (high - low + 1).div_ceil(rows).max(1);
        let row_of = |k: u16| (k - low) / each;
        let used = row_of(high) + 1;
        let count = |slice: &Slice, row: u16| -> u64 {
            slice.heat.iter().filter(|(k, _)| row_of(*k) == row).map(|(_, count)| count).sum()
        };
        let most = whole.iter().flat_map(|slice| (0..used).map(|row| count(slice, row))).max().unwrap_or(1).max(1);
        let mut lines = vec![Line::from("response times in the last minute").dim()];
        for row in (0..used).rev() {
            let from = form::time((f64::from(low + row * each) / 4.0).exp2());
            let cells = whole.iter().map(|slice| shade(count(slice, row), most));
            let text: String = iter::once(format!("{from:>7}  ")).chain(cells.map(String::from)).collect();
            lines.push(Line::from(text));
        }
        frame.render_widget(Paragraph::new(lines), area);
    }
}

fn per_second(n: u64, length_ns: u64) -> f64 {
    n as f64 * 1e9 / length_ns.max(1) as f64
}

/// On a logarithmic scale, so that a single slow request is seen beside a thousand fast ones.
fn shade(count: u64, most: u64) -> char {
    if count == 0 {
        return ' ';
    }
    let part = ((count as f64).ln_1p() / (most as f64).ln_1p() * SHADES.len() as f64).ceil() as usize;
    SHADES.get(part.clamp(1, SHADES.len()) - 1).copied().unwrap_or(' ')
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn screen(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    fn view(seconds: u64) -> View {
        let until = Until::Elapsed(Duration::from_secs(100));
        let mut view = View::new(&Plan { until, host: "h\u{1b}[31m".into(), ..Plan::default() });
        for tick in 0..seconds * 10 {
            let mut now = Progress { elapsed: Duration::from_millis(100 * (tick + 1)), ..Progress::default() };
            now.done = 500 * (tick + 1);
            now.failed = 7;
            now.percentiles = [Some(50_000), Some(90_000), Some(2_000_000), None];
            now.recent = Slice {
                start_ns: tick * SECOND / 10,
                length_ns: SECOND / 10,
                done: 500,
                heat: vec![(62, 490), (80, 10)],
                max_ns: 1_500_000,
                ..Slice::default()
            };
            view.take(&now);
        }
        view
    }

    #[test]
    fn rate_latencies_failures_and_keys_are_on_the_screen() {
        let text = screen(&view(75), 80, 24);
        for part in [
            "5k requests/s",
            "7 failed",
            "50 us",
            "90 us",
            "2 ms",
            "1.5 ms",
            "75.0 s",
            "q  end the run",
            "at most 5k/s",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(text.contains('\u{2588}') && text.contains('\u{2593}') && !text.contains('\u{1b}'), "{text}");
        assert_eq!(view(75).seconds.len(), HISTORY + 1);
    }

    #[test]
    fn any_size_will_do() {
        for (width, height) in [(1, 1), (10, 3), (40, 12), (79, 23), (300, 100)] {
            for seconds in [0, 1, 3] {
                screen(&view(seconds), width, height);
            }
        }
    }

    #[test]
    fn keys_set_the_rate_of_an_open_loop_from_what_it_is_now() {
        let mut closed = view(1);
        closed.key(Key::Rate(1.1));
        assert_eq!(closed.steered(), None);
        assert!(!screen(&closed, 80, 24).contains("PgUp"));
        // Ten of a hundred seconds into the ramp.
        let mut view = view(10);
        view.plan.rate = Some(crate::Rate { from: 1000.0, to: 2000.0 });
        assert!(screen(&view, 80, 24).contains("rate: Up Down 10 %"));
        view.now.is_warm = true;
        view.key(Key::Rate(2.0));
        assert!((view.steered().unwrap() - 2200.0).abs() < 1e-6, "{:?}", view.steered());
        view.key(Key::Rate(0.5));
        assert!((view.steered().unwrap() - 1100.0).abs() < 1e-6, "{:?}", view.steered());
        assert!(screen(&view, 80, 24).contains("rate set by hand: 1.1k/s since 10.0 s"), "{}", screen(&view, 80, 24));
        (0..100).for_each(|_| view.key(Key::Rate(0.5)));
        assert_eq!(view.steered(), Some(RATES.0));
    }

    #[test]
    fn q_is_seen() {
        let mut view = view(1);
        view.key(Key::Quit);
        assert!(screen(&view, 80, 24).contains("ending the run"));
    }
}
