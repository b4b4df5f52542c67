"""A build as PyPI's proxmoxer does it: against a simulated node, with the stand-in for QEMU behind it.

Argument: an ISO image. The environment is that of tests/pve/with-simulator.
"""

import os
import sys

import urllib3
from proxmoxer import ProxmoxAPI
from proxmoxer.core import ResourceException
from proxmoxer.tools import Tasks

urllib3.disable_warnings()

ISO = sys.argv[1]
PORT, NODE = int(os.environ["PVE_ENDPOINT"].rpartition(":")[2]), os.environ["PVE_NODE"]
VMID, CLONE = 8200, 8201


def expect(what, got, wanted):
    if got != wanted:
        sys.exit("%s: got %r, wanted %r" % (what, got, wanted))
    print("ok  %s" % what, flush=True)


def refused(what, text, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ResourceException as error:
        expect(what, text in str(error), True)
    else:
        sys.exit("%s: was not refused" % what)


def done(api, upid, what):
    status = Tasks.blocking_status(api, upid, timeout=60, polling_interval=0.2)
    if status is None:
        sys.exit("%s: the task did not end" % what)
    expect(what, status["exitstatus"], "OK")


def main():
    secret = os.environ["PVE_PASSWORD"]
    ticket = ProxmoxAPI("127.0.0.1", port=PORT, user="root@pam", password=secret, verify_ssl=False)
    expect("ticket", ticket.version.get()["release"].split(".")[0] in ("8", "9"), True)
    token_id, token = os.environ["PVE_TOKEN"].split("=", 1)
    user, name = token_id.split("!", 1)
    api = ProxmoxAPI(
        "127.0.0.1", port=PORT, user=user, token_name=name, token_value=token, verify_ssl=False, timeout=30
    )
    node = api.nodes(NODE)
    expect("nodes", [each["node"] for each in api.nodes.get()], [NODE])
    expect("free VMID", int(api.cluster.nextid.get(vmid=VMID)), VMID)

    with open(ISO, "rb") as iso:
        done(api, node.storage("local").upload.post(content="iso", filename=iso), "upload")
    volumes = [each["volid"] for each in node.storage("local").content.get(content="iso")]
    volid = "local:iso/" + os.path.basename(ISO)
    expect("content", volid in volumes, True)

    hardware = {
        "name": "proxmoxer",
        "ostype": "l26",
        "kvm": 0,
        "memory": 256,
        "agent": "enabled=1",
        "scsihw": "virtio-scsi-pci",
        "virtio0": "local-zfs:1",
        "ide2": volid + ",media=cdrom",
        "boot": "order=virtio0;ide2",
        "net0": "virtio,bridge=vmbr0",
        "serial0": "socket",
    }
    done(api, node.qemu.post(vmid=VMID, **hardware), "create")
    refused("taken VMID", "already exists", node.qemu.post, vmid=VMID)
    vm = node.qemu(VMID)
    config = vm.config.get()
    expect("config", (config["name"], config["boot"], config["memory"]), ("proxmoxer", "order=virtio0;ide2", "256"))
    refused("bad option", "property is not defined", vm.config.put, nosuch=1)
    vm.config.put(description="é – ü", tags="b;A")
    expect("description", vm.config.get()["description"], "é – ü")

    done(api, vm.status.start.post(), "start")
    expect("running", vm.status.current.get()["status"], "running")
    refused("no agent", "guest agent is not running", vm.agent.ping.post)
    done(api, vm.status.stop.post(), "stop")
    expect("stopped", vm.status.current.get()["status"], "stopped")

    done(api, vm.config.post(ide2="none,media=cdrom"), "eject")
    done(api, vm.config.post(ide0="local-zfs:cloudinit", ciuser="odin", ipconfig0="ip=dhcp"), "cloud-init")
    expect("dump", "user: odin\n" in vm.cloudinit.dump.get(type="user"), True)
    done(api, vm.template.post(), "template")
    done(api, vm.clone.post(newid=CLONE, name="clone"), "clone")
    clone = node.qemu(CLONE)
    expect("the clone is no template", "template" in clone.config.get(), False)
    done(api, clone.delete(purge=1), "delete the clone")
    done(api, vm.delete(purge=1), "delete the template")
    names = [each.get("name") for each in api.cluster.resources.get(type="vm")]
    expect("nothing is left", "proxmoxer" in names or "clone" in names, False)


main()
