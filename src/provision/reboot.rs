//! Reboots the guest and waits for it.

use std::time::Duration;

use tokio::time::Instant;

use super::script::{expect_success, shell_command};
use super::{Context, ProvisionError};
use crate::communicator::CommunicatorError;

/// Reboots the guest and waits until its agent answers again.
pub(super) async fn reboot(timeout: Duration, cx: &Context<'_>) -> Result<(), ProvisionError> {
    let deadline = Instant::now() + timeout;
    let read = shell_command("cat /proc/sys/kernel/random/boot_id", []);
    let boot_id = expect_success(&read, "reading the boot id", deadline, cx).await?.text();
    if boot_id.is_empty() {
        return Err(CommunicatorError::Refused {
            what: "reading the boot id".to_owned(),
            reason: "it is empty".to_owned(),
        }
        .into());
    }
    ask_for_reboot(deadline, cx).await?;
    let left = deadline.saturating_duration_since(Instant::now());
    Ok(cx.guest.wait_for_reboot(&boot_id, left).await?)
}

/// Asks once: when the answer is lost, the guest is most likely on its way already, and asking a
/// second time could reboot it twice.
async fn ask_for_reboot(deadline: Instant, cx: &Context<'_>) -> Result<(), ProvisionError> {
    let ask = shell_command(
        "if command -v systemctl >/dev/null; then systemctl --no-block reboot; else reboot; fi",
        [],
    );
    loop {
        match cx.guest.exec(&ask).await {
            Err(CommunicatorError::NotSent { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Ok(output) if !output.success() => {
                return Err(CommunicatorError::Refused {
                    what: "rebooting the guest".to_owned(),
                    reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                }
                .into());
            }
            Ok(_) | Err(CommunicatorError::Unknown { .. } | CommunicatorError::Timeout { .. }) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}
