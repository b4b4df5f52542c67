//! swtpm, the process behind a machine's TPM.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Error;
use super::guard::{self, Guard};

const START: Duration = Duration::from_secs(10);

/// Starts a TPM 2.0 whose log lies in `folder`; it ends when QEMU or forge does.
///
/// Its state lies beside its socket, and goes with it: a template has none, and a guest's secrets
/// may be in it.
pub(super) async fn launch(socket: &Path, folder: &Path) -> Result<Guard, Error> {
    let swtpm = guard::find_program(Path::new("swtpm"), "swtpm")?;
    let state = socket.with_file_name("tpm-state");
    fs::create_dir(&state).map_err(Error::io(format!("creating {}", state.display())))?;
    let log = folder.join("swtpm.log");
    let stderr = fs::File::create(&log).map_err(Error::io(format!("creating {}", log.display())))?;
    let mut command = guard::armed(&swtpm)?;
    command.args(["socket", "--tpm2", "--terminate", "--tpmstate"]).arg(format!("dir={}", state.display()));
    command.arg("--ctrl").arg(format!("type=unixio,path={}", socket.display()));
    command.stderr(Stdio::from(stderr));
    let (process, _) = Guard::spawn(command, "swtpm").await?;
    let listening = async {
        // Binding comes last in swtpm's start and nothing tells of it.
        while !socket.exists() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let deadline = Instant::now() + START;
    tokio::select! {
        () = listening => Ok(process),
        status = process.wait() => Err(Error::Died {
            program: "swtpm".to_owned(),
            status: guard::describe(status),
            stderr: guard::last_words(&fs::read(&log).unwrap_or_default()),
        }),
        () = tokio::time::sleep_until(deadline) => {
            Err(Error::Deadline { what: "swtpm listening".to_owned(), after: START })
        }
    }
}
