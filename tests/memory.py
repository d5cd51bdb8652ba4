#!/usr/bin/env python3
"""What the models remember of hosts, as the difference of two whole processes' peak memory.

    tests/memory.py [--hosts 100000] [--windows 30] [--binary PATH]

A flow log in which every host of ours makes one conversation in each window of five minutes goes through `flowvigil detect`, once
with the models and once without ([ml.model] enabled).
"""
import argparse, os, pathlib, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
START = 1_772_438_400


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--hosts", type=int, default=100_000)
    p.add_argument("--windows", type=int, default=30)
    p.add_argument("--binary", default=str(ROOT / "target/release/flowvigil"))
    o = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "hosts.log")
        hosts = [f"10.{h >> 16 & 255}.{h >> 8 & 255}.{h & 255}" for h in range(1, o.hosts + 1)]
        with open(log, "w") as out:
            for window in range(o.windows):
                for at, host in enumerate(hosts):
                    start = START + window * 300 + at % 240
                    out.write(f"2 123456789012 eni-1 {host} 203.0.113.{at % 250} 40000 443 6 12 {3000 + (at * 7 + window * 13) % 900} "
                              f"{start} {start + 5} ACCEPT OK\n")
        peak = {}
        for enabled in ("false", "true"):
            environment = os.environ | {"FLOWVIGIL__ML__MODEL__ENABLED": enabled, "FLOWVIGIL__ML__MODEL__HOSTS_MAX": str(o.hosts)}
            run = subprocess.Popen([o.binary, "detect", log, "--format", "json"], stdout=subprocess.DEVNULL, env=environment)
            _, status, usage = os.wait4(run.pid, 0)
            run.returncode = os.waitstatus_to_exitcode(status)
            if run.returncode:
                return run.returncode
            peak[enabled] = usage.ru_maxrss * 1024 / 1e6
            print(f"models {'on' if enabled == 'true' else 'off'}: peak memory {peak[enabled]:.0f} MB, {usage.ru_utime:.1f} s of CPU", flush=True)
    print(f"{o.hosts} hosts take {peak['true'] - peak['false']:.0f} MB more with the models")
    return 0


sys.exit(main())
