//! Runs command lines: finds commands, keeps jobs, and talks to the terminal.
//!
//! FreeBSD: bin/sh

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use sys::kern::kern_mutex::Mutex;
use sys::kern::kern_synch::pause_sbt;
use sys::kern::kern_thread::{Pri, ThreadHandle, curthread, kthread_add};
use sys::kern::lock_order::App;
use sys::net::vnet::Vnet;
use sys::time::Sbintime;

use crate::apps::{Env, Output};
use crate::console::{self, Foreground};
use crate::outln;
use crate::shell::commands::{self, Program};
use crate::shell::line::{Event, LineEditor};
use crate::shell::syntax::{self, Command};

/// How often `wait` looks whether its jobs have ended, or it should.
const WAIT_POLL: Sbintime = Sbintime::from_ms(10);

/// What the shell shows when it waits for a line.
pub const PROMPT: &str = "# ";

/// The stack instances a shell can reach, by name. The first is where commands run unless told otherwise.
pub struct Vnets(Mutex<Vec<Arc<Vnet>>, App>);

impl Vnets {
    /// The instances of a machine.
    pub fn new(vnets: Vec<Arc<Vnet>>) -> Vnets {
        Vnets(Mutex::new(vnets))
    }

    /// Adds one.
    pub fn add(&self, vnet: Arc<Vnet>) {
        self.0.lock().push(vnet);
    }

    /// Finds one by name, or by number.
    pub fn find(&self, name: &str) -> Option<Arc<Vnet>> {
        let vnets = self.0.lock();
        let found = vnets
            .iter()
            .find(|vnet| vnet.name == name)
            .or_else(|| vnets.iter().find(|vnet| vnet.id.to_string() == name));
        found.cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Vnet>> {
        self.0.lock().clone()
    }
}

/// A program in the background.
struct Job {
    number: usize,
    line: String,
    interrupt: Arc<AtomicBool>,
    status: Arc<AtomicI32>,
    thread: ThreadHandle,
}

/// A shell.
pub struct Shell {
    out: Arc<dyn Output>,
    /// Whether Ctrl-C on the console ends the program in the foreground.
    on_console: bool,
    vnets: Arc<Vnets>,
    jobs: Vec<Job>,
    /// Status of the last command (`$?`).
    status: i32,
    history: Vec<String>,
}

impl Shell {
    /// A shell without terminal: for the kernel's command line, and for tests.
    pub fn new(out: Arc<dyn Output>, vnets: Arc<Vnets>) -> Shell {
        Shell {
            out,
            on_console: false,
            vnets,
            jobs: Vec::new(),
            status: 0,
            history: Vec::new(),
        }
    }

    /// A shell on the console, whose Ctrl-C ends the program in the foreground.
    pub fn on_console(vnets: Arc<Vnets>) -> Shell {
        let mut shell = Shell::new(Arc::new(ConsoleOutput), vnets);
        shell.on_console = true;
        shell
    }

    /// The stack instances it can reach.
    pub fn vnets(&self) -> &Vnets {
        &self.vnets
    }

    /// Reads and runs lines for ever.
    pub fn interact(&mut self) -> ! {
        let mut editor = LineEditor::new(PROMPT, self.command_names());
        loop {
            self.report_jobs();
            let mut out = Vec::new();
            editor.start(&mut out);
            console::cn_write(&out);
            loop {
                let mut out = Vec::new();
                let Some(byte) = console::cn_getc(None) else {
                    // An interrupt that came after its program had ended.
                    curthread().take_interrupt();
                    continue;
                };
                let event = editor.feed(byte, &mut out);
                console::cn_write(&out);
                match event {
                    Event::None => continue,
                    Event::Line(line) => {
                        self.history = editor.history().to_vec();
                        self.run_line(&line);
                    }
                    Event::Interrupt => {}
                    Event::EndOfFile => {
                        self.out.write("Use \"poweroff\" to leave.\n");
                    }
                }
                break;
            }
        }
    }

