//! Options on a command line.
//!
//! FreeBSD: lib/libc/stdlib/getopt.c

use alloc::format;
use alloc::string::String;

/// Walks the options of a command, as `getopt(3)` with the same option string does.
pub struct Getopt<'a> {
    words: &'a [String],
    letters: &'static str,
    /// The word that is looked at.
    index: usize,
    /// Where in a word of several letters.
    at: usize,
}

/// A letter, and the value of a letter that takes one.
pub type Opt<'a> = (char, &'a str);

impl<'a> Getopt<'a> {
    /// Reads `words`, of which the first is the command's name. In `letters` a colon follows those that take a value.
    pub fn new(words: &'a [String], letters: &'static str) -> Getopt<'a> {
        Getopt {
            words,
            letters,
            index: 1,
            at: 0,
        }
    }

    /// What follows the options.
    pub fn operands(&self) -> &'a [String] {
        self.words.get(self.index..).unwrap_or(&[])
    }

    fn name(&self) -> &'a str {
        self.words.first().map_or("", String::as_str)
    }
}

impl<'a> Iterator for Getopt<'a> {
    type Item = Result<Opt<'a>, String>;

    fn next(&mut self) -> Option<Result<Opt<'a>, String>> {
        let word = self.words.get(self.index)?;
        if self.at == 0 {
            if !word.starts_with('-') || word == "-" {
                return None;
            }
            if word == "--" {
                self.index += 1;
                return None;
            }
            self.at = 1;
        }
        let letter = word[self.at..].chars().next()?;
        self.at += letter.len_utf8();
        let rest = &word[self.at..];
        if rest.is_empty() {
            self.index += 1;
            self.at = 0;
        }
        let known = self
            .letters
            .find(letter)
            .filter(|_| letter != ':' && letter.is_ascii());
        let Some(known) = known else {
            return Some(Err(format!("{}: illegal option -- {letter}", self.name())));
        };
        if self.letters.as_bytes().get(known + 1) != Some(&b':') {
            return Some(Ok((letter, "")));
        }
        if !rest.is_empty() {
            self.index += 1;
            self.at = 0;
            return Some(Ok((letter, rest)));
        }
        match self.words.get(self.index) {
            Some(value) => {
                self.index += 1;
                Some(Ok((letter, value)))
            }
            None => Some(Err(format!(
                "{}: option requires an argument -- {letter}",
                self.name()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_string).collect()
    }

    #[test]
    fn letters_may_be_joined_and_values_attached() {
        let words = words("netstat -ani -f inet -wx -- -z");
        let mut options = Getopt::new(&words, "anif:w:");
        let seen: Vec<Opt<'_>> = options.by_ref().map(|option| option.unwrap()).collect();
        assert_eq!(
            seen,
            [('a', ""), ('n', ""), ('i', ""), ('f', "inet"), ('w', "x")]
        );
        assert_eq!(options.operands(), ["-z"]);
    }

    #[test]
    fn unknown_letters_and_missing_values_are_told() {
        let unknown = words("ls -q");
        let mut options = Getopt::new(&unknown, "a");
        assert_eq!(
            options.next().unwrap().unwrap_err(),
            "ls: illegal option -- q"
        );
        let missing = words("ls -a");
        let mut options = Getopt::new(&missing, "a:");
        assert_eq!(
            options.next().unwrap().unwrap_err(),
            "ls: option requires an argument -- a"
        );
        let colon = words("ls -:");
        assert!(Getopt::new(&colon, "a:").next().unwrap().is_err());
    }
}
