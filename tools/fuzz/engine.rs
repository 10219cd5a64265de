//! The targets under libFuzzer.
//!
//! `fuzz-targets seeds TARGET DIRECTORY SCRIPT…` writes first inputs; `fuzz-targets history TARGET FILE` runs inputs one after the
//! other, as they were kept when one of them failed; `fuzz-targets TARGET …` hands the rest to libFuzzer, and
//! `fuzz-targets list` names the targets.
//!
//! libFuzzer runs inside the machine on which the target's stack lives, on the context of the machine's first thread: an
//! input costs no new machine. Its handlers of signals run on whatever context the signal meets, all of which have
//! room for them. A panic anywhere in the machine aborts the process, which libFuzzer takes for what it looks for.

use fuzz::targets::mutate::mutate;
use fuzz::targets::{Runner, TARGETS, Target, find, seeds};
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

/// Where to write the inputs that led to a failure, and those since the target was last as new.
static HISTORY: Mutex<Option<(PathBuf, Vec<Vec<u8>>)>> = Mutex::new(None);
/// Names the file for `HISTORY`.
const HISTORY_FILE: &str = "FUZZ_HISTORY";

std::thread_local! {
    static RUNNER: RefCell<Option<Runner>> = const { RefCell::new(None) };
    static RECORDS: RefCell<bool> = const { RefCell::new(false) };
}

unsafe extern "C" {
    fn LLVMFuzzerRunDriver(
        argc: *mut c_int,
        argv: *mut *mut *mut c_char,
        callback: unsafe extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
}

// libFuzzer's crate wants a function to call, although `main` is ours.
libfuzzer_sys::fuzz_target!(|data: &[u8]| run(data));

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    change(data, size, max_size, seed)
});

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    let done = match words[..] {
        ["list"] => {
            TARGETS
                .iter()
                .for_each(|target| println!("{}", target.name));
            Ok(())
        }
        ["seeds", name, dir, ref scripts @ ..] => {
            named(name).and_then(|target| write_seeds(target, Path::new(dir), scripts))
        }
        ["history", name, file] => named(name).and_then(|target| replay(target, Path::new(file))),
        [name, ..] => named(name).and_then(|target| fuzz(target, &args)),
        [] => Err("which target? `list` names them".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("fuzz-targets: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn named(name: &str) -> Result<&'static Target, String> {
    find(name).ok_or_else(|| format!("there is no target {name}"))
}

/// One input under libFuzzer.
fn run(data: &[u8]) {
    RUNNER.with_borrow_mut(|runner| {
        let Some(runner) = runner else { return };
        if let Ok(mut history) = HISTORY.lock()
            && let Some((_, inputs)) = &mut *history
        {
            if runner.is_fresh() {
                inputs.clear();
            }
            inputs.push(data.to_vec());
        }
        runner.run(data);
    });
}

/// Changes an input: as libFuzzer does, or with a view to its records.
fn change(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    if !RECORDS.with_borrow(|records| *records) || seed.is_multiple_of(4) {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let changed = mutate(&data[..size], max_size, seed, |bytes, max| {
        let len = bytes.len();
        bytes.resize(max, 0);
        let len = libfuzzer_sys::fuzzer_mutate(bytes, len, max);
        bytes.truncate(len);
    });
    data[..changed.len()].copy_from_slice(&changed);
    changed.len()
}

fn fuzz(target: &Target, args: &[String]) -> Result<(), String> {
    if let Some(file) = std::env::var_os(HISTORY_FILE)
        && let Ok(mut history) = HISTORY.lock()
    {
        *history = Some((file.into(), Vec::new()));
    }
    abort_on_panic();
    RECORDS.set(seeds::has_records(target));
    // The target's name is ours; the program's name stays.
    let words = args.iter().enumerate().filter(|(at, _)| *at != 1);
    let words = words.map(|(_, word)| CString::new(word.as_str()));
    let words: Vec<CString> = words.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    let mut argv: Vec<*mut c_char> = words.iter().map(|word| word.as_ptr().cast_mut()).collect();
    argv.push(core::ptr::null_mut());
    let mut argc = words.len() as c_int;
    let code = target.with_runner(|runner| {
        RUNNER.set(Some(runner));
        let mut argv = argv.as_mut_ptr();
        // SAFETY: both pointers are to variables that outlive the call; the arguments are strings that end with zero, and
        // behind the last stands a null pointer. `one` keeps to what the callback is told.
        let code = unsafe { LLVMFuzzerRunDriver(&raw mut argc, &raw mut argv, one) };
        RUNNER.take();
        code
    });
    match code {
        0 => Ok(()),
        code => Err(format!("libFuzzer ends with {code}")),
    }
}

/// # Safety
/// `size` bytes at `data` are readable, and stay as they are during the call.
unsafe extern "C" fn one(data: *const u8, size: usize) -> c_int {
    let data = match size {
        0 => &[],
        // SAFETY: promised above.
        _ => unsafe { core::slice::from_raw_parts(data, size) },
    };
    run(data);
    0
}

/// Ends the process at any panic, and keeps what led to it.
fn abort_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        // Nothing else holds it: the panic is in an input's run.
        if let Ok(history) = HISTORY.try_lock()
            && let Some((file, inputs)) = &*history
        {
            let mut text = Vec::new();
            for input in inputs {
                text.extend((input.len() as u32).to_le_bytes());
                text.extend(input);
            }
            if let Err(e) = std::fs::write(file, text) {
                eprintln!("{}: {e}", file.display());
            }
        }
        std::process::abort();
    }));
}

fn replay(target: &Target, file: &Path) -> Result<(), String> {
    let text = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut rest = text.as_slice();
    target.with_runner(|mut runner| {
        while let Some((len, after)) = rest.split_first_chunk::<4>() {
            let len = u32::from_le_bytes(*len) as usize;
            let (input, after) = after.split_at(len.min(after.len()));
            runner.run(input);
            rest = after;
        }
        runner.finish();
    });
    Ok(())
}

fn write_seeds(target: &Target, dir: &Path, scripts: &[&str]) -> Result<(), String> {
    let paths: Vec<PathBuf> = scripts.iter().map(PathBuf::from).collect();
    let found = packetdrill::suite::find(&paths).map_err(|e| format!("{e:#}"))?;
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut inputs = seeds::built_in(target);
    for script in found {
        let text = std::fs::read(&script.path).map_err(|e| format!("{}: {e}", script.name))?;
        inputs.extend(seeds::from_script(target, &String::from_utf8_lossy(&text)));
    }
    inputs.sort();
    inputs.dedup();
    for (number, input) in inputs.iter().enumerate() {
        let path = dir.join(format!("{number:04}"));
        std::fs::write(&path, input).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    println!("{} inputs in {}", inputs.len(), dir.display());
    Ok(())
}
