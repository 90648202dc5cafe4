//! Input and output of the chat.

mod prompt;

use std::io::Write;

use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};

use self::prompt::Prompt;
use super::ChatError;

/// The prefix of the user's lines.
const PROMPT: &str = "you> ";

/// The chat's window.
pub(super) enum Console {
    /// Standard input and output, one line after the other.
    Piped(Lines<BufReader<Stdin>>),
    /// A terminal.
    Terminal(Prompt),
}

impl Console {
    pub(super) fn open(interactive: bool) -> Result<Self, ChatError> {
        if interactive {
            return Ok(Self::Terminal(Prompt::open()?));
        }
        Ok(Self::Piped(BufReader::new(tokio::io::stdin()).lines()))
    }

    /// The next line, or `None` where the user leaves or the input ends. May be dropped and asked
    /// again.
    pub(super) async fn next_line(&mut self) -> Result<Option<String>, ChatError> {
        match self {
            Self::Piped(lines) => lines.next_line().await.map_err(ChatError::Input),
            Self::Terminal(prompt) => prompt.next_line().await.map_err(ChatError::Terminal),
        }
    }

    /// Shows the line that is run now, where the user has not seen it.
    pub(super) fn echo(&self, line: &str) -> Result<(), ChatError> {
        match self {
            Self::Piped(_) => self.type_line(line),
            Self::Terminal(_) => Ok(()),
        }
    }

    /// Shows a line as if the user had typed it.
    pub(super) fn type_line(&self, line: &str) -> Result<(), ChatError> {
        self.say(&format!("{PROMPT}{line}"))
    }

    /// Says something; a prompt that waits comes again below.
    pub(super) fn say(&self, text: &str) -> Result<(), ChatError> {
        let text = format!("{text}\n");
        match self {
            Self::Terminal(prompt) if prompt.waits() => {
                prompt.print_above(text);
                Ok(())
            }
            Self::Terminal(_) | Self::Piped(_) => write(&text).map_err(ChatError::Output),
        }
    }
}

fn write(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
