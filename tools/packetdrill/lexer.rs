//! Cuts a script into words.
//!
//! Comments go here, and so do the parts between `#ifdef` and `#endif` that are meant for another system.

use crate::ast::{Pos, ScriptError};

/// Names for which `#ifdef` holds.
const DEFINED: [&str; 1] = ["FreeBSD"];

/// What a token is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Letters, digits and underscores.
    Word(String),
    /// Any other character.
    Punct(char),
    /// `...`
    Ellipsis,
    /// `"…"`
    Text(String),
    /// `` `…` ``
    Command(String),
    /// `%{ … }%`
    Code(String),
    /// `--name=value`
    Option(String, String),
    /// Behind the last.
    End,
}

/// A token and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Where it begins.
    pub pos: Pos,
    /// Whether something stands between it and the one before.
    pub spaced: bool,
}

/// Cuts `text` into tokens; the last is `End`.
pub fn lex(text: &str) -> Result<Vec<Token>, ScriptError> {
    let mut lexer = Lexer {
        chars: text.chars().collect(),
        at: 0,
        pos: Pos { line: 1, column: 1 },
        tokens: Vec::new(),
        conditions: Vec::new(),
    };
    lexer.run()?;
    Ok(lexer.tokens)
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    pos: Pos,
    tokens: Vec<Token>,
    /// Where each open `#ifdef` stands, and whether its part counts.
    conditions: Vec<(Pos, bool)>,
}

impl Lexer {
    fn run(&mut self) -> Result<(), ScriptError> {
        let mut spaced = true;
        while let Some(c) = self.peek(0) {
            let start = self.at;
            if c == '#' && self.first_on_line() {
                self.directive()?;
            } else if self.conditions.iter().any(|(_, counts)| !counts) {
                self.skip_line();
            } else if c.is_whitespace() {
                self.bump();
            } else if self.looking_at("//") {
                self.skip_line();
            } else if self.looking_at("/*") {
                self.between("/*", "*/", "comment")?;
            } else {
                let pos = self.pos;
                let kind = self.token(c)?;
                self.tokens.push(Token { kind, pos, spaced });
                spaced = false;
                continue;
            }
            debug_assert!(self.at > start);
            spaced = true;
        }
        if let Some((pos, _)) = self.conditions.pop() {
            return Err(error(pos, "#ifdef without #endif"));
        }
        self.tokens.push(Token {
            kind: Kind::End,
            pos: self.pos,
            spaced: true,
        });
        Ok(())
    }

    fn token(&mut self, c: char) -> Result<Kind, ScriptError> {
        if is_word(c) {
            return Ok(Kind::Word(self.while_word(is_word)));
        }
        if self.looking_at("...") {
            self.advance(3);
            return Ok(Kind::Ellipsis);
        }
        if self.looking_at("%{") {
            return Ok(Kind::Code(self.between("%{", "}%", "code")?));
        }
        match c {
            '`' => Ok(Kind::Command(self.between("`", "`", "command")?)),
            '"' => Ok(Kind::Text(self.between("\"", "\"", "string")?)),
            '-' if self.first_on_line() && self.looking_at("--") => {
                self.advance(2);
                let name = self.while_word(|c| is_word(c) || c == '-');
                let mut value = String::new();
                if self.peek(0) == Some('=') {
                    self.bump();
                    value = self.while_word(|c| !c.is_whitespace());
                }
                Ok(Kind::Option(name, value))
            }
            _ => {
                self.bump();
                Ok(Kind::Punct(c))
            }
        }
    }

