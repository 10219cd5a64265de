//! Splits what was typed into commands and words.
//!
//! `;` and newline end a command, `&` ends one that runs in the background, quotes and `\` protect, `#` begins a
//! comment. Pipes, redirections and variables do not exist, and are refused rather than taken for words.

use alloc::string::String;
use alloc::vec::Vec;

/// One command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// Its words; the first is its name.
    pub words: Vec<String>,
    /// Whether it runs in the background.
    pub background: bool,
}

/// Why a line is not understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyntaxError {
    /// A quote is not closed.
    UnterminatedQuote,
    /// Something the shell does not have.
    Unsupported(char),
    /// `;` or `&` without a command before it.
    Unexpected(char),
}

impl core::fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            SyntaxError::UnterminatedQuote => f.write_str("unterminated quoted string"),
            SyntaxError::Unsupported(c) => {
                write!(f, "\"{c}\" is not supported (quote it to use it in a word)")
            }
            SyntaxError::Unexpected(c) => write!(f, "\"{c}\" unexpected"),
        }
    }
}

/// Splits a line into commands.
pub fn parse(line: &str) -> Result<Vec<Command>, SyntaxError> {
    let mut commands = Vec::new();
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => return Err(SyntaxError::UnterminatedQuote),
                        Some('\'') => break,
                        Some(c) => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => return Err(SyntaxError::UnterminatedQuote),
                        Some('"') => break,
                        Some('\\') => word.extend(chars.next()),
                        Some(c) => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            '#' if word.is_none() => {
                for c in chars.by_ref() {
                    if c == '\n' {
                        end_command(&mut commands, &mut words, false);
                        break;
                    }
                }
            }
            ';' | '&' | '\n' => {
                words.extend(word.take());
                if words.is_empty() && c != '\n' {
                    return Err(SyntaxError::Unexpected(c));
                }
                end_command(&mut commands, &mut words, c == '&');
            }
            '|' | '<' | '>' | '$' | '`' => return Err(SyntaxError::Unsupported(c)),
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    end_command(&mut commands, &mut words, false);
    Ok(commands)
}

fn end_command(commands: &mut Vec<Command>, words: &mut Vec<String>, background: bool) {
    if !words.is_empty() {
        commands.push(Command {
            words: core::mem::take(words),
            background,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Vec<(Vec<String>, bool)> {
        parse(line)
            .unwrap()
            .into_iter()
            .map(|command| (command.words, command.background))
            .collect()
    }

    #[test]
    fn commands_end_at_semicolon_ampersand_and_newline() {
        let commands = split("ifconfig em0 up; iperf3 -s & netstat -m\nping  a # comment ; x");
        let words: Vec<&str> = commands
            .iter()
            .map(|(words, _)| words[0].as_str())
            .collect();
        assert_eq!(words, ["ifconfig", "iperf3", "netstat", "ping"]);
        let background: Vec<bool> = commands.iter().map(|(_, background)| *background).collect();
        assert_eq!(background, [false, true, false, false]);
        assert_eq!(commands[3].0, ["ping", "a"]);
        assert!(split("  # nothing").is_empty());
    }

    #[test]
    fn quotes_and_backslashes_protect() {
        assert_eq!(
            split(r#"a 'b; c' "d \"e\" | f" g\ h '' i'j'"k""#)[0].0,
            ["a", "b; c", "d \"e\" | f", "g h", "", "ijk"]
        );
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        assert_eq!(parse("a | b"), Err(SyntaxError::Unsupported('|')));
        assert_eq!(parse("a 'b"), Err(SyntaxError::UnterminatedQuote));
        assert_eq!(parse("; a"), Err(SyntaxError::Unexpected(';')));
        assert_eq!(parse("a ;; b"), Err(SyntaxError::Unexpected(';')));
    }
}
