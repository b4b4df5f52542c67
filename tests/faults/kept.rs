//! What becomes of the machine of a failed build.

use std::io::{BufRead as _, BufReader, Write as _};

use rustix::process::Signal;

use crate::build::PATIENCE;
use crate::process::descendants;
use crate::root::Root;

#[test]
fn a_kept_machine_can_be_reached_and_ends_with_ctrl_c() {
    let root = Root::new();
    let build = root.start(&[], &["--keep", "--var", "fault=step"]);
    build.wait_for_stderr("The machine is kept until Ctrl-C");
    build.wait_for_stderr("  ssh      ssh -p ");
    let text = build.stderr();
    assert!(text.contains("greet: exit code 3"), "{text}");
    let agent = text.lines().find_map(|line| line.trim().strip_prefix("agent    ")).unwrap();
    let mut socket = std::os::unix::net::UnixStream::connect(agent.trim()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(b"{\"execute\":\"guest-ping\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).unwrap();
    assert_eq!(answer, "{\"return\": {}}\n");

    let family = descendants(build.pid());
    assert!(!family.is_empty());
    build.signal(Signal::INT);
    let ended = build.finish();
    ended.assert_code(14);
    root.assert_nothing_runs(&family);
    root.assert_nothing_left();
    root.assert_no_artifact();
}
