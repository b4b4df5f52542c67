# Says what the stub does, where a person and the log of the machine's serial port can see it.
CONSOLES = ("/dev/console", "/dev/tty1", "/dev/ttyS0")
ACTIVE = "/sys/class/tty/console/active"


def consoles():
    try:
        with open(ACTIVE) as active:
            kernels = active.read().split()
    except OSError:
        kernels = []
    # /dev/console is the last of these, which is not told twice.
    return [path for path in CONSOLES if not kernels or path != "/dev/" + kernels[-1]]


def tell(message):
    print("forge:", message, flush=True)
    for console in consoles():
        try:
            with open(console, "w") as out:
                out.write("forge: " + message + "\r\n")
        except OSError:
            pass