    /// Runs the commands of a line; the status of the last.
    pub fn run_line(&mut self, line: &str) -> i32 {
        match syntax::parse(line) {
            Ok(commands) => {
                for command in commands {
                    self.status = self.run(command);
                    // After Ctrl-C the rest of the line is not run either.
                    if self.status == INTERRUPTED {
                        break;
                    }
                }
            }
            Err(error) => {
                self.out.write(&format!("sh: Syntax error: {error}\n"));
                self.status = 2;
            }
        }
        self.status
    }

    fn command_names(&self) -> Vec<String> {
        let programs = commands::PROGRAMS.iter().map(|program| program.name);
        let mut names: Vec<String> = programs
            .chain(BUILTINS.iter().map(|(name, _)| *name))
            .map(str::to_string)
            .collect();
        names.sort();
        names
    }

    fn run(&mut self, command: Command) -> i32 {
        let Command { words, background } = command;
        let mut words = words;
        let mut vnet = self.vnets.all().first().cloned();
        // `vnet name command …` runs a command in another instance.
        while words[0] == "vnet" {
            if words.len() == 1 {
                return self.list_vnets();
            }
            let Some(found) = self.vnets.find(&words[1]) else {
                self.out
                    .write(&format!("vnet: {}: no such instance\n", words[1]));
                return 1;
            };
            vnet = Some(found);
            words.drain(..2);
            if words.is_empty() {
                self.out.write("usage: vnet [name command ...]\n");
                return 64;
            }
        }
        let Some(vnet) = vnet else {
            self.out.write("sh: there is no stack instance\n");
            return 1;
        };
        let env = Env {
            vnet,
            out: self.out.clone(),
            args: words,
            interrupt: Arc::new(AtomicBool::new(false)),
        };
        if let Some(status) = self.builtin(&env) {
            return status;
        }
        let name = env.args[0].as_str();
        let Some(program) = commands::find(name) else {
            self.out.write(&format!("{name}: not found\n"));
            return 127;
        };
        if background {
            self.start_job(program, env)
        } else {
            self.run_in_foreground(&env, |_| (program.main)(&env))
        }
    }

    /// Runs what Ctrl-C on the console ends.
    fn run_in_foreground(&mut self, env: &Env, run: impl FnOnce(&mut Shell) -> i32) -> i32 {
        let me = curthread();
        // What was meant for an earlier program.
        me.take_interrupt();
        if self.on_console {
            console::set_foreground(Some(Foreground {
                interrupt: env.interrupt.clone(),
                thread: me,
            }));
        }
        let status = run(self);
        if self.on_console {
            console::set_foreground(None);
        }
        me.take_interrupt();
        if env.interrupted() {
            INTERRUPTED
        } else {
            status
        }
    }

    fn start_job(&mut self, program: &'static Program, env: Env) -> i32 {
        let number = self.jobs.iter().map(|job| job.number).max().unwrap_or(0) + 1;
        let status = Arc::new(AtomicI32::new(-1));
        let line = env.args.join(" ");
        let interrupt = env.interrupt.clone();
        let result = status.clone();
        let thread = kthread_add(program.name, Pri::PUSER, None, move || {
            let status = (program.main)(&env);
            result.store(status, Ordering::Release);
        });
        self.out
            .write(&format!("[{number}] {}\n", thread.thread().tid()));
        self.jobs.push(Job {
            number,
            line,
            interrupt,
            status,
            thread,
        });
        0
    }

    /// Says which jobs have ended since the last time.
    fn report_jobs(&mut self) {
        let out = self.out.clone();
        self.jobs.retain(|job| {
            if !job.thread.is_done() {
                return true;
            }
            out.write(&job.describe());
            false
        });
    }

    fn builtin(&mut self, env: &Env) -> Option<i32> {
        let (_, run) = BUILTINS.iter().find(|(name, _)| *name == env.args[0])?;
        Some(run(self, env))
    }

    fn list_vnets(&self) -> i32 {
        for vnet in self.vnets.all() {
            self.out.write(&format!("{}\t{}\n", vnet.id, vnet.name));
        }
        0
    }

    fn jobs(&mut self, env: &Env) -> i32 {
        if !env.operands().is_empty() {
            outln!(env, "usage: jobs");
            return 64;
        }
        for job in &self.jobs {
            self.out.write(&job.describe());
        }
        self.jobs.retain(|job| !job.thread.is_done());
        0
    }

