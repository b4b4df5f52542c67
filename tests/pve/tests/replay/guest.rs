//! The guest of the transcripts: what its programs left, from the recorded answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pve_sim::fake::{Guest, Output, Plain, Pretended};

/// What a test can switch while the guest runs.
#[derive(Debug, Default)]
pub(crate) struct Switches {
    /// The agent answers.
    pub(crate) agent: AtomicBool,
    /// The guest heeds a shutdown.
    pub(crate) heeds: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct Tiny(pub(crate) Arc<Switches>);

fn out(text: &[u8]) -> Output {
    Output { code: Some(0), out: text.to_vec(), ..Output::default() }
}

fn slow(output: Output) -> Output {
    Output { takes: Duration::from_millis(60), ..output }
}

impl Guest for Tiny {
    fn agent_is_up(&self, _: Duration) -> bool {
        self.0.agent.load(Ordering::SeqCst)
    }

    fn shuts_down(&self) -> bool {
        self.0.heeds.load(Ordering::SeqCst)
    }

    fn exec(&self, machine: &Pretended, command: &[String], input: &[u8]) -> Result<Output, String> {
        let ["/bin/sh", "-c", script] = command.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
            let done = Plain.exec(machine, command, input)?;
            return Ok(if done.takes.is_zero() { done } else { slow(done) });
        };
        Ok(match script {
            "echo hello; sleep 1; echo bye" => slow(out(b"hello\nbye\n")),
            "echo one; sleep 1; echo two" => slow(out(b"one\ntwo\n")),
            "echo out; echo err >&2; exit 3" => {
                Output { code: Some(3), err: b"err\n".to_vec(), ..out(b"out\n") }
            }
            "kill -9 $$" => Output { signal: Some(9), ..Output::default() },
            "/no/such/program" => slow(Output {
                code: Some(127),
                err: b"/bin/sh: /no/such/program: not found\n".to_vec(),
                ..Output::default()
            }),
            "sleep 5 & echo started" => slow(out(b"started\n")),
            "sleep 1; reboot -f" => {
                machine.switch_off();
                out(b"")
            }
            printed if printed.contains("\\303\\251") => out("é€\n".as_bytes()),
            printed if printed.contains("\\377") => slow(out(b"\xff\xfe\0A\n")),
            loops if loops.starts_with("i=0") => slow(out(&vec![b'0'; 101_000])),
            megabytes if megabytes.starts_with("dd ") => {
                let count: usize =
                    megabytes.split("count=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
                slow(out(&vec![b'a'; count << 20]))
            }
            other => panic!("the transcripts do not run {other}"),
        })
    }
}
