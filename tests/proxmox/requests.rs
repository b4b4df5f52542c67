//! What every recorded request of a build has to be.

use std::path::Path;

use pve_sim::{Published, Request};

/// Makes sure that the schema that Proxmox publishes rejects no request, and that no two changes of one VM
/// overlap.
pub(crate) fn assert_requests_are_well(requests: &[Request]) {
    let Some(schema) = Published::find(Path::new(env!("CARGO_MANIFEST_DIR"))) else {
        println!("the published schema is not there: requests are held against our own table alone");
        return assert_in_turn(requests);
    };
    let schema = Published::load(&schema).expect("a schema");
    let objections: Vec<_> = requests.iter().flat_map(|request| schema.objections(request)).collect();
    assert_eq!(objections, Vec::<String>::new());
    assert_in_turn(requests);
}

fn assert_in_turn(requests: &[Request]) {
    let changes: Vec<_> = requests.iter().filter(|it| it.method != "GET" && vm_of(it).is_some()).collect();
    assert!(changes.len() > 20, "only {} changes", changes.len());
    for (at, first) in changes.iter().enumerate() {
        let end = first.task_ended_ms.max(first.ended_ms).expect("an answer");
        let meanwhile = changes[at + 1..].iter().take_while(|next| next.started_ms < end);
        let overlaps: Vec<_> = meanwhile.filter(|next| vm_of(next) == vm_of(first)).collect();
        assert!(overlaps.is_empty(), "{first:#?} is not over when {overlaps:#?} begins");
    }
}

/// Returns the VM that a request holds. Tickets for the console hold nothing.
fn vm_of(request: &Request) -> Option<&str> {
    let rest = request.path.split("/qemu/").nth(1)?;
    let (vmid, what) = rest.split_once('/').unwrap_or((rest, ""));
    (!["vncproxy", "termproxy", "vncwebsocket"].contains(&what)).then_some(vmid)
}
