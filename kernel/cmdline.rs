//! The kernel's command line: words `name=value`, or just `name`.
//!
//! FreeBSD: sys/kern/kern_environment.c, stand/man/loader.conf.5
//!
//! A word ends at white space outside quotes, `"` or `'`; the quotes may surround the value or the whole word.

use spin::Once;

static LINE: Once<&'static str> = Once::new();

/// Records the line. The first one stays.
pub fn set(line: &'static str) {
    LINE.call_once(|| line);
}

/// The line as it came.
pub fn line() -> &'static str {
    LINE.get().copied().unwrap_or("")
}

/// The words, in order. A word without `=` has an empty value.
pub fn iter() -> impl Iterator<Item = (&'static str, &'static str)> {
    words(line())
}

/// The value of the last word called `name`.
#[doc(alias = "kern_getenv")]
pub fn get(name: &str) -> Option<&'static str> {
    iter()
        .filter(|(n, _)| *n == name)
        .last()
        .map(|(_, value)| value)
}

fn words(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = line;
    core::iter::from_fn(move || {
        rest = rest.trim_start();
        if rest.is_empty() {
            return None;
        }
        let mut quote = None;
        let end = rest.find(|c: char| match quote {
            Some(q) => {
                if c == q {
                    quote = None;
                }
                false
            }
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                false
            }
            None => c.is_whitespace(),
        });
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        let (name, value) = unquote(word).split_once('=').unwrap_or((unquote(word), ""));
        Some((name, unquote(value)))
    })
}

fn unquote(text: &str) -> &str {
    ['"', '\'']
        .into_iter()
        .find_map(|q| text.strip_prefix(q)?.strip_suffix(q))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::words;
    use alloc::vec::Vec;

    #[test]
    fn quotes_keep_spaces_around_a_value_or_a_whole_word() {
        let line =
            r#" a=1  ifconfig_em0="inet 10.0.2.15/24" 'init=ifconfig; ping -c 1 x' verbose b='"'"#;
        let found: Vec<_> = words(line).collect();
        assert_eq!(
            found,
            [
                ("a", "1"),
                ("ifconfig_em0", "inet 10.0.2.15/24"),
                ("init", "ifconfig; ping -c 1 x"),
                ("verbose", ""),
                ("b", "\""),
            ]
        );
    }

    #[test]
    fn an_open_quote_reaches_to_the_end() {
        assert_eq!(words("x=\"a b").collect::<Vec<_>>(), [("x", "\"a b")]);
        assert_eq!(words("   ").count(), 0);
    }
}
