//! The commands of the chat.

/// One line for everyone who asks for help.
pub(super) const HELP: &str = "\
/oauth [PROVIDER]          asks for a link, where you authorize the app
/oauth confirm CODE        hands in the code that the page shows you
/oauth token [PROVIDER]    shows an access token
/oauth refresh [PROVIDER]  has the access token renewed now
/oauth revoke [PROVIDER]   ends the grant, here and at the provider
/oauth list [PROVIDER]     lists your grants
/browser [allow|deny]      plays your browser: opens the last link, answers, and types the code
/help                      shows this
/quit                      leaves, and ends the demo";

/// One line of the chat. A provider that is not named is the session's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Authorize { provider: Option<String> },
    Confirm { code: String },
    Token { provider: Option<String> },
    Refresh { provider: Option<String> },
    Revoke { provider: Option<String> },
    List { provider: Option<String> },
    Browser(Decision),
    Help,
    Quit,
}

/// The button that the played user presses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Allow,
    Deny,
}

/// Why a line is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misunderstanding {
    Unknown,
    CodeMissing,
}

/// Reads a line that is not blank.
pub(super) fn parse(line: &str) -> Result<Command, Misunderstanding> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["/oauth", words @ ..] => parse_oauth(words),
        ["/browser"] | ["/browser", "allow"] => Ok(Command::Browser(Decision::Allow)),
        ["/browser", "deny"] => Ok(Command::Browser(Decision::Deny)),
        ["/help"] => Ok(Command::Help),
        ["/quit"] => Ok(Command::Quit),
        _ => Err(Misunderstanding::Unknown),
    }
}

fn parse_oauth(words: &[&str]) -> Result<Command, Misunderstanding> {
    match words {
        ["confirm"] => Err(Misunderstanding::CodeMissing),
        // The page shows the code in two groups.
        ["confirm", code @ ..] => Ok(Command::Confirm { code: code.join(" ") }),
        ["token", rest @ ..] => Ok(Command::Token { provider: last_word(rest)? }),
        ["refresh", rest @ ..] => Ok(Command::Refresh { provider: last_word(rest)? }),
        ["revoke", rest @ ..] => Ok(Command::Revoke { provider: last_word(rest)? }),
        ["list", rest @ ..] => Ok(Command::List { provider: last_word(rest)? }),
        // No provider can be named like a command.
        rest => Ok(Command::Authorize { provider: last_word(rest)? }),
    }
}

/// The provider, where one is named.
fn last_word(words: &[&str]) -> Result<Option<String>, Misunderstanding> {
    match words {
        [] => Ok(None),
        [provider] => Ok(Some((*provider).to_owned())),
        _ => Err(Misunderstanding::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Option<String> {
        Some("demo".to_owned())
    }

    #[test]
    fn every_command_is_read_with_and_without_a_provider() {
        for (line, command) in [
            ("/oauth", Command::Authorize { provider: None }),
            ("/oauth demo", Command::Authorize { provider: demo() }),
            ("/oauth token", Command::Token { provider: None }),
            ("/oauth token demo", Command::Token { provider: demo() }),
            ("/oauth refresh", Command::Refresh { provider: None }),
            ("/oauth refresh demo", Command::Refresh { provider: demo() }),
            ("/oauth revoke", Command::Revoke { provider: None }),
            ("/oauth revoke demo", Command::Revoke { provider: demo() }),
            ("/oauth list", Command::List { provider: None }),
            ("/oauth list demo", Command::List { provider: demo() }),
            ("/browser", Command::Browser(Decision::Allow)),
            ("/browser allow", Command::Browser(Decision::Allow)),
            ("/browser deny", Command::Browser(Decision::Deny)),
            ("/help", Command::Help),
            ("/quit", Command::Quit),
        ] {
            assert_eq!(parse(line), Ok(command), "{line}");
        }
    }

    #[test]
    fn a_code_may_be_typed_as_the_page_shows_it() {
        for (line, code) in [
            ("/oauth confirm 12345678", "12345678"),
            ("/oauth confirm 1234 5678", "1234 5678"),
            ("/oauth  confirm  1234-5678 ", "1234-5678"),
            ("/oauth confirm 12 34 56 78", "12 34 56 78"),
        ] {
            assert_eq!(parse(line), Ok(Command::Confirm { code: code.to_owned() }), "{line}");
        }
        assert_eq!(parse("/oauth confirm"), Err(Misunderstanding::CodeMissing));
    }

    #[test]
    fn space_does_not_matter() {
        assert_eq!(parse("  /oauth \t token\r"), Ok(Command::Token { provider: None }));
    }

    #[test]
    fn anything_else_is_unknown() {
        for line in [
            "",
            "hello",
            "oauth",
            "/oauth2",
            "/oauth token a b",
            "/oauth demo token",
            "/browser refuse",
            "/browser deny twice",
            "/help me",
            "/quit now",
            "/",
        ] {
            assert_eq!(parse(line), Err(Misunderstanding::Unknown), "{line}");
        }
    }
}