    /// `#ifdef NAME`, `#ifndef NAME`, `#else`, `#endif`.
    fn directive(&mut self) -> Result<(), ScriptError> {
        let pos = self.pos;
        let line = self.rest_of_line();
        let mut words = line.split_whitespace();
        match (words.next().unwrap_or(""), words.next()) {
            ("#ifdef", Some(name)) => self.conditions.push((pos, DEFINED.contains(&name))),
            ("#ifndef", Some(name)) => self.conditions.push((pos, !DEFINED.contains(&name))),
            ("#else", _) => match self.conditions.last_mut() {
                Some((_, counts)) => *counts = !*counts,
                None => return Err(error(pos, "#else without #ifdef")),
            },
            ("#endif", _) => {
                if self.conditions.pop().is_none() {
                    return Err(error(pos, "#endif without #ifdef"));
                }
            }
            // How to run the script by itself.
            (first, _) if first.starts_with("#!") && pos.line == 1 => {}
            (first, _) => return Err(error(pos, format!("unknown directive {first}"))),
        }
        Ok(())
    }

    /// What stands between `open`, which is here, and `close`.
    fn between(&mut self, open: &str, close: &str, what: &str) -> Result<String, ScriptError> {
        let pos = self.pos;
        self.advance(open.len());
        let mut inside = String::new();
        while !self.looking_at(close) {
            match self.bump() {
                Some(c) => inside.push(c),
                None => return Err(error(pos, format!("{what} without end"))),
            }
        }
        self.advance(close.len());
        Ok(inside)
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn looking_at(&self, text: &str) -> bool {
        text.chars()
            .enumerate()
            .all(|(i, c)| self.peek(i) == Some(c))
    }

    fn first_on_line(&self) -> bool {
        let before = self.chars[..self.at].iter().rev();
        before
            .take_while(|&&c| c != '\n')
            .all(|c| c.is_whitespace())
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek(0)?;
        self.at += 1;
        if c == '\n' {
            self.pos = Pos {
                line: self.pos.line + 1,
                column: 1,
            };
        } else {
            self.pos.column += 1;
        }
        Some(c)
    }

    fn advance(&mut self, count: usize) {
        for _ in 0..count {
            self.bump();
        }
    }

    fn while_word(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let mut word = String::new();
        while let Some(c) = self.peek(0).filter(|&c| belongs(c)) {
            word.push(c);
            self.bump();
        }
        word
    }

    fn rest_of_line(&mut self) -> String {
        self.while_word(|c| c != '\n')
    }

    fn skip_line(&mut self) {
        self.rest_of_line();
        self.bump();
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// An error at a place.
pub fn error(pos: Pos, reason: impl Into<String>) -> ScriptError {
    ScriptError {
        pos,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind> {
        let tokens = lex(text).expect("a script without lexical errors");
        let mut kinds: Vec<Kind> = tokens.into_iter().map(|token| token.kind).collect();
        assert_eq!(kinds.pop(), Some(Kind::End));
        kinds
    }

    fn word(text: &str) -> Kind {
        Kind::Word(text.into())
    }

    #[test]
    fn comments_are_no_words_but_udp_after_a_slash_is_one() {
        let seen = kinds("win // 1\n /* 2\n 3 */ 4/udp");
        assert_eq!(
            seen,
            [word("win"), word("4"), Kind::Punct('/'), word("udp")]
        );
    }

    #[test]
    fn what_is_meant_for_another_system_is_left_out() {
        let text = "a\n#ifdef FreeBSD\nb\n#else\nc\n#endif\n#ifdef STANDARD\nd\n#endif\ne";
        assert_eq!(kinds(text), [word("a"), word("b"), word("e")]);
        let open = lex("a\n#ifdef FreeBSD\nb").expect_err("no #endif");
        assert_eq!(open.pos, Pos { line: 2, column: 1 });
    }

    #[test]
    fn dashes_begin_an_option_only_at_the_start_of_a_line() {
        let option = Kind::Option("mtu".into(), "1280".into());
        assert_eq!(
            kinds("--mtu=1280\n -1"),
            [option, Kind::Punct('-'), word("1")]
        );
    }

    #[test]
    fn a_command_may_span_lines_and_must_end() {
        assert_eq!(kinds("`a\nb`"), [Kind::Command("a\nb".into())]);
        let open = lex("\n  `a").expect_err("no second quote");
        assert_eq!((open.pos.line, open.pos.column), (2, 3));
    }
}
