//! The live numbers: requests, keys, and the state of the terminal.

use std::{
    io::{self, IsTerminal as _},
    pin::pin,
    process::ExitCode,
    thread,
    time::Duration,
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    STATUS,
    client::Client,
    screen::{self, Screen, Statistics},
};

/// The interval between two requests.
const INTERVAL: Duration = Duration::from_secs(1);
/// The path of as many builds as a high screen shows.
const BUILDS: &str = "/api/v1/builds?limit=100";
/// The signals that end the program, with the terminal restored.
const SIGNALS: [SignalKind; 3] = [
    SignalKind::terminate(),
    SignalKind::interrupt(),
    SignalKind::hangup(),
];

/// Shows the numbers until a key or a signal ends it.
pub(super) async fn run(client: &Client) -> Result<ExitCode, String> {
    if !io::stdout().is_terminal() {
        return Err(
            "top needs a terminal as standard output; gorego stats prints the numbers as text or JSON"
                .to_owned(),
        );
    }
    let mut screen = Screen::new(client.address.clone());
    screen.update(request(client).await?);
    let mut signals = Vec::new();
    for kind in SIGNALS {
        let stream = signal(kind).map_err(|why| format!("cannot handle signals: {why}"))?;
        signals.push((kind, stream));
    }
    let mut terminal = Terminal::open().map_err(|why| format!("cannot use the terminal: {why}"))?;
    let ended = show(client, &mut terminal.0, screen, &mut signals).await;
    drop(terminal);
    ended.map_err(|why| format!("cannot draw on the terminal: {why}"))
}

async fn show(
    client: &Client,
    terminal: &mut DefaultTerminal,
    mut screen: Screen,
    signals: &mut [(SignalKind, Signal)],
) -> io::Result<ExitCode> {
    let mut events = events();
    let mut next = pin!(request_at(client, Instant::now() + INTERVAL));
    let mut signalled = pin!(first(signals));
    loop {
        terminal.draw(|frame| screen::draw(frame, &screen))?;
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Key(key)) if leaves(key) => return Ok(ExitCode::SUCCESS),
                // Other events, such as a new size, need no more than the next drawing.
                Some(_) => {}
                None => return Ok(ExitCode::SUCCESS),
            },
            kind = &mut signalled => {
                let status = 128 + kind.as_raw_value();
                return Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)));
            }
            (begun, numbers) = &mut next => {
                match numbers {
                    Ok(numbers) => screen.update(numbers),
                    Err(why) => screen.problem = Some(why),
                }
                let soon = (begun + INTERVAL).max(Instant::now());
                next.set(request_at(client, soon));
            }
        }
    }
}

/// Requests the numbers at that time.
async fn request_at(client: &Client, at: Instant) -> (Instant, Result<Statistics, String>) {
    sleep_until(at).await;
    (at, request(client).await)
}

async fn request(client: &Client) -> Result<Statistics, String> {
    let (snapshot, builds) = tokio::join!(client.get(STATUS), client.find(BUILDS));
    Ok(Statistics {
        snapshot: snapshot?.value,
        builds: builds?.map(|found| found.value),
    })
}

/// Waits for the first of the signals.
async fn first(signals: &mut [(SignalKind, Signal)]) -> SignalKind {
    std::future::poll_fn(|context| {
        for (kind, stream) in &mut *signals {
            if stream.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(*kind);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Returns whether the key ends the program.
fn leaves(key: KeyEvent) -> bool {
    let controls = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c' | 'C') => controls,
        KeyCode::Char('q' | 'Q') => !controls,
        KeyCode::Esc => true,
        _ => false,
    }
}

/// Returns the events of the terminal. They end with the terminal. The thread that waits for them ends with the
/// process.
fn events() -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel(16);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    events
}

/// The terminal while it shows the numbers. Dropping it restores the previous screen; after a panic, ratatui has done
/// that already.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn open() -> io::Result<Self> {
        ratatui::try_init().map(Self).inspect_err(|_| {
            let _ = ratatui::try_restore();
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = ratatui::try_restore();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_control_c_leave() {
        let key = |code, modifiers| leaves(KeyEvent::new(code, modifiers));
        assert!(key(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(key(KeyCode::Char('Q'), KeyModifiers::SHIFT));
        assert!(key(KeyCode::Esc, KeyModifiers::NONE));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!key(KeyCode::Char('c'), KeyModifiers::NONE));
        assert!(!key(KeyCode::Enter, KeyModifiers::NONE));
    }
}
