//! Reboots, of a guest that only says that it does.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use forge::communicator::{Communicator, CommunicatorError, Exec, Output};
use forge::definition::{Reboot, Step};
use forge::provision::{Context, apply};
use futures_util::future::BoxFuture;

use crate::bench::{Fault, error};

/// A guest that reboots: it remembers what it was asked, and loses some answers.
struct Rebooting {
    asked: Mutex<Vec<String>>,
    faults: Mutex<Vec<Option<Fault>>>,
}

impl Communicator for Rebooting {
    fn exec<'a>(&'a self, command: &'a Exec) -> BoxFuture<'a, Result<Output, CommunicatorError>> {
        Box::pin(async move {
            let kind = if command.argv[2].contains("boot_id") { "read" } else { "reboot" };
            self.asked.lock().unwrap().push(kind.to_owned());
            if let Some(fault) = self.faults.lock().unwrap().pop().flatten() {
                return Err(error(fault));
            }
            let (stdout, stderr) = (b"old-boot\n".to_vec(), Vec::new());
            Ok(Output { code: Some(0), signal: None, stdout, stderr, truncated: false })
        })
    }

    fn put_file<'a>(&'a self, _: &'a str, _: &'a [u8]) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        unreachable!("a reboot writes nothing")
    }

    fn get_file<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<u8>, CommunicatorError>> {
        unreachable!("a reboot reads no file whole")
    }

    fn wait_for_reboot<'a>(
        &'a self,
        previous_boot_id: &'a str,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<(), CommunicatorError>> {
        assert!(deadline > Duration::from_secs(10));
        Box::pin(async move {
            self.asked.lock().unwrap().push(format!("wait {previous_boot_id}"));
            Ok(())
        })
    }
}

#[tokio::test]
async fn a_reboot_is_asked_for_once_and_waited_for() {
    let step = Step { name: "again".to_owned(), reboot: Some(Reboot::default()), ..Step::default() };
    for (fault, asked) in [
        (None, &["read", "reboot", "wait old-boot"][..]),
        (Some(Fault::Unknown), &["read", "reboot", "wait old-boot"]),
        (Some(Fault::NotSent), &["read", "reboot", "reboot", "wait old-boot"]),
    ] {
        let guest = Rebooting { asked: Mutex::default(), faults: Mutex::new(vec![fault, None]) };
        let cx = Context {
            guest: &guest,
            folder: "/nowhere",
            bulk: None,
            root: Path::new("/"),
            output: &|_| (),
            log: &|_| (),
            retry: &|_, _, _| (),
            render: &|_| unreachable!(),
            secrets: &[],
        };
        apply(&step, Duration::from_secs(20), &cx).await.unwrap();
        assert_eq!(*guest.asked.lock().unwrap(), asked, "{fault:?}");
    }
}
