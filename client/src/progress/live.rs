//! The terminal of the live view: taken over at the start, and given back at every end of the run: at the normal one,
//! after a signal, and after a panic anywhere in this program.

use std::io::{self, Stderr};
use std::panic;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use client::output::tui::{Key, View};
use client::{Plan, Progress};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};

/// Between two looks at the keyboard.
pub const GLANCE: Duration = Duration::from_millis(50);
/// Between two drawings.
const FRAME: Duration = Duration::from_millis(100);

/// The view and the terminal it is on.
pub struct Live {
    terminal: Terminal<CrosstermBackend<Stderr>>,
    view: View,
    stop: Arc<AtomicBool>,
    /// The rate set by a key, as the bits of an f64; 0 is none.
    rate: Arc<AtomicU64>,
    drawn: Option<Instant>,
}

/// Whether the terminal is taken over, so that it is given back once.
static TAKEN: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

impl Live {
    /// Takes the terminal over.
    pub fn new(plan: &Plan, stop: Arc<AtomicBool>, rate: Arc<AtomicU64>) -> io::Result<Self> {
        HOOK.call_once(|| {
            let before = panic::take_hook();
            // The message of a panic has to go to the ordinary screen, or nobody sees it.
            panic::set_hook(Box::new(move |info| {
                give_back();
                before(info);
            }));
        });
        TAKEN.store(true, Ordering::SeqCst);
        let opened = enable_raw_mode()
            .and_then(|()| execute!(io::stderr(), EnterAlternateScreen))
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stderr())));
        match opened {
            Ok(terminal) => Ok(Live { terminal, view: View::new(plan), stop, rate, drawn: None }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    /// Takes in what is new, the keys too, and draws if it is time.
    pub fn show(&mut self, now: Option<&Progress>) {
        if let Some(now) = now {
            self.view.take(now);
        }
        let pressed = self.keys();
        if pressed || self.drawn.is_none_or(|drawn| drawn.elapsed() >= FRAME) {
            self.drawn = Some(Instant::now());
            // A terminal that is gone shows nothing; the run goes on all the same, and SIGHUP ends it.
            _ = self.terminal.draw(|frame| self.view.draw(frame));
        }
    }

    /// Whether any key was pressed, or the size has changed.
    fn keys(&mut self) -> bool {
        let mut any = false;
        while let Ok(true) = event::poll(Duration::ZERO) {
            match event::read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => self.key(key),
                Ok(_) => {}
                Err(_) => return any,
            }
            any = true;
        }
        any
    }

    fn key(&mut self, key: KeyEvent) {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            // In raw mode the terminal makes no signal of it.
            KeyCode::Char('c' | '\\') if control => self.stop.store(true, Ordering::Relaxed),
            KeyCode::Char('q') | KeyCode::Esc => {
                self.view.key(Key::Quit);
                self.stop.store(true, Ordering::Relaxed);
            }
            KeyCode::Up => self.steer(1.1),
            KeyCode::Down => self.steer(1.0 / 1.1),
            KeyCode::Right => self.steer(1.01),
            KeyCode::Left => self.steer(1.0 / 1.01),
            KeyCode::PageUp => self.steer(2.0),
            KeyCode::PageDown => self.steer(0.5),
            _ => {}
        }
    }

    fn steer(&mut self, factor: f64) {
        self.view.key(Key::Rate(factor));
        if let Some(rate) = self.view.steered() {
            self.rate.store(rate.to_bits(), Ordering::Relaxed);
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        _ = execute!(io::stderr(), LeaveAlternateScreen, Show);
        _ = disable_raw_mode();
    }
}
