"""What `make demo` runs: trains a CNN on real digits, saves it, and compares speeds."""

import tempfile
from pathlib import Path

import pycnn as cnn
from pycnn import cli


def main() -> None:
    print(f"pycnn {cnn.__version__} on {cnn.info()['isa']} with {cnn.get_num_threads()} thread(s)\n")
    model = Path(tempfile.gettempdir(), "digits.safetensors")
    for command in (["train", "digits", "--output", str(model)], ["evaluate", str(model), "digits"], ["bench"]):
        print(f"\n$ pycnn {' '.join(command)}")
        if cli.main(command):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
