//! What happens in the child between fork and exec: an ordered list of named steps.
//!
//! The sandbox grows here: a new axis is one more step, and a step that fails is a launch failure with the step's name,
//! never a payload that runs with less isolation than promised.

use super::spec::Spec;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Descriptors 3 and 4, held by the supervisor so that nothing else (std's own exec pipe, say) gets these numbers.
pub struct Slots {
    pub launch: OwnedFd,
    pub ready: OwnedFd,
}

/// The payload's ends of what it inherits, beside the log files.
pub struct Inherited {
    pub launch: OwnedFd,
    pub ready: Option<OwnedFd>,
    pub stdout: File,
    pub stderr: File,
}

struct Plan {
    supervisor: Pid,
    open_files_max: u64,
    slots: Slots,
    launch: OwnedFd,
    ready: Option<OwnedFd>,
}

type Step = (&'static str, fn(&mut Plan) -> rustix::io::Result<()>);

/// In the order of the design's sandbox page. Parent-death signal after anything that changes the user: that clears it.
const STEPS: &[Step] = &[
    ("resetting signals", reset_signals),
    ("starting a session", start_session),
    ("handing over descriptors", hand_over_descriptors),
    ("setting limits", set_limits),
    ("tying it to its supervisor", die_with_supervisor),
    ("giving up new privileges", give_up_new_privileges),
];

/// Starts the payload. The error is in words for the user.
pub fn spawn(spec: &Spec, slots: Slots, inherited: Inherited) -> Result<Child, String> {
    let (program, arguments) = spec.argv.split_first().ok_or("the command to execute is empty")?;
    let (mut failed_read, failed_write) =
        io::pipe().map_err(|error| format!("cannot make a pipe: {error}"))?;
    let mut plan = Plan {
        supervisor: rustix::process::getpid(),
        open_files_max: spec.open_files_max,
        slots,
        launch: inherited.launch,
        ready: inherited.ready,
    };
    let mut failed = failed_write.try_clone().map_err(|error| format!("cannot duplicate a pipe: {error}"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(&spec.env)
        .current_dir(&spec.scratch_dir)
        .stdin(Stdio::null())
        .stdout(inherited.stdout)
        .stderr(inherited.stderr);
    // SAFETY: the supervisor is single-threaded, so no lock can be held by a thread that the fork left behind;
    // the steps are system calls on values prepared before the fork.
    unsafe {
        command.pre_exec(move || {
            for (index, (_, step)) in STEPS.iter().enumerate() {
                if let Err(error) = step(&mut plan) {
                    // std passes on the error number alone; this says which step it was.
                    let _ = failed.write_all(&[index as u8]);
                    return Err(error.into());
                }
            }
            Ok(())
        });
    }
    let spawned = command.spawn();
    drop(command);
    drop(failed_write);
    spawned.map_err(|error| {
        let mut step = [0u8];
        match failed_read
            .read(&mut step)
            .ok()
            .and_then(|n| STEPS.get(usize::from(step[0])).filter(|_| n == 1))
        {
            Some((name, _)) => format!("{name} failed: {}", in_words(&error)),
            None => format!("cannot execute {program}: {}", in_words(&error)),
        }
    })
}

/// `No such file or directory`, without the `(os error 2)` that std adds.
pub fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// A daemon's ignored or blocked signals would survive exec: a payload must be able to be terminated and interrupted.
fn reset_signals(_: &mut Plan) -> rustix::io::Result<()> {
    // SAFETY: plain calls on a signal set of our own; SIG_DFL is valid for every signal; those that
    // cannot be set (KILL, STOP, the C library's own) are refused.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
    Ok(())
}

fn start_session(_: &mut Plan) -> rustix::io::Result<()> {
    rustix::process::setsid().map(drop)
}

/// Everything else is close-on-exec; `dup2` clears that flag on its target.
fn hand_over_descriptors(plan: &mut Plan) -> rustix::io::Result<()> {
    rustix::io::dup2(&plan.launch, &mut plan.slots.launch)?;
    if let Some(ready) = &plan.ready {
        rustix::io::dup2(ready, &mut plan.slots.ready)?;
    }
    Ok(())
}

fn set_limits(plan: &mut Plan) -> rustix::io::Result<()> {
    // A core file would hold the token and fill the disk.
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let hard = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let limit = Some(plan.open_files_max.min(hard));
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })
}

fn die_with_supervisor(plan: &mut Plan) -> rustix::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // A supervisor that died before the call sends no signal any more.
    if rustix::process::getppid() == Some(plan.supervisor) { Ok(()) } else { Err(rustix::io::Errno::SRCH) }
}

fn give_up_new_privileges(_: &mut Plan) -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)
}
