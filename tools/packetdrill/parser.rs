//! Reads a script: options, then events, each with its time.

mod packet;
mod syscall;

use crate::ast::{Action, Direction, Event, Script, ScriptError, ScriptOption, Time};
use crate::lexer::{Kind, Token, error, lex};

const USEC_PER_SEC: i64 = 1_000_000;
/// Digits behind the point that count.
const DECIMALS: usize = 6;

/// Reads a script.
pub fn parse(text: &str) -> Result<Script, ScriptError> {
    let mut parser = Parser {
        tokens: lex(text)?,
        at: 0,
    };
    let mut script = Script {
        options: Vec::new(),
        events: Vec::new(),
    };
    loop {
        let pos = parser.token().pos;
        match parser.token().kind.clone() {
            Kind::End => return Ok(script),
            Kind::Option(name, value) => {
                if !script.events.is_empty() {
                    return Err(error(pos, "options stand before the first event"));
                }
                parser.advance();
                script.options.push(ScriptOption { pos, name, value });
            }
            _ => script.events.push(parser.event()?),
        }
    }
}

type Parsed<T> = Result<T, ScriptError>;

/// The tokens, and how far they are read.
struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn event(&mut self) -> Parsed<Event> {
        let pos = self.token().pos;
        // A command before the first event or behind the last needs no time.
        if let Kind::Command(line) = &self.token().kind {
            let action = Action::Command(line.clone());
            self.advance();
            let time = Time::Relative(0);
            return Ok(Event { pos, time, action });
        }
        let (time, end) = self.time()?;
        let token = self.token().clone();
        let action = match token.kind {
            Kind::Punct('<') => Action::Packet(self.packet(Direction::Inbound)?),
            Kind::Punct('>') => Action::Packet(self.packet(Direction::Outbound)?),
            Kind::Command(line) => {
                self.advance();
                Action::Command(line)
            }
            Kind::Code(code) => {
                self.advance();
                Action::Code(code)
            }
            Kind::Word(_) => Action::Syscall(self.syscall(end)?),
            _ => return Err(self.unexpected("an event: `<`, `>`, a call, a command or code")),
        };
        if end.is_some() && !matches!(action, Action::Syscall(_)) {
            return Err(error(pos, "only a call can take from one time to another"));
        }
        Ok(Event { pos, time, action })
    }

    /// When an event happens and, of a call that blocks, when it ends.
    fn time(&mut self) -> Parsed<(Time, Option<i64>)> {
        if self.eat('*') {
            return Ok((Time::Any, None));
        }
        let relative = self.eat('+');
        let start = self.seconds()?;
        if self.eat('~') {
            let pos = self.token().pos;
            self.eat('+');
            let end = self.seconds()?;
            if end < start {
                return Err(error(pos, "a span of time that ends before it begins"));
            }
            let time = match relative {
                true => Time::RelativeRange(start, end),
                false => Time::AbsoluteRange(start, end),
            };
            return Ok((time, None));
        }
        let mut end = None;
        if self.token().kind == Kind::Ellipsis {
            self.advance();
            self.eat('+');
            let pos = self.token().pos;
            let at = self.seconds()?;
            if at < start {
                return Err(error(pos, "a call that ends before it begins"));
            }
            end = Some(at);
        }
        let time = match relative {
            true => Time::Relative(start),
            false => Time::Absolute(start),
        };
        Ok((time, end))
    }

    /// A number of seconds, in microseconds.
    fn seconds(&mut self) -> Parsed<i64> {
        let pos = self.token().pos;
        let not_a_time = || error(pos, "expected a time: `1.5`, `+0.1` or `*`");
        let whole = self.word().ok_or_else(not_a_time)?;
        let mut usec = whole
            .parse::<i64>()
            .ok()
            .and_then(|seconds| seconds.checked_mul(USEC_PER_SEC))
            .ok_or_else(not_a_time)?;
        if self.token().kind == Kind::Punct('.') && !self.token().spaced {
            self.advance();
            let fraction = match self.token().spaced {
                true => String::new(),
                false => self.word().unwrap_or_default(),
            };
            if !fraction.bytes().all(|b| b.is_ascii_digit()) {
                return Err(not_a_time());
            }
            let digits = fraction.chars().chain(std::iter::repeat('0'));
            let micros: String = digits.take(DECIMALS).collect();
            usec += micros.parse::<i64>().map_err(|_| not_a_time())?;
        }
        Ok(usec)
    }

    fn token(&self) -> &Token {
        // The last token is `End`, and nothing advances beyond it.
        &self.tokens[self.at]
    }

    fn next_token(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)]
    }

    fn advance(&mut self) {
        self.at = (self.at + 1).min(self.tokens.len() - 1);
    }

    /// Takes `c` if it is next.
    fn eat(&mut self, c: char) -> bool {
        let is = self.token().kind == Kind::Punct(c);
        if is {
            self.advance();
        }
        is
    }

    /// Takes `c`, which must be next.
    fn expect(&mut self, c: char) -> Parsed<()> {
        match self.eat(c) {
            true => Ok(()),
            false => Err(self.unexpected(&format!("`{c}`"))),
        }
    }

    /// Whether `word` is next.
    fn is_word(&self, word: &str) -> bool {
        matches!(&self.token().kind, Kind::Word(w) if w == word)
    }

    /// Takes `word` if it is next.
    fn eat_word(&mut self, word: &str) -> bool {
        let is = self.is_word(word);
        if is {
            self.advance();
        }
        is
    }

    /// Takes the next token if it is a word.
    fn word(&mut self) -> Option<String> {
        let Kind::Word(word) = &self.token().kind else {
            return None;
        };
        let word = word.clone();
        self.advance();
        Some(word)
    }

    /// Takes a number, decimal or hexadecimal, that fits `T`.
    fn number<T: TryFrom<u64>>(&mut self, what: &str) -> Parsed<T> {
        let pos = self.token().pos;
        let Some(word) = self.word() else {
            return Err(self.unexpected(what));
        };
        let value = parse_number(&word)
            .ok_or_else(|| error(pos, format!("expected {what}, found `{word}`")))?;
        T::try_from(value).map_err(|_| error(pos, format!("{word} is too large for {what}")))
    }

    fn unexpected(&self, wanted: &str) -> ScriptError {
        let found = match &self.token().kind {
            Kind::Word(word) => format!("`{word}`"),
            Kind::Punct(c) => format!("`{c}`"),
            Kind::Ellipsis => "`...`".into(),
            Kind::Text(text) => format!("\"{text}\""),
            Kind::Command(_) => "a command".into(),
            Kind::Code(_) => "code".into(),
            Kind::Option(name, _) => format!("option `--{name}`"),
            Kind::End => "the end of the script".into(),
        };
        error(
            self.token().pos,
            format!("expected {wanted}, found {found}"),
        )
    }
}

/// Reads a number, decimal or hexadecimal with `0x`.
pub fn parse_number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

#[cfg(test)]
mod tests;
