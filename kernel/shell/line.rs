//! Edits a line on a terminal: cursor keys, Emacs keys, history, completion of the first word.
//!
//! FreeBSD: lib/libedit, as far as a console needs it.
//! A state machine: bytes from the terminal go in, bytes for the terminal come out. A newline also returns the
//! carriage (`ONLCR`).

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Lines that history keeps.
const HISTORY: usize = 200;
/// Longest line.
const MAX_LINE: usize = 4096;

/// What a byte from the terminal led to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Nothing yet.
    None,
    /// The line is complete.
    Line(String),
    /// Ctrl-C: the line was given up.
    Interrupt,
    /// Ctrl-D on an empty line.
    EndOfFile,
}

/// Where in an escape sequence the input is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    /// After ESC.
    Started,
    /// After `ESC [` or `ESC O`, with the number seen so far.
    Sequence(u16),
}

/// The editor with its history.
pub struct LineEditor {
    prompt: String,
    line: Vec<u8>,
    cursor: usize,
    history: Vec<String>,
    /// Which line of history is shown; its length: the line being typed.
    shown: usize,
    /// The line being typed, while history is shown.
    typed: Vec<u8>,
    killed: Vec<u8>,
    escape: Escape,
    after_return: bool,
    words: Vec<String>,
}

impl LineEditor {
    /// An editor with a prompt and the words that complete the first one of a line.
    pub fn new(prompt: &str, words: Vec<String>) -> LineEditor {
        LineEditor {
            prompt: prompt.to_string(),
            line: Vec::new(),
            cursor: 0,
            history: Vec::new(),
            shown: 0,
            typed: Vec::new(),
            killed: Vec::new(),
            escape: Escape::None,
            after_return: false,
            words,
        }
    }

    /// Lines entered before, oldest first.
    pub fn history(&self) -> &[String] {
        &self.history
    }