    fn kill(&mut self, env: &Env) -> i32 {
        let words = match env.operands() {
            [signal, words @ ..] if signal.starts_with('-') => words,
            words => words,
        };
        if words.is_empty() {
            outln!(env, "usage: kill [-signal] %job ...");
            return 64;
        }
        let mut status = 0;
        for word in words {
            let number: Option<usize> = word.trim_start_matches('%').parse().ok();
            let job = self.jobs.iter().find(|job| {
                Some(job.number) == number || Some(job.thread.thread().tid() as usize) == number
            });
            match job {
                Some(job) => {
                    job.interrupt.store(true, Ordering::Relaxed);
                    job.thread.interrupt();
                }
                None => {
                    outln!(env, "kill: No such job: {word}");
                    status = 1;
                }
            }
        }
        status
    }

    /// Waits for all jobs, or the one named.
    fn wait(&mut self, env: &Env) -> i32 {
        let number = match env.operands() {
            [] => None,
            [word] => match word.trim_start_matches('%').parse::<usize>() {
                Ok(number) => Some(number),
                Err(_) => {
                    outln!(env, "wait: No such job: {word}");
                    return 127;
                }
            },
            _ => {
                outln!(env, "usage: wait [%job]");
                return 64;
            }
        };
        let chosen = |job: &Job| number.is_none_or(|number| number == job.number);
        if number.is_some() && !self.jobs.iter().any(chosen) {
            return 127;
        }
        self.run_in_foreground(env, |shell| {
            let running = |job: &Job| chosen(job) && !job.thread.is_done();
            while shell.jobs.iter().any(running) {
                if env.interrupted() {
                    return INTERRUPTED;
                }
                pause_sbt("wait", WAIT_POLL);
            }
            let ended = shell.jobs.extract_if(.., |job| chosen(job)).last();
            ended.map_or(0, |job| job.status.load(Ordering::Acquire))
        })
    }

    fn help(&mut self, env: &Env) -> i32 {
        let width = self
            .command_names()
            .iter()
            .map(String::len)
            .max()
            .unwrap_or(0);
        for program in commands::PROGRAMS {
            outln!(env, "{:<width$}  {}", program.name, program.summary);
        }
        for (name, summary) in [
            (
                "vnet",
                "run a command in another stack instance, or list the instances",
            ),
            ("jobs", "list what runs in the background (started with &)"),
            ("kill", "end a job"),
            ("wait", "wait for jobs"),
            ("history", "list the lines typed"),
            ("echo", "print words"),
            ("help", "this list"),
        ] {
            outln!(env, "{name:<width$}  {summary}");
        }
        outln!(env);
        outln!(
            env,
            "Ctrl-C ends the running command. `command &` runs it in the background."
        );
        0
    }

    fn print_history(&mut self, env: &Env) -> i32 {
        for (i, line) in self.history.iter().enumerate() {
            outln!(env, "{:5} {line}", i + 1);
        }
        0
    }

    /// Prints words; `$?` cannot be had by a variable, so `echo -s` prints the last status.
    fn echo(&mut self, env: &Env) -> i32 {
        match env.operands() {
            [flag] if flag == "-s" => outln!(env, "{}", self.status),
            words => outln!(env, "{}", words.join(" ")),
        }
        0
    }
}

/// The console as a program's output.
pub struct ConsoleOutput;

impl Output for ConsoleOutput {
    fn write(&self, text: &str) {
        console::cn_write(text.as_bytes());
    }
}

/// Status of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

type Builtin = fn(&mut Shell, &Env) -> i32;

/// Commands that need the shell itself.
const BUILTINS: &[(&str, Builtin)] = &[
    ("jobs", Shell::jobs),
    ("kill", Shell::kill),
    ("wait", Shell::wait),
    ("history", Shell::print_history),
    ("echo", Shell::echo),
    ("help", Shell::help),
];

impl Job {
    fn describe(&self) -> String {
        let state = if !self.thread.is_done() {
            "Running".to_string()
        } else {
            match self.status.load(Ordering::Acquire) {
                0 => "Done".to_string(),
                status => format!("Done({status})"),
            }
        };
        format!("[{}] {state:<23} {}\n", self.number, self.line)
    }
}
