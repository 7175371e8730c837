"""`python -m centernet_trt.cli`: the command line without its script."""

from centernet_trt.cli.app import main

main()
