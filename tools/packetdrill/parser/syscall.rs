//! Socket calls: `connect(3, ..., ...) = -1 EINPROGRESS (Operation now in progress)`.

use super::{Parsed, Parser, parse_number};
use crate::ast::{Expr, Syscall};
use crate::lexer::{Kind, error};

impl Parser {
    /// A call; its name is next.
    pub(super) fn syscall(&mut self, end: Option<i64>) -> Parsed<Syscall> {
        let name = self.word().unwrap_or_default();
        self.expect('(')?;
        let args = self.list(')')?;
        self.expect('=')?;
        let result = self.expr()?;
        let mut errno = None;
        if matches!(&self.token().kind, Kind::Word(word) if word.starts_with('E')) {
            errno = self.word();
        }
        // A note in parentheses is for people.
        if self.eat('(') {
            self.skip_note()?;
        }
        Ok(Syscall {
            name,
            args,
            result,
            errno,
            end,
        })
    }

    fn skip_note(&mut self) -> Parsed<()> {
        let mut depth = 1;
        while depth > 0 {
            match self.token().kind {
                Kind::Punct('(') => depth += 1,
                Kind::Punct(')') => depth -= 1,
                Kind::End => return Err(self.unexpected("`)`")),
                _ => {}
            }
            self.advance();
        }
        Ok(())
    }

    /// Expressions up to `close`.
    fn list(&mut self, close: char) -> Parsed<Vec<Expr>> {
        let mut list = Vec::new();
        while !self.eat(close) {
            list.push(self.expr()?);
            if !self.eat(',') && self.token().kind != Kind::Punct(close) {
                return Err(self.unexpected(&format!("`,` or `{close}`")));
            }
        }
        Ok(list)
    }

    fn expr(&mut self) -> Parsed<Expr> {
        let first = self.term()?;
        if self.token().kind != Kind::Punct('|') {
            return Ok(first);
        }
        let mut terms = vec![first];
        while self.eat('|') {
            terms.push(self.term()?);
        }
        Ok(Expr::Or(terms))
    }

    fn term(&mut self) -> Parsed<Expr> {
        let token = self.token().clone();
        match token.kind {
            Kind::Ellipsis => {
                self.advance();
                Ok(Expr::Any)
            }
            Kind::Text(text) => {
                self.advance();
                Ok(Expr::Text(text))
            }
            Kind::Punct('-') => {
                self.advance();
                let value: u64 = self.number("a number")?;
                let value = i64::try_from(value)
                    .map_err(|_| error(token.pos, "a number below what 64 bits hold"))?;
                Ok(Expr::Int(-value))
            }
            Kind::Punct('[') => {
                self.advance();
                Ok(Expr::List(self.list(']')?))
            }
            Kind::Punct('{') => {
                self.advance();
                Ok(Expr::Struct(self.fields()?))
            }
            Kind::Word(word) => {
                self.advance();
                if word.starts_with(|c: char| c.is_ascii_digit()) {
                    let value = parse_number(&word)
                        .and_then(|value| i64::try_from(value).ok())
                        .ok_or_else(|| error(token.pos, format!("`{word}` is no number")))?;
                    return Ok(Expr::Int(value));
                }
                if self.eat('(') {
                    return Ok(Expr::Call(word, self.list(')')?));
                }
                Ok(Expr::Word(word))
            }
            _ => Err(self.unexpected("a value")),
        }
    }

    /// The members of a structure, with or without names.
    fn fields(&mut self) -> Parsed<Vec<(Option<String>, Expr)>> {
        let mut fields = Vec::new();
        while !self.eat('}') {
            let named = self.next_token().kind == Kind::Punct('=');
            let mut name = None;
            if named {
                name = self.word();
                self.expect('=')?;
            }
            fields.push((name, self.expr()?));
            if !self.eat(',') && self.token().kind != Kind::Punct('}') {
                return Err(self.unexpected("`,` or `}`"));
            }
        }
        Ok(fields)
    }
}
