//! The guest's serial console as a program sees it: send a line, expect an answer, in time.

use anyhow::{Context, Result, anyhow, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How the shell asks for a command.
const PROMPT: &str = "# ";
/// How the kernel announces its death.
const PANIC: &str = "panic: ";
/// Lines of the console that an error shows.
const TAIL_LINES: usize = 25;

/// The console of a running guest.
pub struct Console {
    shared: Arc<Shared>,
    input: Box<dyn Write + Send>,
    /// Up to where the output has been looked at.
    seen: usize,
    log: PathBuf,
}

struct Shared {
    output: Mutex<Output>,
    more: Condvar,
}

#[derive(Default)]
struct Output {
    text: String,
    ended: bool,
    /// Nothing is read, as if the terminal were stopped.
    paused: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Console {
    /// A console over a guest's output and input; all output also goes to the file `log`.
    pub fn new(
        output: impl Read + Send + 'static,
        input: impl Write + Send + 'static,
        log: PathBuf,
    ) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
        let shared = Arc::new(Shared {
            output: Mutex::default(),
            more: Condvar::new(),
        });
        let reader = Arc::clone(&shared);
        std::thread::spawn(move || read_all(output, file, &reader));
        Ok(Self {
            shared,
            input: Box::new(input),
            seen: 0,
            log,
        })
    }

    /// Waits for the first prompt.
    pub fn wait_for_prompt(&mut self, within: Duration) -> Result<String> {
        self.prompt(within).context("the guest shows no prompt")
    }

    /// Runs a command and returns what it printed.
    pub fn run(&mut self, command: &str, within: Duration) -> Result<String> {
        self.start(command)?;
        self.finish(within)
            .with_context(|| format!("the guest's `{command}` does not end"))
    }

    /// Starts a command, and waits only for its echo.
    pub fn start(&mut self, command: &str) -> Result<()> {
        // The end of what is there already: late kernel messages after the prompt are not this command's.
        self.seen = self.shared.lock().text.len();
        self.send(&format!("{command}\r"))?;
        let echo = command.trim();
        self.wait(Duration::from_secs(10), |out| {
            echo_end(out, echo).map(|end| (0, end))
        })
        .with_context(|| format!("the shell does not echo `{command}`"))?;
        Ok(())
    }

    /// Waits for the prompt after a started command, and returns what it printed since last looked at.
    pub fn finish(&mut self, within: Duration) -> Result<String> {
        let text = self.prompt(within)?;
        Ok(text.trim_start_matches('\n').to_string())
    }

    /// Where the output stands now, for [`Console::since`].
    pub fn mark(&self) -> usize {
        self.shared.lock().text.len()
    }

    /// Everything printed since `mark`, by whatever program.
    pub fn since(&self, mark: usize) -> String {
        let out = self.shared.lock();
        out.text.get(mark..).unwrap_or_default().to_string()
    }

    /// Interrupts the running command and waits for the prompt.
    pub fn interrupt(&mut self) -> Result<String> {
        self.send("\x03")?;
        self.finish(Duration::from_secs(15))
            .context("Ctrl-C does not end the guest's command")
    }

    /// Waits for `text` and returns what came before it.
    pub fn expect(&mut self, text: &str, within: Duration) -> Result<String> {
        let found = self.wait(within, |out| out.find(text).map(|at| (at, at + text.len())));
        found.with_context(|| format!("waited for \"{}\"", text.escape_debug()))
    }

    /// Stops reading what the guest prints, or goes on. What is read already is kept.
    pub fn pause_reading(&self, paused: bool) {
        self.shared.lock().paused = paused;
        self.shared.more.notify_all();
    }

    /// Sends characters as typed.
    pub fn send(&mut self, text: &str) -> Result<()> {
        // The guest's UART takes 16 bytes at a time, and QEMU paces us; nothing is lost.
        let sent = self.input.write_all(text.as_bytes());
        sent.and_then(|()| self.input.flush())
            .map_err(|e| anyhow!("the guest takes no input: {e}{}", self.tail()))
    }

    /// Fails if the kernel has panicked.
    pub fn check_alive(&self) -> Result<()> {
        let out = self.shared.lock();
        match panic_line(&out.text) {
            Some(line) => {
                let line = line.to_string();
                drop(out);
                bail!("{line}{}", self.tail())
            }
            None => Ok(()),
        }
    }

    fn prompt(&mut self, within: Duration) -> Result<String> {
        self.wait(within, |out| {
            if out.starts_with(PROMPT) {
                return Some((0, PROMPT.len()));
            }
            let at = out.find("\n# ")?;
            Some((at + 1, at + 1 + PROMPT.len()))
        })
    }

    /// Waits until `find` sees what it looks for in the unread output: (its start, its end).
    fn wait(
        &mut self,
        within: Duration,
        find: impl Fn(&str) -> Option<(usize, usize)>,
    ) -> Result<String> {
        let deadline = Instant::now() + within;
        let mut out = self.shared.lock();
        let why = loop {
            let unread = &out.text[self.seen..];
            if let Some(line) = panic_line(unread) {
                break line.to_string();
            }
            if let Some((start, end)) = find(unread) {
                let before = unread[..start].to_string();
                self.seen += end;
                return Ok(before);
            }
            if out.ended {
                break "the guest ended".into();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break format!("nothing came within {} s", within.as_secs_f32());
            }
            let waited = self.shared.more.wait_timeout(out, left);
            out = waited.unwrap_or_else(|e| e.into_inner()).0;
        };
        drop(out);
        if why.starts_with(PANIC) {
            // Let the backtrace arrive.
            std::thread::sleep(Duration::from_secs(1));
        }
        bail!("{why}{}", self.tail())
    }

    fn tail(&self) -> String {
        let out = self.shared.lock();
        let lines: Vec<&str> = out.text.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        format!(
            "\n  the console's last lines (all of it in {}):\n    | {}",
            self.log.display(),
            lines[from..].join("\n    | ")
        )
    }
}

/// Where the echo of `command` ends in the output. What a program in the background or the kernel prints meanwhile
/// may stand between its letters.
fn echo_end(output: &str, command: &str) -> Option<usize> {
    if let Some(at) = output.find(command) {
        return Some(at + command.len());
    }
    let mut letters = output.char_indices();
    let mut end = 0;
    for wanted in command.chars() {
        let (at, letter) = letters.find(|(_, letter)| *letter == wanted)?;
        end = at + letter.len_utf8();
    }
    Some(end)
}

/// A panic's first line, once it is complete.
fn panic_line(text: &str) -> Option<&str> {
    let start = if text.starts_with(PANIC) {
        0
    } else {
        text.find("\npanic: ")? + 1
    };
    let line = &text[start..];
    line.find('\n').map(|end| &line[..end])
}

fn read_all(mut from: impl Read, mut log: File, to: &Shared) {
    let mut bytes = [0; 4096];
    let mut plain = Plain::default();
    loop {
        let mut out = to.lock();
        while out.paused {
            out = to.more.wait(out).unwrap_or_else(|e| e.into_inner());
        }
        drop(out);
        let n = match from.read(&mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        let _ = log.write_all(&bytes[..n]);
        let mut out = to.lock();
        for &byte in &bytes[..n] {
            plain.push(byte, &mut out.text);
        }
        drop(out);
        to.more.notify_all();
    }
    to.lock().ended = true;
    to.more.notify_all();
}

/// Strips what a terminal would swallow: escape sequences, carriage returns, bells.
#[derive(Default)]
enum Plain {
    #[default]
    Text,
    Escape,
    Sequence,
}

impl Plain {
    fn push(&mut self, byte: u8, text: &mut String) {
        *self = match (&self, byte) {
            (Self::Text, 0x1b) => Self::Escape,
            (Self::Escape, b'[') => Self::Sequence,
            (Self::Escape, _) => Self::Text,
            (Self::Sequence, 0x40..=0x7e) => Self::Text,
            (Self::Sequence, _) => Self::Sequence,
            (Self::Text, 8) => {
                if !text.ends_with('\n') {
                    text.pop();
                }
                Self::Text
            }
            (Self::Text, b'\n' | b'\t' | 0x20..=0x7e) => {
                text.push(char::from(byte));
                Self::Text
            }
            (Self::Text, 0x80..) => {
                text.push('?');
                Self::Text
            }
            (Self::Text, _) => Self::Text,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const SOON: Duration = Duration::from_secs(5);

    fn pair(name: &str) -> (Console, UnixStream) {
        let (ours, guest) = UnixStream::pair().unwrap();
        let log = crate::image::work_dir("unit-tests").unwrap().join(name);
        let console = Console::new(ours.try_clone().unwrap(), ours, log).unwrap();
        (console, guest)
    }

    #[test]
    fn a_command_returns_what_stands_between_its_echo_and_the_prompt() {
        let (mut console, mut guest) = pair("command");
        guest.write_all(b"boot\r\n# ").unwrap();
        console.wait_for_prompt(SOON).unwrap();
        guest
            .write_all(b"em0: link state changed to UP\r\n")
            .unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let answer = std::thread::spawn(move || {
            let mut line = [0; 8];
            guest.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"echo hi\r");
            guest
                .write_all(b"echo hi\r\n\x1b[1mhi\x1b[0m\r\n# ")
                .unwrap();
            guest
        });
        assert_eq!(console.run("echo hi", SOON).unwrap(), "hi\n");
        drop(answer.join().unwrap());
    }

    #[test]
    fn an_echo_is_recognised_through_what_others_print_meanwhile() {
        assert_eq!(echo_end("# ls -l\n", "ls -l"), Some(7));
        assert_eq!(
            echo_end("ifcobound to 1\nnfig em0\n", "ifconfig em0"),
            Some(23)
        );
        assert_eq!(echo_end("ifcobound to 1\nnfig", "ifconfig em0"), None);
        assert_eq!(echo_end("anything", ""), Some(0));
    }

    #[test]
    fn a_panic_ends_the_wait_at_once_and_is_the_reason() {
        let (mut console, mut guest) = pair("panic");
        guest.write_all(b"x\r\npanic: out of cheese\r\n").unwrap();
        let began = Instant::now();
        let e = console
            .expect("never", Duration::from_secs(60))
            .unwrap_err();
        assert!(format!("{e:#}").contains("out of cheese"), "{e:#}");
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(console.check_alive().is_err());
    }

    #[test]
    fn a_silent_guest_is_given_up_with_the_consoles_last_lines() {
        let (mut console, mut guest) = pair("silent");
        guest.write_all(b"the last words\r\n").unwrap();
        let e = console.expect("more", Duration::from_millis(200));
        assert!(format!("{:#}", e.unwrap_err()).contains("the last words"));
    }
}