    /// Begins a new line: shows the prompt.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        self.line.clear();
        self.cursor = 0;
        self.shown = self.history.len();
        self.escape = Escape::None;
        out.extend_from_slice(self.prompt.as_bytes());
    }

    /// Takes one byte from the terminal.
    pub fn feed(&mut self, byte: u8, out: &mut Vec<u8>) -> Event {
        let after_return = core::mem::take(&mut self.after_return);
        match self.escape {
            Escape::None => {}
            Escape::Started => {
                self.escape = match byte {
                    b'[' | b'O' => Escape::Sequence(0),
                    _ => Escape::None,
                };
                match byte {
                    b'b' => self.go(self.word_start(), out),
                    b'f' => self.go(self.word_end(), out),
                    b'd' => self.kill(self.cursor..self.word_end(), out),
                    _ => {}
                }
                return Event::None;
            }
            Escape::Sequence(number) => {
                self.sequence(number, byte, out);
                return Event::None;
            }
        }
        match byte {
            b'\n' if after_return => {}
            b'\r' | b'\n' => {
                self.after_return = byte == b'\r';
                out.push(b'\n');
                return Event::Line(self.finish());
            }
            0x1b => self.escape = Escape::Started,
            // Ctrl-A, Ctrl-E, Ctrl-B, Ctrl-F.
            0x01 => self.go(0, out),
            0x05 => self.go(self.line.len(), out),
            0x02 => self.go(self.cursor.saturating_sub(1), out),
            0x06 => self.go(self.cursor + 1, out),
            // Ctrl-C.
            0x03 => {
                out.extend_from_slice(b"^C\n");
                self.line.clear();
                self.cursor = 0;
                return Event::Interrupt;
            }
            // Ctrl-D.
            0x04 if self.line.is_empty() => return Event::EndOfFile,
            0x04 => self.erase(self.cursor..self.cursor + 1, out),
            // Backspace, Delete.
            0x08 | 0x7f => self.erase(self.cursor.saturating_sub(1)..self.cursor, out),
            b'\t' => self.complete(out),
            // Ctrl-K, Ctrl-U, Ctrl-W, Ctrl-Y.
            0x0b => self.kill(self.cursor..self.line.len(), out),
            0x15 => self.kill(0..self.line.len(), out),
            0x17 => self.kill(self.word_start()..self.cursor, out),
            0x19 => {
                let killed = self.killed.clone();
                self.insert(&killed, out);
            }
            // Ctrl-L.
            0x0c => {
                out.extend_from_slice(b"\x1b[H\x1b[2J");
                out.extend_from_slice(self.prompt.as_bytes());
                out.extend_from_slice(&self.line);
                back(self.line.len() - self.cursor, out);
            }
            // Ctrl-P, Ctrl-N.
            0x10 => self.recall(self.shown.wrapping_sub(1), out),
            0x0e => self.recall(self.shown + 1, out),
            b' '..=b'~' => self.insert(&[byte], out),
            _ => out.push(0x07),
        }
        Event::None
    }

    fn finish(&mut self) -> String {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        self.cursor = 0;
        if !line.trim().is_empty() && self.history.last() != Some(&line) {
            if self.history.len() == HISTORY {
                self.history.remove(0);
            }
            self.history.push(line.clone());
        }
        line
    }

    /// The rest of an escape sequence.
    fn sequence(&mut self, number: u16, byte: u8, out: &mut Vec<u8>) {
        self.escape = Escape::None;
        match byte {
            b'0'..=b'9' => {
                let digit = u16::from(byte - b'0');
                self.escape = Escape::Sequence(number.saturating_mul(10).saturating_add(digit));
            }
            // A modifier follows: only the last number counts.
            b';' => self.escape = Escape::Sequence(0),
            b'A' => self.recall(self.shown.wrapping_sub(1), out),
            b'B' => self.recall(self.shown + 1, out),
            b'C' if number == 5 => self.go(self.word_end(), out),
            b'D' if number == 5 => self.go(self.word_start(), out),
            b'C' => self.go(self.cursor + 1, out),
            b'D' => self.go(self.cursor.saturating_sub(1), out),
            b'H' => self.go(0, out),
            b'F' => self.go(self.line.len(), out),
            b'~' => match number {
                1 | 7 => self.go(0, out),
                3 => self.erase(self.cursor..self.cursor + 1, out),
                4 | 8 => self.go(self.line.len(), out),
                _ => {}
            },
            _ => {}
        }
    }

    /// Where the word before the cursor begins.
    fn word_start(&self) -> usize {
        let mut at = self.cursor;
        while at > 0 && self.line[at - 1] == b' ' {
            at -= 1;
        }
        while at > 0 && self.line[at - 1] != b' ' {
            at -= 1;
        }
        at
    }

    /// Where the word after the cursor ends.
    fn word_end(&self) -> usize {
        let mut at = self.cursor;
        while at < self.line.len() && self.line[at] == b' ' {
            at += 1;
        }
        while at < self.line.len() && self.line[at] != b' ' {
            at += 1;
        }
        at
    }

    fn go(&mut self, to: usize, out: &mut Vec<u8>) {
        let to = to.min(self.line.len());
        if to < self.cursor {
            back(self.cursor - to, out);
        } else {
            out.extend_from_slice(&self.line[self.cursor..to]);
        }
        self.cursor = to;
    }

    fn insert(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.line.len() + bytes.len() > MAX_LINE {
            out.push(0x07);
            return;
        }
        self.line
            .splice(self.cursor..self.cursor, bytes.iter().copied());
        out.extend_from_slice(&self.line[self.cursor..]);
        self.cursor += bytes.len();
        back(self.line.len() - self.cursor, out);
    }

    fn erase(&mut self, range: core::ops::Range<usize>, out: &mut Vec<u8>) {
        if range.is_empty() || range.end > self.line.len() {
            return;
        }
        self.go(range.start, out);
        let gone = range.len();
        self.line.drain(range);
        out.extend_from_slice(&self.line[self.cursor..]);
        out.resize(out.len() + gone, b' ');
        back(self.line.len() - self.cursor + gone, out);
    }

    fn kill(&mut self, range: core::ops::Range<usize>, out: &mut Vec<u8>) {
        if !range.is_empty() {
            self.killed = self.line[range.clone()].to_vec();
            self.erase(range, out);
        }
    }

    /// Shows line `which` of history.
    fn recall(&mut self, which: usize, out: &mut Vec<u8>) {
        if which > self.history.len() {
            out.push(0x07);
            return;
        }
        if self.shown == self.history.len() {
            self.typed = self.line.clone();
        }
        let line = match self.history.get(which) {
            Some(line) => line.as_bytes().to_vec(),
            None => core::mem::take(&mut self.typed),
        };
        self.erase(0..self.line.len(), out);
        self.shown = which;
        self.insert(&line, out);
    }

    /// Completes the first word as far as it is unique, or shows what it may become.
    fn complete(&mut self, out: &mut Vec<u8>) {
        let typed = &self.line[..self.cursor];
        if typed.contains(&b' ') {
            out.push(0x07);
            return;
        }
        let fits: Vec<&String> = self
            .words
            .iter()
            .filter(|word| word.as_bytes().starts_with(typed))
            .collect();
        let Some(first) = fits.first() else {
            out.push(0x07);
            return;
        };
        let mut common = first.as_bytes().to_vec();
        for word in &fits {
            let same = common
                .iter()
                .zip(word.bytes())
                .take_while(|(a, b)| **a == *b)
                .count();
            common.truncate(same);
        }
        let mut more = common[typed.len()..].to_vec();
        if fits.len() == 1 {
            more.push(b' ');
        }
        if more.is_empty() {
            out.push(b'\n');
            for word in fits {
                out.extend_from_slice(word.as_bytes());
                out.extend_from_slice(b"  ");
            }
            out.push(b'\n');
            out.extend_from_slice(self.prompt.as_bytes());
            out.extend_from_slice(&self.line);
            back(self.line.len() - self.cursor, out);
            return;
        }
        self.insert(&more, out);
    }
}

