"""How long the first line of a notebook takes, in fresh interpreters; best of several.

python workshop/benchmarks/import_time.py [--rounds 3]
"""

import argparse
import subprocess
import sys
import time

WHOLE = """
import sys, types, torch
ops = types.ModuleType("xformers.ops"); ops.unbind = torch.unbind
package = types.ModuleType("xformers"); package.ops = ops
for module in (package, ops): module.__spec__ = None
sys.modules |= {"xformers": package, "xformers.ops": ops}
import audiocraft.models
"""
LINES = {
    "nothing": "",
    "import mechsteer": "import mechsteer",
    "import torch": "import torch",
    "mechsteer's model (torch and audiocraft)": "import mechsteer.model.model",
    "audiocraft as it comes": WHOLE,
}


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = range(parser.parse_args().rounds)
    best = {name: min(seconds(code) for _ in rounds) for name, code in LINES.items()}
    print("| first line | seconds | beyond starting Python |\n|---|---|---|")
    for name, value in best.items():
        print(f"| {name} | {value:.2f} | {value - best['nothing']:.2f} |")


if __name__ == "__main__":
    main()
