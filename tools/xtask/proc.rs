//! Programs started by the tool: they end with it, and in time.

use crate::cleanup::Cleanup;
use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// A running program. Killed when dropped, when the tool is interrupted, and when it dies.
pub struct Process {
    child: Child,
    name: String,
    cleanup: Option<Cleanup>,
}

impl Process {
    /// Starts a program, in a process group of its own so that Ctrl-C reaches it through us, in order.
    ///
    /// It dies with the thread that starts it.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.process_group(0);
        // SAFETY: the closure makes one system call, which is safe between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command
            .spawn()
            .with_context(|| format!("can't start {name}"))?;
        let group = Pid::from_raw(child.id().cast_signed());
        let cleanup = Cleanup::new(move || {
            let _ = killpg(group, Signal::SIGKILL);
        });
        Ok(Self {
            child,
            name,
            cleanup: Some(cleanup),
        })
    }

    /// The program, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for its end.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                // Its number may be another's now.
                if let Some(cleanup) = self.cleanup.take() {
                    cleanup.forget();
                }
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} does not end within {} s", self.name, within.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Collects what it prints until its end.
    pub fn output(mut self, within: Duration) -> Result<Output> {
        let stdout = self.child.stdout.take().map(drain);
        let stderr = self.child.stderr.take().map(drain);
        let status = self.wait(within);
        drop(self);
        let text = |t: Option<std::thread::JoinHandle<Vec<u8>>>| {
            t.and_then(|t| t.join().ok()).unwrap_or_default()
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        Ok(Output {
            status: status?,
            stdout,
            stderr,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // `wait` took the entry if the program has ended.
        if self.cleanup.take().is_some() {
            let _ = self.child.wait();
        }
    }
}

fn drain(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}

/// Starts a program whose output is collected.
pub fn start_piped(command: &mut Command) -> Result<Process> {
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Process::start(command)
}

/// Runs a program to its end and returns what it printed; its failure is ours.
pub fn run(command: &mut Command, within: Duration) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = start_piped(command)?.output(within)?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!(
            "{name} ends with {}: {} {}",
            out.status,
            stderr.trim(),
            stdout.trim()
        );
    }
    Ok(stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_takes_too_long_is_killed() {
        let began = Instant::now();
        let e = run(Command::new("sleep").arg("60"), Duration::from_millis(100));
        assert!(e.unwrap_err().to_string().contains("does not end"));
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo the reason >&2; exit 4"]);
        let e = run(&mut command, Duration::from_secs(10)).unwrap_err();
        assert!(e.to_string().contains("the reason"), "{e}");
    }
}
