//! `%{ assert tcpi_state == TCPI_ESTABLISHED }%`: the part of Python that scripts need.
//!
//! Statements are `assert expression` with an optional message. Expressions have names of `struct tcp_info`, constants,
//! numbers, parentheses, `not`, `and`, `or`, comparisons (also chained), `|`, `&`, `+`, `-`, `*`.

use crate::parser::parse_number;
use crate::symbols;

/// Checks the assertions of `code` against `struct tcp_info`; the reason if one does not hold or makes no sense.
pub fn check(code: &str, info: &[u8]) -> Result<(), String> {
    let statements = code.split(['\n', ';']).map(str::trim);
    for statement in statements.filter(|s| !s.is_empty() && !s.starts_with('#')) {
        let Some(condition) = statement.strip_prefix("assert") else {
            return Err(format!("only assertions are understood, not `{statement}`"));
        };
        let mut evaluator = Evaluator {
            tokens: cut(condition)?,
            at: 0,
            info,
            seen: Vec::new(),
        };
        let holds = evaluator.or()?;
        if !matches!(evaluator.peek(), None | Some(",")) {
            return Err(format!(
                "`{statement}`: not understood from `{}`",
                evaluator.rest()
            ));
        }
        if holds == 0 {
            let seen = evaluator
                .seen
                .iter()
                .map(|(name, value)| format!("{name} is {value}"));
            let seen: Vec<String> = seen.collect();
            return Err(format!("`{statement}` does not hold: {}", seen.join(", ")));
        }
    }
    Ok(())
}

fn cut(text: &str) -> Result<Vec<&str>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '"' | '\'' => {
                let end = rest[1..].find(c).ok_or("a string without end")?;
                end + 2
            }
            c if c.is_ascii_alphanumeric() || c == '_' => {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                end.unwrap_or(rest.len())
            }
            _ if ["==", "!=", "<=", ">="]
                .iter()
                .any(|op| rest.starts_with(op)) =>
            {
                2
            }
            c => c.len_utf8(),
        };
        tokens.push(&rest[..len]);
        rest = rest[len..].trim_start();
    }
    Ok(tokens)
}

struct Evaluator<'a> {
    tokens: Vec<&'a str>,
    at: usize,
    info: &'a [u8],
    /// What was looked up, to say in a failure.
    seen: Vec<(&'a str, i64)>,
}

type Value = Result<i64, String>;

impl<'a> Evaluator<'a> {
    fn or(&mut self) -> Value {
        let mut value = self.and()?;
        while self.eat("or") {
            let other = self.and()?;
            value = i64::from(value != 0 || other != 0);
        }
        Ok(value)
    }

    fn and(&mut self) -> Value {
        let mut value = self.not()?;
        while self.eat("and") {
            let other = self.not()?;
            value = i64::from(value != 0 && other != 0);
        }
        Ok(value)
    }

    fn not(&mut self) -> Value {
        match self.eat("not") {
            true => Ok(i64::from(self.not()? == 0)),
            false => self.comparison(),
        }
    }

    fn comparison(&mut self) -> Value {
        let mut left = self.bits_or()?;
        let mut result = None;
        while let Some(op @ ("==" | "!=" | "<" | "<=" | ">" | ">=")) = self.peek() {
            self.at += 1;
            let right = self.bits_or()?;
            let holds = match op {
                "==" => left == right,
                "!=" => left != right,
                "<" => left < right,
                "<=" => left <= right,
                ">" => left > right,
                _ => left >= right,
            };
            result = Some(result.unwrap_or(true) && holds);
            left = right;
        }
        Ok(result.map_or(left, i64::from))
    }

    fn bits_or(&mut self) -> Value {
        let mut value = self.bits_and()?;
        while self.eat("|") {
            value |= self.bits_and()?;
        }
        Ok(value)
    }

    fn bits_and(&mut self) -> Value {
        let mut value = self.sum()?;
        while self.eat("&") {
            value &= self.sum()?;
        }
        Ok(value)
    }

    fn sum(&mut self) -> Value {
        let mut value = self.product()?;
        loop {
            if self.eat("+") {
                value = value.wrapping_add(self.product()?);
            } else if self.eat("-") {
                value = value.wrapping_sub(self.product()?);
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Value {
        let mut value = self.atom()?;
        while self.eat("*") {
            value = value.wrapping_mul(self.atom()?);
        }
        Ok(value)
    }

    fn atom(&mut self) -> Value {
        let Some(token) = self.tokens.get(self.at).copied() else {
            return Err("an expression that ends too early".into());
        };
        self.at += 1;
        match token {
            "(" => {
                let value = self.or()?;
                match self.eat(")") {
                    true => Ok(value),
                    false => Err("`)` is missing".into()),
                }
            }
            "-" => Ok(self.atom()?.wrapping_neg()),
            _ => {
                if let Some(number) = parse_number(token) {
                    return i64::try_from(number).map_err(|_| format!("{token} is too large"));
                }
                if let Some(value) = symbols::tcp_info_field(self.info, token) {
                    self.seen.push((token, value));
                    return Ok(value);
                }
                symbols::lookup(token).ok_or_else(|| format!("unknown name `{token}`"))
            }
        }
    }

    fn peek(&self) -> Option<&'a str> {
        self.tokens.get(self.at).copied()
    }

    fn eat(&mut self, token: &str) -> bool {
        let is = self.peek() == Some(token);
        if is {
            self.at += 1;
        }
        is
    }

    fn rest(&self) -> String {
        self.tokens[self.at..].join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> Vec<u8> {
        let mut info = vec![0; 240];
        info[0] = 4;
        info[5] = 0x0f;
        info[6] = 0x72;
        info[80..84].copy_from_slice(&14600u32.to_ne_bytes());
        info
    }

    #[test]
    fn assertions_hold_or_say_what_they_found() {
        let holds = |code| check(code, &info());
        assert_eq!(holds(" assert tcpi_state == TCPI_ESTABLISHED "), Ok(()));
        assert_eq!(
            holds("assert tcpi_options == (TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK | 4 | 8)"),
            Ok(())
        );
        assert_eq!(
            holds("assert 1 <= tcpi_snd_wscale < tcpi_rcv_wscale and not 0, 'why'"),
            Ok(())
        );
        assert_eq!(
            holds("\nassert tcpi_snd_cwnd == 10 * 1460\nassert 1"),
            Ok(())
        );
        let reason = holds("assert tcpi_state == TCPI_CLOSED").expect_err("another state");
        assert!(reason.contains("tcpi_state is 4"), "{reason}");
    }

    #[test]
    fn what_is_not_understood_says_so() {
        for code in [
            "print(1)",
            "assert tcpi_nonsense == 1",
            "assert (1",
            "assert",
            "assert 1 1",
        ] {
            assert!(check(code, &info()).is_err(), "{code}");
        }
    }
}
