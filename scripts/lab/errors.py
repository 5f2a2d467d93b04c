"""What goes wrong is said in one line, with a hint and an exit code that scripts can tell apart."""

from checks import check
from hosts import Lab


@check("errors")
def errors(lab, say):
    """each error is one clear line, a hint and an exit code"""
    host = lab.host("solo", lab.switch())
    lab.share_key([host])
    key = (host.home / "default/key").read_bytes()

    def homes():
        number = 0
        while True:
            number += 1
            home = host.twin(f"home{number}")
            Lab.give_key(home, key)
            yield home

    homes = homes()

    def expect(what, home, words, code, *parts):
        got, out, err = home.meshd(*words, seconds=10)
        lines = [line for line in err.splitlines() if line]
        so = got == code and len(lines) == 2 and lines[0].startswith("meshd: ") and lines[1].startswith("hint: ")
        so = so and all(part in lines[0] for part in parts) and not out
        say.holds(
            so,
            f"{what}: one line, a hint, exit code {code}",
            " / ".join(lines) if so else "",
            f"exit code {got}, wanted {code} with {parts}\n{out}{err}",
        )

    expect("no daemon", host, ["peers"], 6, "no daemon")

    daemon = host.run("--no-mdns")
    expect("a second daemon", host, ["run", "--no-mdns"], 5, "runs already", f"pid {daemon.popen.pid}")
    taken = host.port()

    home = next(homes)
    (home.home / "default/key").chmod(0o644)
    expect("a key file that others can read", home, ["run"], 1, "open to other users", "644")

    home = next(homes)
    (home.home / "default/key").write_bytes(key[:40] + b"\n")
    expect("a truncated key", home, ["run"], 1, "cut short")

    home = next(homes)
    (home.home / "default/key").write_bytes(key.replace(b"meshd-key-1", b"meshd-key-2"))
    expect("a key of another version", home, ["run"], 1, "newer")

    home = next(homes)
    (home.home / "default/config.toml").write_text("[discovery]\nmdsn = false\n")
    expect("an unknown key in the configuration", home, ["run"], 2, "mdsn", "config.toml")

    expect(
        "a port in use", next(homes), ["run", "--no-mdns", "--no-local", "--listen", f"0.0.0.0:{taken}"], 1, str(taken)
    )

    expect("an address that is none", next(homes), ["run", "--listen", "nowhere"], 2, "nowhere")

    long = host.twin("long")
    long.home = long.home / ("x" * 100)
    expect("a socket path that is too long", long, ["run"], 2, "too long")

    code, _, err = host.meshd("send", "a/**", "x")
    say.holds(
        code == 2 and "wildcards" in err, "a topic that is none: exit code 2", err.splitlines()[0], f"{code} {err}"
    )

    code, _, err = host.meshd("send", "t", "x", "--no-wait")
    lines = err.splitlines()
    say.holds(
        code == 3 and "nobody" in lines[0] and lines[-1].startswith("hint: "),
        "nobody listens: exit code 3",
        " / ".join(lines),
        f"{code} {err}",
    )
    code, _, err = host.meshd("listen", "t", "--count", "1", "--timeout", "50ms")
    lines = err.splitlines()
    say.holds(
        code == 4 and lines[-1].startswith("hint: "),
        "nothing comes in time: exit code 4",
        " / ".join(lines),
        f"{code} {err}",
    )
    code, _, err = host.meshd("ping", "nobody")
    lines = err.splitlines()
    say.holds(code == 3, "a ping to nobody: exit code 3", " / ".join(lines), f"{code} {err}")
