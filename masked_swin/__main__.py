"""`python -m masked_swin`: the command line, as `masked-swin` and `python -m masked_swin.train`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("masked_swin.train", run_name="__main__", alter_sys=True)
