"""Run the command line as `python -m centernet_trt.cli`."""

from centernet_trt.cli.app import main

main()
