//! swtpm, the process behind a machine's TPM.

use std::path::Path;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::args::Places;
use super::config::Tpm;
use super::guard::{self, Guard};

const START: Duration = Duration::from_secs(10);

/// Starts a TPM whose state lies in its volume; it ends when QEMU or the simulator does.
pub(super) async fn launch(tpm: &Tpm, places: &Places) -> Result<Guard, String> {
    if tpm.state.format != "raw" {
        return Err("tpmstate0: the volume must be raw".to_owned());
    }
    let (socket, log) = (places.tpm(), places.folder.join("swtpm.log"));
    let mut command = guard::armed(Path::new("swtpm"), &log)?;
    command.args(["socket", "--terminate", "--tpmstate"]);
    command.arg(format!("backend-uri=file://{}", tpm.state.path.display()));
    command.arg("--ctrl").arg(format!("type=unixio,path={}", socket.display()));
    if tpm.version_2 {
        command.arg("--tpm2");
    }
    let process = Guard::spawn(command).await.map_err(|error| format!("starting swtpm: {error}"))?;
    let listening = timeout(START, async {
        // Binding comes last in swtpm's start and nothing tells of it.
        while !socket.exists() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    tokio::select! {
        biased;
        status = process.wait() => {
            let words = std::fs::read_to_string(&log).unwrap_or_default();
            Err(format!("starting swtpm: {status}: {}", words.trim()))
        }
        listens = listening => match listens {
            Ok(()) => Ok(process),
            Err(_) => Err(format!("swtpm did not listen within {} s", START.as_secs())),
        },
    }
}
