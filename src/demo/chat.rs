//! The demo's chat: lines that a person types, and the answers of a bot.
//!
//! The bot is a gRPC client like any other: it knows its API key, the chat user, and nothing of
//! the broker that happens to run in the same process.
//!
//! | part | what it does |
//! | --- | --- |
//! | `command` | reads a line |
//! | `session` | runs a command: calls the broker, and follows what it started |
//! | `watch` | follows one authorization |
//! | `browser` | plays the user's browser, for `/browser` |
//! | `answer` | says it in words |
//! | `console` | where lines come from and words go to |

mod answer;
mod browser;
mod command;
mod console;
mod session;
mod watch;

use std::io;

use rustyline::error::ReadlineError;
use token_broker_client::Client;
use tokio_util::sync::CancellationToken;

use self::answer::Answer;
use self::command::Command;
use self::console::Console;
use self::session::Session;

/// The connections and names of the chat.
#[derive(Debug)]
pub struct Settings {
    /// The bot's connection to the broker.
    pub client: Client,
    /// The chat user.
    pub subject: String,
    /// The provider where a command names none.
    pub provider: String,
    /// `true` if a person sits there: a prompt with line editing, and events as they come. Otherwise
    /// the lines of standard input are run one after the other.
    pub interactive: bool,
}

/// The end of a chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The user left, the input ended, or the process has to end.
    Quit,
    /// The same, but a line of piped input failed.
    Failed,
}

/// The reason why the chat cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// Standard input cannot be read.
    #[error("cannot read the chat's input")]
    Input(#[source] io::Error),
    /// The terminal does not do what line editing needs.
    #[error("cannot use the terminal")]
    Terminal(#[source] ReadlineError),
    /// Standard output cannot be written.
    #[error("cannot write to the chat")]
    Output(#[source] io::Error),
    /// The client that plays the browser cannot be made.
    #[error("cannot set up the browser")]
    Browser(#[source] reqwest::Error),
}

/// Runs the chat until the user leaves, the input ends, or `shutdown`.
///
/// # Errors
///
/// [`ChatError`] where input or output fails. A command that fails is answered in the chat.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> Result<Ended, ChatError> {
    let interactive = settings.interactive;
    let mut console = Console::open(interactive)?;
    let mut session = Session::new(settings)?;
    let mut failed = false;
    loop {
        let line = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            event = session.event() => {
                session.tell(event, &console)?;
                continue;
            }
            line = console.next_line() => line?,
        };
        let Some(line) = line else { break };
        let next = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            next = take(&line, &mut session, &console) => next?,
        };
        match next {
            Next::Quit => break,
            Next::Line { succeeded } => failed |= !succeeded,
        }
    }
    Ok(if failed && !interactive { Ended::Failed } else { Ended::Quit })
}

enum Next {
    Line { succeeded: bool },
    Quit,
}

/// Runs one line to its end.
async fn take(line: &str, session: &mut Session, console: &Console) -> Result<Next, ChatError> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(Next::Line { succeeded: true });
    }
    console.echo(line)?;
    let succeeded = match command::parse(line) {
        Ok(Command::Quit) => return Ok(Next::Quit),
        Ok(command) => session.execute(command, console).await?,
        Err(misunderstanding) => {
            console.say(&Answer::from(misunderstanding).text(session::now()))?;
            false
        }
    };
    Ok(Next::Line { succeeded })
}