/// Moves the terminal's cursor `n` columns back. Backspace also goes up to the line before on terminals that
/// wrapped.
fn back(n: usize, out: &mut Vec<u8>) {
    out.resize(out.len() + n, 0x08);
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    /// A terminal that understands what the editor sends.
    struct Screen {
        cells: Vec<u8>,
        at: usize,
    }

    impl Screen {
        fn show(&mut self, bytes: &[u8]) {
            for &byte in bytes {
                match byte {
                    0x08 => self.at -= 1,
                    b'\n' => {
                        self.cells.clear();
                        self.at = 0;
                    }
                    0x07 => {}
                    _ => {
                        if self.at == self.cells.len() {
                            self.cells.push(byte);
                        } else {
                            self.cells[self.at] = byte;
                        }
                        self.at += 1;
                    }
                }
            }
        }

        fn text(&self) -> String {
            String::from_utf8_lossy(&self.cells).trim_end().to_string()
        }
    }

    fn editor() -> (LineEditor, Screen) {
        let words = vec![
            "netstat".to_string(),
            "netblast".to_string(),
            "ping".to_string(),
        ];
        let mut editor = LineEditor::new("# ", words);
        let mut screen = Screen {
            cells: Vec::new(),
            at: 0,
        };
        let mut out = Vec::new();
        editor.start(&mut out);
        screen.show(&out);
        (editor, screen)
    }

    fn type_keys(editor: &mut LineEditor, screen: &mut Screen, keys: &str) -> Vec<Event> {
        let mut events = Vec::new();
        for byte in keys.bytes() {
            let mut out = Vec::new();
            let event = editor.feed(byte, &mut out);
            screen.show(&out);
            if event != Event::None {
                let mut out = Vec::new();
                editor.start(&mut out);
                screen.show(&out);
                events.push(event);
            }
        }
        events
    }

    fn line(text: &str) -> Event {
        Event::Line(text.to_string())
    }

    #[test]
    fn a_typed_line_is_echoed_and_returned() {
        let (mut editor, mut screen) = editor();
        assert!(type_keys(&mut editor, &mut screen, "ifconfig -a").is_empty());
        assert_eq!(screen.text(), "# ifconfig -a");
        assert_eq!(
            type_keys(&mut editor, &mut screen, "\r\n"),
            [line("ifconfig -a")]
        );
    }

    #[test]
    fn text_is_inserted_and_erased_where_the_cursor_is() {
        let (mut editor, mut screen) = editor();
        type_keys(&mut editor, &mut screen, "ac\x1b[Db\x01>\x05!");
        assert_eq!(screen.text(), "# >abc!");
        type_keys(&mut editor, &mut screen, "\x01\x04\x1b[C\x7f");
        assert_eq!(screen.text(), "# bc!");
        assert_eq!(screen.at, 2);
        assert_eq!(type_keys(&mut editor, &mut screen, "\r"), [line("bc!")]);
    }

    #[test]
    fn killed_text_comes_back() {
        let (mut editor, mut screen) = editor();
        type_keys(&mut editor, &mut screen, "one two three\x17\x17\x19");
        assert_eq!(screen.text(), "# one two");
        type_keys(&mut editor, &mut screen, "\x01\x0b");
        assert_eq!(screen.text(), "#");
        type_keys(&mut editor, &mut screen, "\x19\x15");
        assert_eq!(screen.text(), "#");
    }

    #[test]
    fn history_is_walked_and_the_typed_line_kept() {
        let (mut editor, mut screen) = editor();
        type_keys(&mut editor, &mut screen, "first\rsecond\rsecond\rhalf");
        assert_eq!(editor.history(), ["first", "second"]);
        type_keys(&mut editor, &mut screen, "\x1b[A");
        assert_eq!(screen.text(), "# second");
        type_keys(&mut editor, &mut screen, "\x10\x10\x1bOA");
        assert_eq!(screen.text(), "# first");
        type_keys(&mut editor, &mut screen, "\x1b[B\x1b[B");
        assert_eq!(screen.text(), "# half");
        type_keys(&mut editor, &mut screen, "\x0e");
        assert_eq!(screen.text(), "# half");
    }

    #[test]
    fn the_first_word_is_completed() {
        let (mut editor, mut screen) = editor();
        type_keys(&mut editor, &mut screen, "p\t");
        assert_eq!(screen.text(), "# ping");
        type_keys(&mut editor, &mut screen, "\x15n\t");
        assert_eq!(screen.text(), "# net");
        type_keys(&mut editor, &mut screen, "s\t-");
        assert_eq!(screen.text(), "# netstat -");
    }

    #[test]
    fn control_c_gives_the_line_up() {
        let (mut editor, mut screen) = editor();
        assert_eq!(
            type_keys(&mut editor, &mut screen, "abc\x03\x04"),
            [Event::Interrupt, Event::EndOfFile]
        );
    }

    #[test]
    fn no_bytes_at_all_upset_it() {
        let (mut editor, _) = editor();
        let mut state = 1u64;
        let mut out = Vec::new();
        for _ in 0..200_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            editor.feed((state >> 56) as u8 & 0x7f, &mut out);
            out.clear();
        }
    }
}
