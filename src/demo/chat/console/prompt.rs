//! A prompt with line editing and history, and room above it for messages that arrive.

use std::io;
use std::sync::mpsc;
use std::thread;

use rustix::termios::{self, OptionalActions, Termios};
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{Config, DefaultEditor, Editor, ExternalPrinter};
use tokio::sync::mpsc as tokio_mpsc;

use super::{PROMPT, write};

type Typed = Result<String, ReadlineError>;

/// A prompt. Its two threads block on the terminal, and are left where they are when the chat ends.
pub(in super::super) struct Prompt {
    /// Each lets the user type one line, so that there is no prompt while a command runs.
    turns: mpsc::Sender<()>,
    typed: tokio_mpsc::UnboundedReceiver<Typed>,
    /// For what is to stand above a prompt that waits.
    above: mpsc::Sender<String>,
    waits: bool,
    /// The terminal's settings before line editing changed them.
    before: Option<Termios>,
}

impl Prompt {
    /// Takes the terminal.
    pub(super) fn open() -> Result<Self, super::ChatError> {
        Self::start().map_err(super::ChatError::Terminal)
    }

    fn start() -> Result<Self, ReadlineError> {
        let before = termios::tcgetattr(io::stdin()).ok();
        // Pasted lines are typed lines: each of them is run.
        let config = Config::builder().auto_add_history(true).bracketed_paste(false).build();
        let mut editor = DefaultEditor::with_config(config)?;
        let above = start_printer(editor.create_external_printer().ok())?;
        let (turns, take_turns) = mpsc::channel();
        let (sender, typed) = tokio_mpsc::unbounded_channel();
        // Not a task: a thread of the runtime that blocks would hold its end back.
        thread::Builder::new()
            .name("chat-prompt".to_owned())
            .spawn(move || read_lines(editor, &take_turns, &sender))?;
        Ok(Self { turns, typed, above, waits: false, before })
    }

    /// The next line, or `None` where the user leaves.
    pub(super) async fn next_line(&mut self) -> Result<Option<String>, ReadlineError> {
        if !self.waits {
            self.waits = self.turns.send(()).is_ok();
        }
        let typed = self.typed.recv().await;
        self.waits = false;
        typed.transpose()
    }

    /// Returns `true` if the prompt is shown, and the user may be typing.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// Prints lines above the prompt.
    pub(super) fn print_above(&self, text: String) {
        // The printer ends with this.
        let _ = self.above.send(text);
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        if !self.waits {
            return;
        }
        // The thread that edits the line cannot be stopped, so what it would put right is done here.
        if let Some(before) = &self.before {
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
        let _ = write("\n");
    }
}

fn read_lines(
    mut editor: Editor<(), DefaultHistory>,
    turns: &mpsc::Receiver<()>,
    typed: &tokio_mpsc::UnboundedSender<Typed>,
) {
    while turns.recv().is_ok() {
        let line = match editor.readline(PROMPT) {
            // Ctrl-C and Ctrl-D.
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => return,
            line => line,
        };
        if typed.send(line).is_err() {
            return;
        }
    }
}

/// Starts the thread that prints above the prompt: printing blocks where a message before it has
/// not been shown yet, and is not until the next prompt. A terminal without line editing has no
/// printer.
fn start_printer(
    mut printer: Option<impl ExternalPrinter + Send + 'static>,
) -> io::Result<mpsc::Sender<String>> {
    let (above, texts) = mpsc::channel::<String>();
    thread::Builder::new().name("chat-printer".to_owned()).spawn(move || {
        for text in texts {
            // Where the terminal is gone, the prompt says so.
            let _ = match &mut printer {
                Some(printer) => printer.print(text).is_ok(),
                None => write(&text).is_ok(),
            };
        }
    })?;
    Ok(above)
}
